"""Makes completed rows of a table missing: unsets their column and removes their results."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa

from resumable_tasks.checkpoint.choice import Choice
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.results import chunks
from resumable_tasks.checkpoint.sql.spec import TableSpec
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key


def redo(spec: TableSpec, choice: Choice, *, dry_run: bool) -> list[Key]:
    """Make the chosen rows missing, in one transaction. Returns their keys.

    With results in shards, unsets the column first. After a crash in between nothing has changed: a
    run sets the column again while the directory has the row as completed.
    """
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        if spec.shards is not None:
            directory = Directory(os.fspath(spec.shards))
            found = directory.redo(choice, dry_run=True)
            if found and not dry_run:
                with database.writing() as connection:
                    _unset(connection, tables, found)
                directory.redo(Choice(frozenset(map(keys.canonical, found))))
            return found
        results = tables.reflected(spec.results_table) if spec.results_table else None
        if dry_run:
            with database.reading() as connection:
                return _chosen(connection, tables, results, choice)
        with database.writing() as connection:
            found = _chosen(connection, tables, results, choice, lock=True)
            _unset(connection, tables, found)
            for some in chunks(found):
                if results is not None:
                    connection.execute(sa.delete(results).where(_of_keys(tables, results, some)))
                failed = tables.is_in(tables.failures, some)
                connection.execute(sa.delete(tables.failures).where(failed))
        return found
    finally:
        database.close()


def _of_keys(tables: Tables, results: sa.Table, some: Sequence[Any]) -> Any:
    """The condition that a row of the results has one of these keys."""
    row = tables.same(results, tables.spec.results_keys), tables.is_in(tables.items, some)
    rows = sa.select(sa.literal(1)).select_from(tables.items).where(*row)
    return sa.exists(rows.correlate(results))


def _unset(connection: sa.Connection, tables: Tables, found: Sequence[Any]) -> None:
    boolean = isinstance(tables.done.type, sa.Boolean)
    value = {tables.spec.done: sa.false() if boolean else sa.null()}
    for some in chunks(found):
        these = tables.is_in(tables.items, some)
        connection.execute(sa.update(tables.items).where(these).values(value))


def _chosen(
    connection: sa.Connection,
    tables: Tables,
    results: sa.Table | None,
    choice: Choice,
    *,
    lock: bool = False,
) -> list[Key]:
    conditions = [tables.is_done, *tables.considered]
    if choice.where is not None:
        # A colon is escaped, because it would begin a parameter. The closing bracket is on a new
        # line, because a comment at the end would hide it.
        fits = sa.text("(" + choice.where.replace(":", r"\:") + "\n)")
        if results is None:
            conditions.append(fits)
        else:
            of_row = tables.same(results, tables.spec.results_keys)
            rows = sa.select(sa.literal(1)).select_from(results).where(of_row, fits)
            conditions.append(sa.exists(rows.correlate(tables.items)))
    if choice.before is not None:
        conditions.append(_before(tables, choice.before))
    # Locked in key order, as runs do, to avoid deadlocks.
    query = sa.select(*tables.key).order_by(*tables.key)
    query = query.with_for_update(of=tables.items) if lock else query
    if choice.keys is None:
        return [_key(tables, row) for row in connection.execute(query.where(*conditions))]
    wanted = keys.parse_lines(keys.join(choice.keys))
    done: set[Key] = set()
    found: list[Key] = []
    for some in chunks(wanted):
        these = query.where(tables.is_in(tables.items, some))
        done.update(_key(tables, row) for row in connection.execute(these.where(tables.is_done)))
        found += [_key(tables, row) for row in connection.execute(these.where(*conditions))]
    missing = [key for key in wanted if key not in done]
    if missing:
        raise UsageError(
            f"no row with key {keys.shown(missing[0])} is completed; nothing was changed",
            remedy="Choose among the rows that are done",
        )
    return found


def _key(tables: Tables, row: Any) -> Key:
    return keys.parse(keys.canonical(tables.key_of(row)))


def _before(tables: Tables, moment: datetime) -> Any:
    if isinstance(tables.done.type, sa.Boolean):
        raise UsageError(
            f"column {tables.spec.done!r} of table {tables.spec.table} is a boolean and does not "
            "say when; choose by keys or where"
        )
    if tables.sqlite:  # where times are text, as CURRENT_TIMESTAMP writes them
        text = moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")
        return sa.cast(tables.done, sa.Text) < text
    return tables.done < sa.literal(moment, sa.TIMESTAMP(timezone=True))
