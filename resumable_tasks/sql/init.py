"""What a table takes to be a checkpoint: a column or more, an index, three tables beside it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from resumable_tasks.sql.database import Database, require
from resumable_tasks.sql.spec import SqlCheckpoint
from resumable_tasks.sql.tables import Tables


def statements(database: Database, spec: SqlCheckpoint, types: Mapping[str, str]) -> list[str]:
    """The DDL that is missing, in its order; none if the table is prepared.

    ``types``: of the columns of results, as the database names them. Raises `UsageError` or
    `CheckpointUnusable` for a table that cannot be prepared.
    """
    sa = require()
    tables = Tables(database, spec)
    tables.check_key()
    items = tables.items
    with database.reading() as connection:
        dialect = connection.dialect
        there = sa.inspect(connection)
        sides = [t for t in tables.side if not there.has_table(t.name, schema=t.schema)]
        indexes = {each["name"] for each in there.get_indexes(items.name, schema=items.schema)}
    quote = dialect.identifier_preparer
    name = quote.format_table(items)
    time = "TIMESTAMP" if database.sqlite else "TIMESTAMP WITH TIME ZONE"
    columns = {spec.done: time, **{column: types.get(column, "TEXT") for column in spec.columns}}
    found = [
        f"ALTER TABLE {name} ADD COLUMN {quote.quote(column)} {kind}"
        for column, kind in columns.items()
        if column not in items.c
    ]
    boolean = spec.done in items.c and isinstance(items.c[spec.done].type, sa.Boolean)
    index = f"{items.name}_{spec.done}_todo"
    if index not in indexes:
        # What is left is found without going over what is done.
        keys = ", ".join(map(quote.quote, spec.keys))
        found.append(
            f"CREATE INDEX {quote.quote(index)} ON {name} ({keys}) "
            f"WHERE {quote.quote(spec.done)} IS {'NOT TRUE' if boolean else 'NULL'}"
        )
    for side in sides if spec.shards is None else ():
        made: list[Any] = [sa.schema.CreateTable(side)]
        made += [sa.schema.CreateIndex(each) for each in side.indexes]
        found += [str(each.compile(dialect=dialect)).strip() for each in made]
    return found


def apply(database: Database, many: list[str]) -> None:
    """Run these statements, all of them or, if one fails, none. Raises `StoreError`."""
    with database.writing() as connection:
        for each in many:
            # The driver of PostgreSQL would take a single one for a place to put a value.
            connection.exec_driver_sql(each if database.sqlite else each.replace("%", "%%"))
