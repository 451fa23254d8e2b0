"""Completes rows: their results and their ``done`` column, inside a transaction of the caller's."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import DOUBLE_PRECISION, TIMESTAMP

from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.sql.database import Database, sqlstate
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.spec import MOST_KEYS
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import UsageError

Row = dict[str, Any]

# PostgreSQL's codes for a lock that was waited for too long, and for two that wait for each other.
LOCKED = {"55P03", "40P01"}
# Values too large for an index, raised by a trigger, of a type that does not become the column's:
# that the statements as such are right was tried before.
_ABOUT_VALUES = {"54000", "P0001", "42804", "42846", "42883"}


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
                    "the one that it has by SqlCheckpoint(results_key=…)"
                )
        self._deferred = False
        kinds = [tables.items.c[name].type for name in spec.columns]
        # Arrays of arrays would be taken apart, and JSON has a form of its own.
        self._at_once = not database.sqlite and all(type(kind) in _plain() for kind in kinds)
        columns = (
            list(self.table.columns)
            if self.table is not None
            else [tables.items.c[name] for name in spec.columns]
        )
        of_json: dict[str, Any] = {c.name: c.type for c in columns if isinstance(c.type, sa.JSON)}
        for kind in of_json.values():
            kind.none_as_null = True  # None is no value, and not JSON's null
        self.json_columns = frozenset(of_json)
        """The fields of the handler's rows that are kept as JSON."""

    def check(self) -> None:
        """Try what a run does to the tables, on no row. Raises `UsageError` for what it may not.

        So types that do not fit, and rights that are missing, cost no call of the handler.
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
        """True if a constraint may be checked as late as the COMMIT.

        Of any table: a trigger may write to others.
        """
        query = "SELECT EXISTS (SELECT FROM pg_constraint WHERE condeferrable)"
        return bool(connection.exec_driver_sql(query).scalar_one())

    def count_items(self) -> tuple[int, int]:
        """Count the rows, and those of them that are done."""
        tables = self._tables
        count = sa.func.count()
        query = sa.select(count, count.filter(tables.is_done)).select_from(tables.items)
        with self._database.reading() as connection:
            rows, done = connection.execute(query.where(*tables.considered)).one()
        return rows, done

    def lock(self, connection: sa.Connection, these: Sequence[Any]) -> list[Any]:
        """Lock those of these rows that are left to do; their keys."""
        tables = self._tables
        query = sa.select(*tables.key).order_by(*tables.key).with_for_update(of=tables.items)
        found: list[Any] = []
        for some in chunks(these):
            left = query.where(tables.is_in(tables.items, some), tables.undone)
            found += [tables.key_of(row) for row in connection.execute(left)]
        return found

    def write(self, connection: sa.Connection, rows: list[Row], done: Sequence[Any]) -> None:
        """Write the handler's rows, and set the column of these keys.

        Raises what the database raises if it refuses them, and ``ValueError``.
        """
        spec, items = self._tables.spec, self._tables.items
        if spec.columns and rows:
            rows = self._fit(rows, items, spec.columns)
            if self._at_once:
                self._update_at_once(connection, rows)
            else:
                self._update_each(connection, rows)
        else:
            if self.table is not None and rows:
                named = dict(zip(spec.keys, spec.results_keys, strict=True))
                fields = [named.get(name, name) for name in rows[0]]
                rows = [dict(zip(fields, row.values(), strict=True)) for row in rows]
                connection.execute(sa.insert(self.table), self._fit(rows, self.table, fields))
            self.set_done(connection, done)
        self._check_set(connection, done)
        if self._deferred:
            # Now, where it is known whose values they are, and not at the COMMIT. To go back lets
            # the next batch put things right by its own end, too.
            with connection.begin_nested() as tried:
                connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")
                tried.rollback()

    def _update_each(self, connection: sa.Connection, rows: list[Row]) -> None:
        spec, items = self._tables.spec, self._tables.items
        values = [{_bound(name): row[name] for name in (*spec.keys, *spec.columns)} for row in rows]
        this = [items.c[name] == sa.bindparam(_bound(name)) for name in spec.keys]
        new = {name: sa.bindparam(_bound(name), type_=items.c[name].type) for name in spec.columns}
        new[spec.done] = self._tables.done_value
        connection.execute(sa.update(items).where(*this).values(new), values)

    def _update_at_once(self, connection: sa.Connection, rows: list[Row]) -> None:
        """One statement, with each column as an array."""
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
        """Set the column of these rows, where it is not set."""
        tables = self._tables
        for some in chunks(done):
            these = tables.is_in(tables.items, some), tables.undone
            value = {tables.spec.done: tables.done_value}
            connection.execute(sa.update(tables.items).where(*these).values(value))

    def _check_set(self, connection: sa.Connection, done: Sequence[Any]) -> None:
        """A row whose column does not stay set would be handled again and again."""
        tables = self._tables
        for some in chunks(done):
            unset = sa.select(*tables.key).where(tables.is_in(tables.items, some), tables.undone)
            found = connection.execute(unset.limit(1)).first()
            if found is not None:
                raise ValueError(
                    f"column {tables.spec.done!r} of row {tables.key_of(found)!r} is not set after "
                    "the UPDATE that sets it: a trigger or a policy of the table is in the way"
                )

    def _fit(self, rows: list[Row], table: sa.Table, names: Sequence[str]) -> list[Row]:
        """The rows as the table takes them. Raises ``ValueError`` where a field is missing."""
        # A field that only other rows of the batch have.
        unknown = [name for name in rows[0] if name not in table.c]
        extra = {name for name in unknown if all(row[name] is None for row in rows)}
        if extra:
            names = [name for name in names if name not in extra]
            rows = [{name: row[name] for name in row if name not in extra} for row in rows]
        for name in names:
            if name not in rows[0]:
                raise ValueError(
                    f"the rows have no field {name!r} (they have {', '.join(rows[0])})"
                )
            if name not in table.c:
                raise ValueError(f"table {table.fullname} has no column {name!r}")
        as_json = [name for name in names if isinstance(table.c[name].type, sa.JSON)]
        if not as_json:
            return rows
        return [{**row, **{name: _from_json(row[name]) for name in as_json}} for row in rows]


def _from_json(value: Any) -> Any:
    # Text unless the handler gave Arrow, which has structures of its own.
    return json.loads(value) if isinstance(value, str) else value


def _plain() -> set[Any]:
    """The types that stand in an array as they stand in a column."""
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
    """Count the rows: all, done, those a run would handle, and those it would set aside."""
    rows, done = Results(database, tables).count_items()
    undone = [tables.undone, *tables.considered]
    to_try = FailuresTable(database, tables, "", math.inf, job).to_try()
    query = sa.select(sa.func.count()).select_from(tables.items)
    with database.reading() as connection:
        every = connection.execute(query.where(*undone)).scalar_one()
        left = connection.execute(query.where(*undone, *to_try)).scalar_one()
    return rows, done, left, every - left


def is_about_values(error: BaseException) -> bool:
    """True if the database or its driver refused values, and not the work as such."""
    cause, state = error.__cause__, sqlstate(error)
    if state is not None:
        return state[:2] in ("22", "23") or state in _ABOUT_VALUES
    if not isinstance(cause, sa.exc.DBAPIError):
        return isinstance(cause, sa.exc.StatementError)
    kinds = sa.exc.DataError, sa.exc.IntegrityError, sa.exc.InterfaceError, sa.exc.ProgrammingError
    return isinstance(cause, kinds) and not cause.connection_invalidated


def chunks(many: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for at in range(0, len(many), MOST_KEYS):
        yield many[at : at + MOST_KEYS]


def _bound(name: str) -> str:
    # By another name than the column's, which SQLAlchemy would take for its new value.
    return f"new_{name}"
