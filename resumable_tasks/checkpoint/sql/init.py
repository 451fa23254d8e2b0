"""Preparing a table to be a checkpoint: a column or more, an index, three tables beside it."""

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
    """The DDL that is missing, in its order; none if the table is prepared.

    ``types``: of the columns of results, as the database names them. Raises `UsageError` or
    `CheckpointUnusable` for a table that cannot be prepared.
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
        time = "TEXT"  # it knows no other type that a time fits
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
    """True for one of SQLite's STRICT tables, which check their types."""
    with database.reading() as connection:
        found = connection.exec_driver_sql(f"PRAGMA table_list({table})").mappings()
        return any(each.get("strict") for each in found)


def _index(database: Database, tables: Tables, table: str) -> list[str]:
    """The statements for the index by which what is left is found without what is done."""
    spec, items = tables.spec, tables.items
    quote = database.plain.identifier_preparer
    index = tables.beside("todo")
    partitioned, valid = _look(database, items, table, index)
    if valid:
        return []
    # PostgreSQL has no such way for a table in partitions.
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
    """Look whether the table is partitioned and has a useful index; None if there is no table.

    One that was not made to its end stays, is kept up by every write, and answers no query.
    """
    if database.sqlite:
        with database.reading() as connection:
            indexes = sa.inspect(connection).get_indexes(items.name, schema=items.schema)
        return False, True if index in [each["name"] for each in indexes] else None
    query = sa.text(
        "SELECT t.relkind = 'p', i.indisvalid OR t.relkind = 'p' OR p.pid IS NOT NULL "
        "FROM pg_class t LEFT JOIN (pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "AND c.relname = :index) ON i.indrelid = t.oid "
        # Somebody is making it at this moment.
        "LEFT JOIN pg_stat_progress_create_index p ON p.index_relid = i.indexrelid "
        "WHERE t.oid = to_regclass(:table)"
    )
    with database.reading() as connection:
        partitioned, valid = connection.execute(query, {"table": table, "index": index}).one()
    return partitioned, valid


def apply(database: Database, many: Sequence[str]) -> None:
    """Run these statements in their order. Raises `StoreError` or `UsageError`.

    All of them or none, but that on PostgreSQL those about an index follow by themselves: made
    with the rest, it would keep all others from the table for as long as it takes.
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
