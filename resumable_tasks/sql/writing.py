"""Completes rows: their results and their ``done`` column, inside a transaction of the caller's."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from resumable_tasks.model import Outcome
from resumable_tasks.options import JobOptions
from resumable_tasks.sql.database import Database, require
from resumable_tasks.sql.failing import FailuresTable
from resumable_tasks.sql.tables import Tables

if TYPE_CHECKING:
    import sqlalchemy as sa

# SQLite takes 32,766 values in a statement, PostgreSQL 65,535.
MOST_KEYS = 5_000


class Results:
    """Where the results of the rows go. Raises `UsageError` if that is not there."""

    def __init__(self, database: Database, tables: Tables) -> None:
        self._database = database
        self._tables = tables
        name = tables.spec.results_table
        self.table: sa.Table | None = tables.reflected(name) if name else None

    def count_items(self) -> tuple[int, int]:
        """How many rows there are, and how many of them are done."""
        sa = require()
        tables = self._tables
        query = sa.select(sa.func.count(), sa.func.count(tables.done)).select_from(tables.items)
        with self._database.reading() as connection:
            rows, done = connection.execute(query.where(*tables.considered)).one()
        return rows, done

    def count_failures(self) -> int:
        sa = require()
        query = sa.select(sa.func.count()).select_from(self._tables.failures)
        with self._database.reading() as connection:
            found: int = connection.execute(query).scalar_one()
        return found

    def lock(self, connection: sa.Connection, these: Sequence[Any]) -> list[Any]:
        """Lock those of these rows that are left to do; their keys."""
        sa = require()
        tables = self._tables
        query = sa.select(*tables.key).order_by(*tables.key).with_for_update(of=tables.items)
        found: list[Any] = []
        for some in chunks(these):
            left = query.where(tables.is_in(tables.items, some), tables.done.is_(None))
            found += [tables.key_of(row) for row in connection.execute(left)]
        return found

    def write(self, connection: sa.Connection, outcome: Outcome, done: Sequence[Any]) -> int:
        """Write an outcome's rows and set the column; how many rows of results that were.

        Raises what the database raises if it refuses them, and ``ValueError``.
        """
        sa = require()
        spec, items = self._tables.spec, self._tables.items
        rows = outcome.table.to_pylist() if outcome.table is not None else []
        if spec.columns:
            self._check(outcome, items, spec.columns)
            values = [
                {_bound(name): row[name] for name in (*spec.keys, *spec.columns)} for row in rows
            ]
            this = [items.c[name] == sa.bindparam(_bound(name)) for name in spec.keys]
            new = {
                name: sa.bindparam(_bound(name), type_=items.c[name].type) for name in spec.columns
            }
            new[spec.done] = self._tables.done_value
            connection.execute(sa.update(items).where(*this).values(new), values)
            return len(rows)
        if self.table is not None and rows:
            assert outcome.table is not None
            self._check(outcome, self.table, outcome.table.column_names)
            connection.execute(sa.insert(self.table), rows)
        self.set_done(connection, done)
        return len(rows)

    def set_done(self, connection: sa.Connection, done: Sequence[Any]) -> None:
        """Set the column of these rows, where it is not set."""
        sa = require()
        tables = self._tables
        for some in chunks(done):
            these = tables.is_in(tables.items, some), tables.done.is_(None)
            value = {tables.spec.done: tables.done_value}
            connection.execute(sa.update(tables.items).where(*these).values(value))

    def _check(self, outcome: Outcome, table: sa.Table, names: Sequence[str]) -> None:
        assert outcome.table is not None
        for name in names:
            if name not in outcome.table.column_names:
                raise ValueError(
                    f"the rows have no field {name!r} (they have "
                    f"{', '.join(outcome.table.column_names)})"
                )
            if name not in table.c:
                raise ValueError(f"table {table.fullname} has no column {name!r}")


def look(database: Database, tables: Tables, options: JobOptions) -> tuple[int, int, int, int]:
    """How many rows there are, are done, would be handled by a run, and would be set aside."""
    sa = require()
    rows, done = Results(database, tables).count_items()
    undone = [tables.done.is_(None), *tables.considered]
    to_try = FailuresTable(database, tables, "", math.inf, options).to_try()
    query = sa.select(sa.func.count()).select_from(tables.items)
    with database.reading() as connection:
        every = connection.execute(query.where(*undone)).scalar_one()
        left = connection.execute(query.where(*undone, *to_try)).scalar_one()
    return rows, done, left, every - left


def chunks(many: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(many), MOST_KEYS):
        yield many[at : at + MOST_KEYS]


def _bound(name: str) -> str:
    # By another name than the column's, which SQLAlchemy would take for its new value.
    return f"new_{name}"
