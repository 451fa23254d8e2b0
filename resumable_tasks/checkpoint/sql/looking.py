"""Looks up one row of a table, and lists the table's runs. Read-only."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.spec import TableSpec
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.items.plan import Planning
from resumable_tasks.runners.outcome import Failure


@dataclass(frozen=True, slots=True)
class Looked:
    """A row of the items' table, with its ``key``.

    ``claimed`` is the run that handles it now, ``failed_in`` the run in which it last failed.
    """

    key: Any
    status: str
    row: Mapping[str, Any]
    failure: Failure | None
    claimed: str | None
    failed_in: str | None


def look(database: Database, spec: TableSpec, typed: str) -> Looked | None:
    """The row of a typed key (one value, or several as JSON); None if there is none.

    Raises `UsageError` if the table is not prepared.
    """
    tables = Tables(database, spec)
    tables.check()
    for values in _forms(typed, len(tables.key)):
        found = _look(database, tables, values)
        if found is not None:
            return found
    return None


def _look(database: Database, tables: Tables, values: Sequence[Any]) -> Looked | None:
    this = [_equals(column, value) for column, value in zip(tables.key, values, strict=True)]
    with database.reading() as connection:
        query = sa.select(tables.items, tables.is_done.label("$done")).where(*this)
        row = connection.execute(query).mappings().first()
        if row is None:
            return None
        columns = dict(row)
        done, key = columns.pop("$done"), tables.key_of([row[name] for name in tables.spec.keys])
        claims, failures = tables.claims, tables.failures
        claim = sa.select(claims.c.run).where(tables.is_in(claims, [key]))
        claimed = connection.execute(claim).scalar()
        failed = sa.select(failures).where(tables.is_in(failures, [key]))
        failed_row = connection.execute(failed).mappings().first()
    if done or failed_row is None:
        status = "completed" if done else "claimed" if claimed else "left"
        return Looked(key, status, columns, None, claimed, None)
    reads = FailuresTable(database, tables, "", 0.0, Job("", "", "one", Planning()))
    failure = reads.failure_of(failed_row)
    status = "parked" if failure.parked else "failed"
    return Looked(key, status, columns, failure, claimed, failed_row["run"])


def _forms(typed: str, parts: int) -> Iterator[Sequence[Any]]:
    """Yield the keys that a typed text can mean: the text itself, and its value as JSON."""
    if parts == 1:
        yield [typed]
    try:
        found = json.loads(typed)
    except (ValueError, RecursionError):
        return
    if parts == 1 and isinstance(found, str):
        yield [found]
    elif isinstance(found, list) and len(found) == parts:
        yield found


def _equals(column: sa.Column[Any], value: Any) -> Any:
    """The condition that a column of any type has this value."""
    if isinstance(column.type, sa.Integer):
        try:
            return column == int(value)
        except (ValueError, TypeError):
            return sa.false()
    text = value if isinstance(value, str) else str(value)
    return (column if isinstance(column.type, sa.String) else sa.cast(column, sa.Text)) == text


def history(database: Database, spec: TableSpec) -> list[dict[str, Any]]:
    """The runs of a table, in order: run, job, version, host, pid, began, and how each ended."""
    tables = Tables(database, spec)
    tables.check()
    c = tables.runs.c
    query = sa.select(c.run, c.job, c.version, c.host, c.pid, c.began, c.ended).order_by(c.began)
    with database.reading() as connection:
        runs = [dict(run) for run in connection.execute(query).mappings()]
    for number, run in enumerate(runs, 1):
        began = datetime.fromtimestamp(run["began"], UTC)
        run |= {"number": number, "began": began.isoformat(timespec="milliseconds")}
    return runs
