"""Previews a run on a table, and opens its checkpoint."""

from __future__ import annotations

from resumable_tasks.checkpoint.estimate import Estimate
from resumable_tasks.checkpoint.form import Checkpoint, Job, Opening, Preview
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.driver import TableCheckpoint
from resumable_tasks.checkpoint.sql.mirrored import open_mirrored
from resumable_tasks.checkpoint.sql.results import count_left
from resumable_tasks.checkpoint.sql.spec import TableSpec
from resumable_tasks.checkpoint.sql.tables import Tables


def preview(spec: TableSpec, job: Job) -> Preview:
    """Count the rows that a run would handle. Writes nothing."""
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        rows, done, left, set_aside = count_left(database, tables, job)
    finally:
        database.close()
    return Preview(tables.url, rows, done, Estimate(left), left_alone=set_aside)


def open_table(spec: TableSpec, job: Job, opening: Opening) -> Checkpoint:
    """Open for writing. Raises `UsageError`, `CheckpointHeld`, `CheckpointMismatch` …"""
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        if spec.shards is not None:
            return open_mirrored(database, tables, job, opening)
        return TableCheckpoint(database, tables, job, opening)
    except BaseException:
        database.close()
        raise
