"""Prepares a table as a checkpoint: adds columns, an index, and three tables beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import sqlalchemy as sa

from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.spec import TableSpec
from resumable_tasks.checkpoint.sql.tables import Tables

_PATIENCE = 10
_INDEX = ("CREATE INDEX ", "DROP INDEX ")
_CONCURRENTLY = tuple(f"{word}CONCURRENTLY " for word in _INDEX)


def statements(database: Database, spec: TableSpec, types: Mapping[str, str]) -> list[str]:
    """The missing DDL statements, in order; empty if the table is prepared.

    ``types`` are the types of the result columns, in the database's names. Raises `UsageError` or
    `CheckpointUnusable` if the table cannot be prepared.
    """
    tables = Tables(database, spec)
    tables.check_key()
    items = tables.items
    with database.reading() as connection:
        there = sa.inspect(connection)
        sides = [t for t in tables.side if not there.has_table(t.name, schema=t.schema)]
    dialect = database.plain
    quote = dialect.identifier_preparer
    name = quote.format_table(items)
    time = "TIMESTAMP" if database.sqlite else "TIMESTAMP WITH TIME ZONE"
    if database.sqlite and _is_strict(database, quote.quote(items.name)):
        time = "TEXT"  # a STRICT table has no other type for a time
    columns = {spec.done: time, **{column: types.get(column, "TEXT") for column in spec.columns}}
    found = [
        f"ALTER TABLE {name} ADD COLUMN {quote.quote(column)} {kind}"
        for column, kind in columns.items()
        if column not in items.c
    ]
    found += [
        str(sa.schema.CreateTable(side).compile(dialect=dialect)).strip()
        for side in (sides if spec.shards is None else ())
    ]
    return found + _index(database, tables, name)


def _is_strict(database: Database, table: str) -> bool:
    """True for a STRICT table of SQLite, which checks its types."""
    with database.reading() as connection:
        found = connection.exec_driver_sql(f"PRAGMA table_list({table})").mappings()
        return any(each.get("strict") for each in found)


def _index(database: Database, tables: Tables, table: str) -> list[str]:
    """The statements for the index that finds the remaining rows without the completed ones."""
    spec, items = tables.spec, tables.items
    quote = database.plain.identifier_preparer
    index = tables.beside("todo")
    partitioned, valid = _look(database, items, table, index)
    if valid:
        return []
    # PostgreSQL cannot do this for a partitioned table.
    how = "" if database.sqlite or partitioned else "CONCURRENTLY "
    found = []
    if valid is not None:
        schema = f"{quote.quote(items.schema)}." if items.schema else ""
        found.append(f"DROP INDEX {how}{schema}{quote.quote(index)}")
    boolean = spec.done in items.c and isinstance(items.c[spec.done].type, sa.Boolean)
    keys = ", ".join(map(quote.quote, spec.keys))
    found.append(
        f"CREATE INDEX {how}{quote.quote(index)} ON {table} ({keys}) "
        f"WHERE {quote.quote(spec.done)} IS {'NOT TRUE' if boolean else 'NULL'}"
    )
    return found


def _look(database: Database, items: Any, table: str, index: str) -> tuple[bool, bool | None]:
    """Whether the table is partitioned, and whether it has this index.

    False: it has an index whose creation was interrupted; that one costs time at every write and
    answers no query. None: there is none.
    """
    if database.sqlite:
        with database.reading() as connection:
            indexes = sa.inspect(connection).get_indexes(items.name, schema=items.schema)
        return False, True if index in [each["name"] for each in indexes] else None
    query = sa.text(
        "SELECT t.relkind = 'p', i.indisvalid OR t.relkind = 'p' OR p.pid IS NOT NULL "
        "FROM pg_class t LEFT JOIN (pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "AND c.relname = :index) ON i.indrelid = t.oid "
        # A session is creating it at this moment.
        "LEFT JOIN pg_stat_progress_create_index p ON p.index_relid = i.indexrelid "
        "WHERE t.oid = to_regclass(:table)"
    )
    with database.reading() as connection:
        partitioned, valid = connection.execute(query, {"table": table, "index": index}).one()
    return partitioned, valid


def apply(database: Database, many: Sequence[str]) -> None:
    """Run these statements in order, all or none. Raises `StoreError` or `UsageError`.

    On PostgreSQL those about an index follow outside the transaction: inside it, the creation of an
    index would block the table for all others until its end.
    """
    if database.sqlite:
        database.run(many)
        return
    for about_index, some in groupby(many, key=lambda each: each.startswith(_INDEX)):
        if not about_index:
            database.run(list(some), patience=_PATIENCE)
            continue
        for each in some:
            if each.startswith(_CONCURRENTLY):
                database.run_alone(each)
            else:
                database.run([each], patience=_PATIENCE)
