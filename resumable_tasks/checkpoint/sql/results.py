"""Completes rows: writes their results and ``done`` column, within the caller's transaction."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, TIMESTAMP

from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.spec import MOST_KEYS
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.checkpoint.sql.types import for_sqlite
from resumable_tasks.errors import UsageError
from resumable_tasks.runners.outcome import Done

Row = dict[str, Any]


class Results:
    """The columns or table that take the results. Raises `UsageError` if they do not exist."""

    def __init__(self, database: Database, tables: Tables) -> None:
        self._database = database
        self._tables = tables
        spec = tables.spec
        self.table: sa.Table | None = None
        if spec.results_table:
            self.table = tables.reflected(spec.results_table)
            missing = [name for name in spec.results_keys if name not in self.table.c]
            if missing:
                raise UsageError(
                    f"table {spec.results_table} has no column {missing[0]!r} for the key: name "
                    "its key column with SqlCheckpoint(results_key=…)"
                )
        self._deferred = False
        kinds = [tables.items.c[name].type for name in spec.columns]
        # Not for arrays, which would be flattened, nor for JSON, which needs its own encoding.
        self._at_once = not database.sqlite and all(type(kind) in _plain() for kind in kinds)
        columns = (
            list(self.table.columns)
            if self.table is not None
            else [tables.items.c[name] for name in spec.columns]
        )
        of_json: dict[str, Any] = {c.name: c.type for c in columns if isinstance(c.type, sa.JSON)}
        for kind in of_json.values():
            kind.none_as_null = True  # None becomes SQL's NULL, not JSON's null
        self.json_columns = frozenset(of_json)
        if database.sqlite:
            for column in columns:
                column.type = for_sqlite(column.type)

    def check(self) -> None:
        """Try a run's statements on no rows. Raises `UsageError` if a permission is missing.

        So wrong types and missing permissions are found before any call of the handler.
        """
        tables, items = self._tables, self._tables.items
        values = {name: sa.null() for name in tables.spec.columns}
        update = sa.update(items).values({**values, tables.spec.done: tables.done_value})
        statements: list[Any] = [update.where(sa.false())]
        if self.table is not None:
            keys = [self.table.c[name] for name in tables.spec.results_keys]
            nothing = sa.select(*(sa.cast(sa.null(), c.type) for c in keys)).where(sa.false())
            statements.append(sa.insert(self.table).from_select(keys, nothing))
        with self._database.errors(), self._database.connect() as connection:
            with connection.begin() as transaction:
                for statement in statements:
                    connection.execute(statement)
                transaction.rollback()
            if not self._database.sqlite:
                self._deferred = self._has_deferred(connection)

    def _has_deferred(self, connection: sa.Connection) -> bool:
        """True if a constraint of any table may be deferred to the COMMIT.

        Looks at all tables, because a trigger may write to others.
        """
        query = "SELECT EXISTS (SELECT FROM pg_constraint WHERE condeferrable)"
        return bool(connection.exec_driver_sql(query).scalar_one())

    def count_items(self) -> tuple[int, int]:
        """Count all rows, and the completed ones."""
        tables = self._tables
        count = sa.func.count()
        query = sa.select(count, count.filter(tables.is_done)).select_from(tables.items)
        with self._database.reading() as connection:
            rows, done = connection.execute(query.where(*tables.considered)).one()
        return rows, done

    def lock(self, connection: sa.Connection, these: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """Lock those of these rows that are left to do.

        Returns the locked keys, and the keys that another session holds. Waits for none, because
        that session may wait for a lock of this transaction.
        """
        tables = self._tables
        query = sa.select(*tables.key).order_by(*tables.key)
        free = query.with_for_update(of=tables.items, skip_locked=True)
        found: list[Any] = []
        held: list[Any] = []
        for some in chunks(these):
            left = tables.is_in(tables.items, some), tables.undone
            mine = [tables.key_of(row) for row in connection.execute(free.where(*left))]
            tables.refuse_twice(mine)
            found += mine
            if len(mine) < len(some) and not self._database.sqlite:
                every = [tables.key_of(row) for row in connection.execute(query.where(*left))]
                held += set(every).difference(mine)
        return found, held

    def wait_for(self, connection: sa.Connection, key: Any) -> None:
        """Wait for the lock of this row, up to the connection's lock timeout."""
        tables = self._tables
        query = sa.select(*tables.key).where(tables.is_in(tables.items, [key]))
        connection.execute(query.with_for_update(of=tables.items))

    def rows_of(self, outcome: Done) -> list[Row]:
        """The rows of an outcome as Python values. Raises ``ValueError`` for invalid JSON text.

        A JSON column is text in Arrow, which has one type per column, so its text is parsed.
        """
        if outcome.rows is not None:
            return [dict(row) for row in outcome.rows]
        rows: list[Row] = outcome.table.to_pylist() if outcome.table is not None else []
        for row in rows:
            texts = [name for name in self.json_columns if isinstance(row.get(name), str)]
            row |= {name: json.loads(row[name]) for name in texts}
        return rows

    def write(self, connection: sa.Connection, rows: list[Row], done: Sequence[Any]) -> None:
        """Write the handler's rows, and set the ``done`` column of these keys.

        Raises the database's error if it refuses them, and ``ValueError``.
        """
        if self._tables.spec.columns and rows:
            self._update(connection, list(map(self._updates, rows)))
        else:
            if self.table is not None and rows:
                self._insert(connection, self.table, rows)
            self.set_done(connection, done)
        self._check_set(connection, done)
        if self._deferred:
            # Check now, while it is known whose values they are, and not at the COMMIT. The
            # savepoint restores the setting, so the next batch may defer its constraints too.
            with connection.begin_nested() as tried:
                connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
                tried.rollback()

    def _update(self, connection: sa.Connection, rows: list[Row]) -> None:
        names = self._tables.spec.columns
        if self._at_once and all(_alike([row[name] for row in rows]) for name in names):
            self._update_at_once(connection, rows)
        else:
            self._update_each(connection, rows)

    def _update_each(self, connection: sa.Connection, rows: list[Row]) -> None:
        spec, items = self._tables.spec, self._tables.items
        values = [{_bound(name): row[name] for name in (*spec.keys, *spec.columns)} for row in rows]
        this = [items.c[name] == sa.bindparam(_bound(name)) for name in spec.keys]
        new = {name: sa.bindparam(_bound(name), type_=items.c[name].type) for name in spec.columns}
        new[spec.done] = self._tables.done_value
        connection.execute(sa.update(items).where(*this).values(new), values)

    def _update_at_once(self, connection: sa.Connection, rows: list[Row]) -> None:
        """Update all rows by one statement, with each column as an array."""
        spec, items = self._tables.spec, self._tables.items
        names = [*spec.keys, *spec.columns]
        arrays = [
            self._tables.array([row[name] for row in rows], items.c[name].type) for name in names
        ]
        places = [f"c{at}" for at in range(len(names))]
        given = sa.func.unnest(*arrays).table_valued(*places).render_derived(name="given")
        column = {name: given.c[place] for name, place in zip(names, places, strict=True)}
        new = {name: column[name] for name in spec.columns}
        new[spec.done] = self._tables.done_value
        this = [items.c[name] == column[name] for name in spec.keys]
        connection.execute(sa.update(items).where(*this).values(new))

    def set_done(self, connection: sa.Connection, done: Sequence[Any]) -> None:
        """Set the ``done`` column of these rows, where it is not set."""
        tables = self._tables
        for some in chunks(done):
            these = tables.is_in(tables.items, some), tables.undone
            value = {tables.spec.done: tables.done_value}
            connection.execute(sa.update(tables.items).where(*these).values(value))

    def _check_set(self, connection: sa.Connection, done: Sequence[Any]) -> None:
        """Raise if the column did not stay set; such rows would be handled again and again."""
        tables = self._tables
        for some in chunks(done):
            unset = sa.select(*tables.key).where(tables.is_in(tables.items, some), tables.undone)
            found = connection.execute(unset.limit(1)).first()
            if found is not None:
                raise ValueError(
                    f"column {tables.spec.done!r} of row {tables.key_of(found)!r} is not set after "
                    "the UPDATE that sets it: a trigger or a row-level policy of the table "
                    "prevents it"
                )

    def _updates(self, row: Row) -> Row:
        """The key and the new values of a row. Raises ``ValueError`` if values are missing."""
        names = self._tables.spec.columns
        left_out = [name for name in names if name not in row]
        # If the row also has a name unknown to the table, the missing one may be misspelt.
        odd = any(str(name) not in self._tables.items.c for name in row)
        if left_out and (odd or len(left_out) == len(names)):
            raise ValueError(
                f"the row has no field {left_out[0]!r} (it has {', '.join(map(str, row))})"
            )
        return {name: row.get(name) for name in (*self._tables.spec.keys, *names)}

    def _insert(self, connection: sa.Connection, table: sa.Table, rows: list[Row]) -> None:
        """Insert rows. A column that a row omits gets its default, even if other rows have it."""
        alike: dict[tuple[str, ...], list[Row]] = {}
        for row in rows:
            fit = self._inserts(table, row)
            alike.setdefault(tuple(fit), []).append(fit)
        for each in alike.values():
            connection.execute(sa.insert(table), each)

    def _inserts(self, table: sa.Table, row: Row) -> Row:
        """The row with the table's names. Raises ``ValueError`` for a value without a column."""
        spec = self._tables.spec
        own = dict(zip(spec.keys, spec.results_keys, strict=True))
        fit = {own.get(name, name): value for name, value in row.items()}
        lost = [name for name in fit if not isinstance(name, str) or name not in table.c]
        for name in lost:
            if fit.pop(name) is not None:
                raise ValueError(f"table {table.fullname} has no column {name!r}")
        return fit


def _alike(values: Sequence[Any]) -> bool:
    """True if these values are of one kind, so that an array holds them without conversion."""
    kinds = {(type(v), getattr(v, "tzinfo", None) is None) for v in values if v is not None}
    return len(kinds) < 2


def _plain() -> set[Any]:
    """The types whose values are the same in an array as in a column."""
    numbers = {sa.INTEGER, sa.BIGINT, sa.SMALLINT, sa.REAL, sa.NUMERIC, sa.BOOLEAN}
    return {
        *numbers,
        DOUBLE_PRECISION,
        sa.DOUBLE_PRECISION,
        sa.TEXT,
        sa.VARCHAR,
        TIMESTAMP,
        sa.DATE,
    }


def count_left(database: Database, tables: Tables, job: Job) -> tuple[int, int, int, int]:
    """Count the rows: all, completed, those a run would handle, and those it would set aside."""
    rows, done = Results(database, tables).count_items()
    undone = [tables.undone, *tables.considered]
    to_try = FailuresTable(database, tables, "", math.inf, job).to_try()
    query = sa.select(sa.func.count()).select_from(tables.items)
    with database.reading() as connection:
        every = connection.execute(query.where(*undone)).scalar_one()
        left = connection.execute(query.where(*undone, *to_try)).scalar_one()
    return rows, done, left, every - left


def chunks(many: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(many), MOST_KEYS):
        yield many[at : at + MOST_KEYS]


def _bound(name: str) -> str:
    # Not the column's own name, which SQLAlchemy would take for the column's new value.
    return f"new_{name}"
