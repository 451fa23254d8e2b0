"""Rows in Parquet shards, and a column that follows: set after each commit, mended on opening.

The journal decides. A run that dies between its commit and the column leaves rows that are
completed and do not say so; the next run sets them before it begins, and handles none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.directory.driver import Checkpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.checkpoint.form import CheckpointForm
from resumable_tasks.checkpoint.sql.claims import Claims
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.planning import TablePlanner, page_size
from resumable_tasks.checkpoint.sql.results import Results
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planner
from resumable_tasks.runners.outcome import Outcome
from resumable_tasks.task.options import JobOptions

if TYPE_CHECKING:
    import pyarrow as pa

_PAGE = 5_000


class ColumnBehind(CheckpointForm):
    """A checkpoint in a directory, and the column of a table that says what is in it."""

    def __init__(
        self, inner: Checkpoint, database: Database, tables: Tables, options: JobOptions
    ) -> None:
        self.inner = inner
        self.job, self.url, self.run = inner.job, inner.url, inner.run
        self.state, self.store, self.before = inner.state, inner.store, inner.before
        self._database = database
        self._tables = tables
        self._options = options
        self._results = Results(database, tables)
        self._claims = self._pages(page_size(options))
        self._counts = (0, 0)

    def _pages(self, most: int, *more: Any) -> Claims:
        size = self._options.batch_size
        return Claims(self._database, self._tables, self.run, size, most, list(more), shared=False)

    @property
    def found(self) -> int:
        return self._counts[1]

    @property
    def expected(self) -> int:
        return self._counts[0]

    def mend(self) -> None:
        """Set the column of what is completed and does not say so."""
        mended = 0
        for page in self._pages(_PAGE).pages():
            found = [
                self._tables.key_of([row[name] for name in self._tables.spec.keys]) for row in page
            ]
            done = [key for key in found if keys.canonical(key) in self.state.done]
            if done:
                with self._database.writing() as connection:
                    self._results.set_done(connection, done)
                mended += len(done)
        if mended:
            log.info(
                "%s of %s rows are completed in %s: set now",
                f"{mended:,}",
                self._tables.url,
                self.url,
            )
        self._counts = self._results.count_items()
        if self.found > len(self.state.done):
            # Set by hand, or by a run with another directory: this one cannot tell.
            log.warning(
                "%s rows of %s are set done, and %s has %s: the others have no results there. If "
                "they are in another directory, name that one; if nowhere, set the column to NULL",
                f"{self.found:,}",
                self._tables.url,
                self.url,
                f"{len(self.state.done):,}",
            )

    def planner(self, scheme: KeyScheme, options: JobOptions) -> Planner:
        set_aside = self.state.set_aside(options.max_attempts, options.retry_failed)
        return TablePlanner(scheme, options, self._claims, self.found, set_aside)

    def stop_when(self, stop: Callable[[], bool]) -> None:
        self._claims.stop = stop

    def shard_writer(self) -> ShardWriter:
        return self.inner.shard_writer()

    def accept(
        self, outcome: Outcome, schema: pa.Schema | None, pending: Sequence[Outcome]
    ) -> tuple[Outcome, pa.Schema | None]:
        return self.inner.accept(outcome, schema, pending)

    def commit(
        self, outcomes: Sequence[Outcome], schema: pa.Schema | None, prints: Mapping[bytes, int]
    ) -> Commit:
        commit = self.inner.commit(outcomes, schema, prints)
        fault_point("sql.behind")
        done = keys.parse_lines(commit.keys)
        if done:
            with self._database.writing() as connection:
                self._results.set_done(connection, done)
        return commit

    def end(self, counts: dict[str, Any], adopted: bytes = b"", prints: bytes = b"") -> None:
        self.inner.end(counts, adopted, prints)

    def close(self) -> None:
        self.inner.close()
        self._database.close()


def open_behind(
    database: Database,
    tables: Tables,
    options: JobOptions,
    *,
    takeover: bool,
    identity: Mapping[str, str] | None,
) -> ColumnBehind:
    """Open the checkpoint in the directory, and mend the column. Raises as both do."""
    assert tables.spec.shards is not None
    scheme = KeyScheme(options.key)
    inner = Checkpoint.open(
        open_store(os.fspath(tables.spec.shards)),
        Manifest(options.name, str(options.version), scheme.describe(), options.results),
        takeover=takeover,
        on_version_change=options.on_version_change,
        max_attempts=options.max_attempts,
        identity=identity,
    )
    form = ColumnBehind(inner, database, tables, options)
    try:
        form.mend()
    except BaseException:
        form.close()
        raise
    return form
