"""The progress of a table's rows, read-only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from resumable_tasks.base import process
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.failures import is_parked
from resumable_tasks.checkpoint.sql.spec import TableSpec
from resumable_tasks.checkpoint.sql.tables import Tables

Status = Literal["done", "failed", "incomplete", "spent", "running"]


@dataclass(frozen=True, slots=True)
class TableStatus:
    """The counts of a table's rows, and its runs.

    ``completed``, ``failed``, ``parked`` and ``left`` add up to ``rows``. ``errors`` counts the
    failed rows by class of error. The results of ``parked`` rows are kept, since the tables refused
    them. ``claimed`` rows are with an active run; ``running`` lists these: run, host, pid, and its
    seconds so far. ``last_run`` is the latest run; ``ended`` is how it ended, None if unknown.
    """

    table: str
    job: str | None
    version: str | None
    status: Status
    rows: int
    completed: int
    failed: int
    parked: int
    left: int
    claimed: int
    errors: dict[str, int]
    running: list[dict[str, Any]]
    last_run: dict[str, Any] | None


def table_status(database: Database, spec: TableSpec) -> TableStatus:
    """Read the status in one transaction. Raises `UsageError` if the table is not prepared."""
    tables = Tables(database, spec)
    tables.check()
    items, runs, failures = tables.items, tables.runs, tables.failures
    undone = [tables.undone, *tables.considered]
    alive = sa.and_(runs.c.ended.is_(None), runs.c.alive_until > database.now)
    claims = (
        sa.select(sa.func.count())
        .select_from(tables.claims)
        .where(sa.exists().where(runs.c.run == tables.claims.c.run, alive))
    )
    each = sa.func.count()
    kinds = (
        sa.select(failures.c.error, each, each.filter(is_parked(failures)))
        # Not a join, because where= names the items' columns without their table.
        .where(
            sa.exists(
                sa.select(sa.literal(1))
                .select_from(items)
                .where(tables.same(failures), *undone)
                .correlate(failures)
            )
        )
        .group_by(failures.c.error)
        .order_by(each.desc(), failures.c.error)
    )
    who = [runs.c.run, runs.c.job, runs.c.version, runs.c.host, runs.c.pid, runs.c.machine]
    seconds = (database.now - runs.c.began).label("seconds")
    newest = sa.select(*who, runs.c.ended, seconds).order_by(runs.c.began.desc())
    with database.reading() as connection:
        found = sa.select(each, each.filter(tables.is_done)).select_from(items)
        rows, completed = connection.execute(found.where(*tables.considered)).one()
        found_kinds = connection.execute(kinds).all()
        claimed = connection.execute(claims).scalar_one()
        at_work = [dict(run) for run in connection.execute(newest.where(alive)).mappings()]
        last = connection.execute(newest.limit(1)).mappings().first()
    # A dead run's time may not be over yet; on this machine its process tells.
    running = [run for run in at_work if not process.is_gone(run["machine"], run["pid"])]
    named = running[0] if running else last
    errors = {error: many - parked for error, many, parked in found_kinds if many > parked}
    failed, parked = sum(errors.values()), sum(parked for _, _, parked in found_kinds)
    left = rows - completed - failed - parked
    ended = last["ended"] if last else None
    unfinished = (failed or parked) and ended != "done"  # "done" means that they are tolerated
    incomplete: Status = "spent" if ended == "spent" else "incomplete"
    return TableStatus(
        table=tables.url,
        job=named["job"] if named else None,
        version=named["version"] if named else None,
        status="running" if running else incomplete if left else "failed" if unfinished else "done",
        rows=rows,
        completed=completed,
        failed=failed,
        parked=parked,
        left=left,
        claimed=claimed,
        errors=errors,
        running=[_without(run, "job", "version", "machine", "ended") for run in running],
        last_run=_without(last, "job", "version", "machine") if last else None,
    )


def _without(run: Any, *names: str) -> dict[str, Any]:
    return {
        name: round(value, 1) if name == "seconds" else value
        for name, value in run.items()
        if name not in names
    }
