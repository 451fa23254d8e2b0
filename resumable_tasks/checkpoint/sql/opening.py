"""What a run on a table begins with: its options checked, the dry run, the checkpoint opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.checkpoint.estimate import Estimate
from resumable_tasks.checkpoint.form import CheckpointForm
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.driver import SqlForm
from resumable_tasks.checkpoint.sql.results import MOST_KEYS, look
from resumable_tasks.checkpoint.sql.spec import SqlCheckpoint
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import UsageError
from resumable_tasks.results.result import RunResult
from resumable_tasks.task.options import JobOptions


def check(spec: SqlCheckpoint, options: JobOptions, items: Any, arguments: Any) -> JobOptions:
    """The options for a run on this table. Raises `UsageError` where they do not fit."""
    name = options.name
    if items is not None:
        raise UsageError(
            f"{name}: the items are the rows of table {spec.table}; leave items out, and choose "
            "rows by SqlCheckpoint(where=…)"
        )
    if arguments.partition is not None:
        raise UsageError(f"{name}: partition= is a folder's name; choose rows by where=")
    if options.key is not None and options.key != spec.key:
        raise UsageError(f"{name}: key={options.key!r}, and the checkpoint's is {spec.key!r}")
    if spec.columns:
        fits: tuple[str, ...] = ("one",)
    elif spec.results_table:
        fits = ("one", "many")
    else:
        fits = ("none",) if spec.shards is None else ("one", "many", "none")
    if options.results not in fits:
        raise UsageError(
            f'{name}: results="{options.results}" and a SqlCheckpoint with '
            f"{'columns=' if spec.columns else 'results_table=' if spec.results_table else 'no'} "
            f"place for them do not fit: say results= one of {', '.join(fits)}, or give "
            "columns=, results_table= or shards="
        )
    if options.fingerprint is not None:
        raise UsageError(
            f"{name}: fingerprint= is for checkpoints in a directory: let whoever changes what the "
            f"handler reads set {spec.done} to NULL in the same statement"
        )
    if options.on_version_change == "restart":
        raise UsageError(
            f'{name}: on_version_change="restart" cannot archive a table: set {spec.done} to NULL '
            'yourself in the rows that are to be done again, and say "reuse"'
        )
    if options.batch_size > MOST_KEYS:
        raise UsageError(f"{name}: a SqlCheckpoint takes batches of {MOST_KEYS:,} items at most")
    return replace(options, key=spec.key)


def dry_run(spec: SqlCheckpoint, options: JobOptions) -> RunResult:
    """Count the rows, and say what a run would handle of them. Writes nothing."""
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        rows, done, left, set_aside = look(database, tables, options)
    finally:
        database.close()
    log.info(
        "%s: a run would handle %s of %s rows; %s are done, %s would not be tried again",
        options.name,
        f"{left:,}",
        f"{rows:,}",
        f"{done:,}",
        f"{set_aside:,}",
    )
    return RunResult(
        job=options.name,
        checkpoint=tables.url,
        run="",
        total=rows,
        completed=0,
        skipped=done,
        failed=0 if options.retry_failed else set_aside,
        duplicates=0,
        seconds=0.0,
        quarantined=set_aside if options.retry_failed else 0,
        remaining=Estimate(left, None, None),
    )


def open_form(
    spec: SqlCheckpoint,
    options: JobOptions,
    *,
    takeover: bool = False,
    identity: Mapping[str, str] | None = None,
) -> CheckpointForm:
    """Open for writing. Raises `UsageError`, `CheckpointHeld`, `CheckpointMismatch` …"""
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        if spec.shards is not None:
            from resumable_tasks.checkpoint.sql.mirrored import open_behind

            return open_behind(database, tables, options, takeover=takeover, identity=identity)
        return SqlForm(database, tables, options, takeover=takeover, identity=identity)
    except BaseException:
        database.close()
        raise
