"""The tables of a checkpoint in a database: the items table, and the tables beside it.

::

    <table>_<done>_runs      one row per run: its identity, beginning, heartbeat and end
    <table>_<done>_claims    rows that a run has claimed; valid while that run is alive
    <table>_<done>_failures  rows that failed, with their attempts over all runs
"""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from resumable_tasks.base.text import shell_words
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.spec import TableSpec
from resumable_tasks.errors import CheckpointUnusable, UsageError
from resumable_tasks.items.keys import shown

_OWN_NAMES = ("run", "error", "message", "attempts", "batch", "time", "traceback", "item")
_LONGEST_NAME = 63  # bytes, in PostgreSQL


class Tables:
    """The tables that a `SqlCheckpoint` names, as they are in the database.

    Raises `UsageError` if there is no such table or column, `CheckpointUnusable` if the key is not
    unique and not null.
    """

    def __init__(self, database: Database, spec: TableSpec) -> None:
        self.spec = spec
        self.sqlite = database.sqlite
        self._database = database
        self._metadata = sa.MetaData()
        self.items = self.reflected(spec.table)
        self.key = [self._key_column(name) for name in spec.keys]
        clash = [name for name in spec.keys if name in (*_OWN_NAMES, "failed_at")]
        if clash:
            raise UsageError(
                f"key column {clash[0]!r} has the name of a column of the side tables",
                remedy="Rename that column, or give key= another",
            )
        schema = self.items.schema
        text, seconds = sa.Text, sa.Double
        self.runs = sa.Table(
            self.beside("runs"),
            self._metadata,
            sa.Column("run", sa.String(12), primary_key=True),
            sa.Column("job", text, nullable=False),
            sa.Column("version", text, nullable=False),
            sa.Column("host", text, nullable=False),
            sa.Column("pid", sa.Integer, nullable=False),
            # Identifies the machine, its boot, and its pid namespace.
            sa.Column("machine", text, nullable=False),
            sa.Column("began", seconds, nullable=False),
            sa.Column("alive_until", seconds, nullable=False),
            sa.Column("ended", text),
            sa.Column("identity", text, nullable=False),
            schema=schema,
        )
        self.claims = sa.Table(
            self.beside("claims"),
            self._metadata,
            *self._key_copies(),
            # No index: it would be slowed down by the deleted claims of a run.
            sa.Column("run", sa.String(12), nullable=False),
            schema=schema,
        )
        self.failures = sa.Table(
            self.beside("failures"),
            self._metadata,
            *self._key_copies(),
            sa.Column("error", text, nullable=False),
            sa.Column("message", text, nullable=False),
            sa.Column("attempts", sa.Integer, nullable=False),
            sa.Column("batch", text, nullable=False),
            sa.Column("time", text, nullable=False),
            sa.Column("traceback", text, nullable=False),
            sa.Column("item", text),
            sa.Column("run", sa.String(12), nullable=False),
            sa.Column("failed_at", seconds, nullable=False),
            schema=schema,
        )

    def beside(self, what: str) -> str:
        """The name of a side table, from those of the items table and its ``done`` column.

        Shortened to PostgreSQL's limit, which would otherwise truncate several names to the same.
        """
        name = f"{self.items.name}_{self.spec.done}"
        if len(f"{name}_{what}".encode()) > _LONGEST_NAME:
            told_apart = f"_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
            room = _LONGEST_NAME - len(f"{told_apart}_{what}")
            name = name.encode()[:room].decode(errors="ignore") + told_apart
        return f"{name}_{what}"

    @property
    def side(self) -> tuple[sa.Table, ...]:
        """The tables beside the items table, which `resumable sql init` creates."""
        return self.runs, self.claims, self.failures

    @property
    def url(self) -> str:
        return f"{self._database.url} {self.spec.table}.{self.spec.done}"

    @property
    def done(self) -> sa.Column[Any]:
        return self.items.c[self.spec.done]

    @property
    def is_done(self) -> Any:
        """The condition that a row is completed: its column is set, or true if it is a boolean."""
        if isinstance(self.done.type, sa.Boolean):
            return self.done.is_(sa.true())
        return self.done.is_not(None)

    @property
    def undone(self) -> Any:
        """The condition under which a row is handled."""
        if isinstance(self.done.type, sa.Boolean):
            return self.done.is_not(sa.true())
        return self.done.is_(None)

    @property
    def done_value(self) -> Any:
        """The value that marks a row as completed: now, or true for a boolean column."""
        if isinstance(self.done.type, sa.Boolean):
            return sa.true()
        return sa.func.current_timestamp() if self.sqlite else sa.func.clock_timestamp()

    @property
    def considered(self) -> list[Any]:
        """The conditions for a row to be an item, done or not."""
        if not self.spec.where:
            return []
        # A colon is escaped, because it would begin a parameter. The closing bracket is on a new
        # line, because a comment at the end would hide it.
        return [sa.text("(" + self.spec.where.replace(":", r"\:") + "\n)")]

    def is_in(self, table: sa.Table, many: Sequence[Any]) -> Any:
        """The condition that a row's key in this table is one of these."""
        columns = self.columns_of(table)
        if len(columns) == 1 and not self.sqlite:
            # One array, so that the statement is the same for any number of keys.
            return columns[0] == sa.any_(self.array(many, columns[0].type))
        if len(columns) == 1:
            return columns[0].in_(list(many))
        return sa.tuple_(*columns).in_([tuple(key) for key in many])

    @staticmethod
    def array(many: Sequence[Any], kind: Any) -> Any:
        """Write these values as a PostgreSQL array."""
        # Without the type's length: a cast to it would silently truncate what a column refuses.
        if isinstance(kind, (sa.VARCHAR, sa.NUMERIC)):
            kind = type(kind)()
        return sa.literal(list(many), sa.ARRAY(kind))

    def same(self, table: sa.Table, names: Sequence[str] = ()) -> Any:
        """The condition that a row of this table has the key of the items table's row.

        ``names``: the key's columns in this table, if they are called otherwise.
        """
        columns = [table.c[name] for name in names or self.spec.keys]
        pairs = zip(columns, self.key, strict=True)
        return sa.and_(*(one == other for one, other in pairs))

    def after(self, key: Any) -> Any:
        """The condition that a row's key comes after this key."""
        if len(self.key) == 1:
            return self.key[0] > key
        parts = zip(key, self.key, strict=True)
        return sa.tuple_(*self.key) > sa.tuple_(*(sa.literal(part, c.type) for part, c in parts))

    def columns_of(self, table: sa.Table) -> list[sa.Column[Any]]:
        return [table.c[name] for name in self.spec.keys]

    def key_of(self, row: Any) -> Any:
        """The key in the first columns of a row."""
        return row[0] if isinstance(self.spec.key, str) else tuple(row[: len(self.key)])

    def named(self, key: Any) -> dict[str, Any]:
        """A key as values of its columns."""
        values = (key,) if isinstance(self.spec.key, str) else key
        return dict(zip(self.spec.keys, values, strict=True))

    def reflected(self, name: str) -> sa.Table:
        """A table's columns as they are in the database."""
        schema, _, table = name.rpartition(".")
        with self._database.reading() as connection, warnings.catch_warnings():
            # Columns of types that SQLAlchemy does not know, such as point, are read as text.
            warnings.filterwarnings("ignore", "Did not recognize type", sa.exc.SAWarning)
            try:
                columns = sa.inspect(connection).get_columns(table, schema or None)
            except sa.exc.NoSuchTableError:
                raise UsageError(
                    f"{self._database.url} has no table {name!r}",
                    remedy="Fix table=, or create the table first",
                ) from None
        # Keys, indexes and constraints would be six more queries; `check` makes those it needs.
        return sa.Table(
            table,
            self._metadata,
            *(sa.Column(each["name"], each["type"], nullable=each["nullable"]) for each in columns),
            schema=schema or None,
            keep_existing=True,
        )

    def _key_column(self, name: str) -> sa.Column[Any]:
        if name not in self.items.c:
            raise UsageError(
                f"table {self.spec.table} has no column {name!r}, which is the key",
                remedy="Give key= a column of the table",
            )
        column: sa.Column[Any] = self.items.c[name]
        while isinstance(column.type, postgresql.DOMAIN):
            column.type = column.type.data_type
        if isinstance(column.type, sa.Uuid):
            column.type = sa.Uuid(as_uuid=False)  # a string, since keys are strings or integers
        elif isinstance(column.type, sa.Enum) or not isinstance(
            column.type, (sa.Integer, sa.String)
        ):
            # SQLAlchemy would print an enum as VARCHAR, its type on other databases.
            kind = "ENUM" if isinstance(column.type, sa.Enum) else column.type
            raise UsageError(
                f"key column {name!r} of table {self.spec.table} is of type {kind}; a key must be "
                "text, an integer or a UUID",
                remedy="Give key= a column of these types",
            )
        return column

    def _key_copies(self) -> list[sa.Column[Any]]:
        return [
            sa.Column(column.name, column.type, primary_key=True, autoincrement=False)
            for column in self.key
        ]

    def check(self) -> None:
        """Raise unless a run can work with the tables as they are."""
        spec = self.spec
        with self._database.reading() as connection:
            there = sa.inspect(connection)
            sides = () if spec.shards is not None else self.side
            missing = [t.name for t in sides if not there.has_table(t.name, schema=t.schema)]
        results = [name for name in spec.columns if name not in self.items.c]
        missing += [spec.done] * (spec.done not in self.items.c) + results
        if missing:
            remedy = f"Run `{self.init}`, which prints the necessary SQL, and runs it with --apply"
            if results:
                remedy += f"; a column that is not text needs its type, as in {results[0]}:INTEGER"
            raise UsageError(
                f"table {spec.table} is not prepared: there is no {missing[0]}", remedy=remedy
            )
        if not self.done.nullable and not isinstance(self.done.type, sa.Boolean):
            raise UsageError(
                f"column {spec.done!r} of table {spec.table} is NOT NULL, but must be NULL for "
                "rows that are not done",
                remedy="Drop the constraint, or name another column with done=",
            )
        self.check_key()

    def _has_heirs(self, connection: sa.Connection) -> bool:
        """True if tables inherit from this one, so that its unique key does not cover all rows."""
        if self.sqlite:
            return False
        name = self._database.plain.identifier_preparer.format_table(self.items)
        query = sa.text(
            "SELECT EXISTS (SELECT FROM pg_inherits JOIN pg_class ON pg_class.oid = inhparent "
            "WHERE inhparent = CAST(:name AS regclass) AND relkind = 'r')"
        )
        return bool(connection.execute(query, {"name": name}).scalar_one())

    def refuse_twice(self, found: Sequence[Any]) -> None:
        """Raise if rows have the same key, which is possible in tables that inherit."""
        if len(set(found)) < len(found):
            raise self.twice(*Counter(found).most_common(1)[0])

    def twice(self, key: Any, rows: int) -> CheckpointUnusable:
        """The error for a key of several rows."""
        return CheckpointUnusable(
            f"key {shown(key)} is in {rows:,} rows of table {self.spec.table}: a key must name one "
            "row, including tables that inherit from this one; fix the rows, or name more columns "
            "in key="
        )

    @property
    def init(self) -> str:
        """The command that prepares the table."""
        spec = self.spec
        words = ["resumable", "sql", "init", self._database.url, "--table", spec.table]
        for name in spec.keys:
            words += ["--key", name]
        words += ["--done", spec.done]
        for name in spec.columns:
            words += ["--column", name]
        return shell_words(*words)

    def check_key(self) -> None:
        """Raise `CheckpointUnusable` unless the key is unique and not null."""
        spec, items = self.spec, self.items
        wanted = set(spec.keys)
        names = ", ".join(spec.keys)
        with self._database.reading() as connection:
            there = sa.inspect(connection)
            where = items.name, items.schema
            sets: list[Sequence[str | None]]
            sets = [there.get_pk_constraint(*where)["constrained_columns"]]
            sets += [each["column_names"] for each in there.get_unique_constraints(*where)]
            sets += [
                each["column_names"]
                for each in there.get_indexes(*where)
                if each["unique"]
                and not any("where" in option for option in each.get("dialect_options", {}))
            ]
            unique = any(each and set(each) <= wanted for each in sets)
            nulls = 0
            if any(column.nullable for column in self.key):
                empty = sa.or_(*(column.is_(None) for column in self.key))
                query = sa.select(sa.func.count()).select_from(items).where(empty)
                nulls = connection.execute(query).scalar_one()
            if nulls:
                raise CheckpointUnusable(
                    f"{nulls:,} rows of table {spec.table} have no key ({names} is NULL): give "
                    "them one, or name another column that every row has"
                )
            if unique and not self._has_heirs(connection):
                return
            _refuse_view(connection, items.name, items.schema)
            twice = sa.select(*self.key, sa.func.count()).group_by(*self.key)
            found = connection.execute(twice.having(sa.func.count() > 1).limit(1)).first()
        if found:
            raise self.twice(self.key_of(found), found[-1])
        if unique:
            return
        quote = self._database.plain.identifier_preparer
        index = quote.quote(f"{items.name}_{spec.keys[0]}_unique")
        columns = ", ".join(map(quote.quote, spec.keys))
        raise CheckpointUnusable(
            f"nothing keeps {names} of table {spec.table} unique: CREATE UNIQUE INDEX {index} ON "
            f"{quote.format_table(items)} ({columns}), and run again"
        )


def key_of(database: Database, table: str, given: Sequence[str] = ()) -> str | tuple[str, ...]:
    """The key for a `SqlCheckpoint`: the given columns, or else the table's primary key.

    Raises `UsageError` if there is neither.
    """
    names = tuple(given)
    if not names:
        schema, _, name = table.rpartition(".")
        with database.reading() as connection:
            there = sa.inspect(connection)
            _refuse_view(connection, name, schema or None)
            try:
                names = tuple(there.get_pk_constraint(name, schema or None)["constrained_columns"])
            except sa.exc.NoSuchTableError:
                raise UsageError(
                    f"{database.url} has no table {table!r}",
                    remedy="Fix the table's name, or create the table first",
                ) from None
    if not names:
        raise UsageError(f"table {table} has no primary key: name the columns of the key by --key")
    return names[0] if len(names) == 1 else names


def _refuse_view(connection: sa.Connection, name: str, schema: str | None) -> None:
    there = sa.inspect(connection)
    views = there.get_view_names(schema)
    if connection.dialect.name == "postgresql":
        views += there.get_materialized_view_names(schema)
    if name in views:
        raise CheckpointUnusable(
            f"{name} is a view: give the table behind it, and where= to choose among its rows"
        )
