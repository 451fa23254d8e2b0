"""`SqlCheckpoint`: a table as the place of a checkpoint.

Importable without SQLAlchemy: whatever opens a database is loaded when it is needed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import Any

from resumable_tasks.base.naming import named_options
from resumable_tasks.checkpoint.choice import Choice
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.form import Checkpoint, Job, Opening, Place, Preview, Reader
from resumable_tasks.checkpoint.sql.spec import MOST_KEYS, TableSpec, require_sqlalchemy
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import Key


@named_options
@dataclass(frozen=True)
class SqlCheckpoint(TableSpec, Place):
    """A checkpoint in a database table: its rows are the items, and a column marks the done ones.

    A row is completed if and only if its ``done`` column is set. The column and the results are
    written in one transaction: both are there exactly once, whatever is killed.

    Args:
        database: a URL, such as ``postgresql://user@host/name`` or ``sqlite:///file.db``, or a
            SQLAlchemy engine. PostgreSQL supports several drivers at once, SQLite one.
        table: the table whose rows are the items, as ``"schema.table"`` if necessary. It is read
            page by page.
        key: the column or columns that identify a row: unique and not null.
        done: the column that is NULL while a row is to be handled. `resumable sql init` adds it.
        columns: fields of the handler's rows to write to columns of the same row.
        results_table: instead, a table into which the handler's rows are inserted.
        results_key: its column or columns for the key; by default named as in ``key``.
        shards: instead, a directory for a checkpoint with the rows in Parquet; the column is set
            after each commit, and corrected at the start of the next run.
        where: a condition in SQL; other rows are ignored.
        claim_seconds: seconds without a sign of life after which a driver's rows go to others.

    Raises:
        UsageError: the arguments do not fit together.
    """

    def local_path(self) -> str | None:
        return None if self.shards is None else os.fspath(self.shards)

    def takes_files(self) -> bool:
        return self.shards is not None

    def partition(self, name: str) -> Place:
        raise UsageError(
            f"partition={name!r} needs a directory, and a table has none; choose rows with where="
        )

    def check(self, job: Job, items: Any) -> Job:
        self._check_items(job, items)
        self._check_results(job)
        if job.planning.changes is not None:
            raise UsageError(
                f"{job.name}: changes= works only for checkpoints in a directory: make the "
                f"statement that changes a row also set {self.done} to NULL"
            )
        if job.on_version_change == "restart":
            raise UsageError(
                f'{job.name}: on_version_change="restart" cannot archive a table: set {self.done} '
                'to NULL yourself in the rows to redo, and use "reuse"'
            )
        return replace(job, planning=replace(job.planning, key=self.key))

    def _check_items(self, job: Job, items: Any) -> None:
        if items is not None:
            raise UsageError(
                f"{job.name}: the items are the rows of table {self.table}; leave items out, and "
                "choose rows with SqlCheckpoint(where=…)"
            )
        if job.planning.key is not None and job.planning.key != self.key:
            raise UsageError(
                f"{job.name}: key={job.planning.key!r}, but the checkpoint has key={self.key!r}",
                remedy="Give both the same key=, or leave it out of the job",
            )
        if job.planning.batch_size > MOST_KEYS:
            raise UsageError(
                f"{job.name}: a SqlCheckpoint supports batches of at most {MOST_KEYS:,} items",
                remedy=f"Give batch_size={MOST_KEYS} or less",
            )

    def _check_results(self, job: Job) -> None:
        if self.columns:
            fits: tuple[str, ...] = ("one",)
        elif self.results_table:
            fits = ("one", "many")
        else:
            fits = ("none",) if self.shards is None else ("one", "many", "none")
        if job.results not in fits:
            where = "without a place for results"
            if self.columns or self.results_table:
                where = "with columns=" if self.columns else "with results_table="
            raise UsageError(
                f'{job.name}: results="{job.results}" does not fit a SqlCheckpoint {where}: set '
                f"results= to {' or '.join(map(repr, fits))}, or give columns=, results_table= or "
                "shards="
            )

    def preview(self, job: Job, items: Any) -> Preview:
        require_sqlalchemy()
        from resumable_tasks.checkpoint.sql.opening import preview

        return preview(self, job)

    def open(self, job: Job, opening: Opening) -> Checkpoint:
        require_sqlalchemy()
        from resumable_tasks.checkpoint.sql.opening import open_table

        return open_table(self, job, opening)

    def redo(self, choice: Choice, *, dry_run: bool = False) -> list[Key]:
        require_sqlalchemy()
        from resumable_tasks.checkpoint.sql.redo import redo

        return redo(self, choice, dry_run=dry_run)

    def reader(self) -> Reader:
        if self.shards is not None:
            return Directory(os.fspath(self.shards)).reader()
        require_sqlalchemy()
        from resumable_tasks.checkpoint.sql.reading import TableReader

        return TableReader(self)
