"""The results of completed rows, read back from the database."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from resumable_tasks.checkpoint.sql.database import Database, require
from resumable_tasks.checkpoint.sql.spec import SqlCheckpoint
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key
from resumable_tasks.items.keytable import KeyTable

if TYPE_CHECKING:
    import pyarrow as pa


def read_results(spec: SqlCheckpoint, positions: KeyTable | None) -> pa.Table:
    """The key and the results of all completed rows, in the order of the key, in memory.

    Raises `UsageError` where the handler's rows are in no table.
    """
    import pyarrow as pa

    sa = require()
    if not spec.columns and not spec.results_table:
        raise UsageError(
            "this job keeps no results but that a row is done: give SqlCheckpoint columns=, "
            "results_table= or shards="
        )
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        if spec.results_table:
            results = tables.reflected(spec.results_table)
            query = sa.select(results).order_by(*[results.c[name] for name in spec.results_keys])
            query = query.where(
                sa.exists(
                    sa.select(sa.literal(1))
                    .select_from(tables.items)
                    .where(
                        tables.same(results, spec.results_keys), tables.is_done, *tables.considered
                    )
                    .correlate(results)
                )
            )
        else:
            columns = [tables.items.c[name] for name in spec.columns]
            query = sa.select(*tables.key, *columns).order_by(*tables.key)
            query = query.where(tables.is_done, *tables.considered)
        with database.reading() as connection, connection.execute(query) as found:
            names = list(found.keys())
            rows = [tuple(row) for row in found]
    finally:
        database.close()
    each: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
    return pa.table(each or [[] for _ in names], names=names)


def read_keys(spec: SqlCheckpoint) -> Iterator[Key]:
    """The keys of all completed rows."""
    sa = require()
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        query = sa.select(*tables.key).where(tables.is_done, *tables.considered)
        query = query.order_by(*tables.key)
        with database.reading() as connection, connection.execute(query) as found:
            for row in found.yield_per(1_000):
                yield keys.parse(keys.canonical(tables.key_of(row)))
    finally:
        database.close()
