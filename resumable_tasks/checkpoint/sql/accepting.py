"""Access to the parked results of a table, for accepting them without a run of the job."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from resumable_tasks.checkpoint.form import Job, Opening
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.driver import TableCheckpoint
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.place import SqlCheckpoint
from resumable_tasks.checkpoint.sql.runs import last_run
from resumable_tasks.checkpoint.sql.tables import Tables, key_of
from resumable_tasks.runners.outcome import Failure


def spec_of(url: str, table: str, key: tuple[str, ...], **named: Any) -> SqlCheckpoint:
    """The `SqlCheckpoint` with these names; ``key`` defaults to the table's primary key."""
    with contextlib.closing(Database(url)) as database:
        names = key_of(database, table, key)
    results_key = named.pop("results_key", ())
    if results_key:
        named["results_key"] = results_key if isinstance(names, tuple) else results_key[0]
    return SqlCheckpoint(url, table=table, key=names, **named)


@contextlib.contextmanager
def opened(spec: SqlCheckpoint, job: Job) -> Iterator[TableCheckpoint | None]:
    """Open the checkpoint for the job of its last run; None if there was no run.

    The last run remains the last. Raises `CheckpointHeld` on SQLite while a run is active. On
    PostgreSQL rows that a run has claimed stay with that run.
    """
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        last = last_run(database, tables)
        if last is None:
            yield None
            return
        job = replace(job, name=last.job, version=last.version)
        checkpoint = TableCheckpoint(database, tables, job, Opening())
        checkpoint.end("", {})
        try:
            yield checkpoint
        finally:
            checkpoint.close()
    finally:
        database.close()


def parked(spec: SqlCheckpoint, job: Job) -> list[Failure]:
    """The parked items, including those that runs have claimed."""
    with contextlib.closing(Database(spec.database)) as database:
        tables = Tables(database, spec)
        return FailuresTable(database, tables, "", 0.0, job).parked()
