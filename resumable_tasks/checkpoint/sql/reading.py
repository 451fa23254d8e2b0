"""The results of completed rows, read back from the database."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import sqlalchemy as sa

from resumable_tasks.checkpoint.form import CommittedRows, Reader
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.spec import TableSpec
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import BadResult, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import Key, KeyScheme

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TableReader(Reader):
    """Reads the results of completed rows from the database."""

    spec: TableSpec

    def read(self, use: Callable[[CommittedRows], T]) -> T:
        table = read_results(self.spec)
        key = KeyScheme(self.spec.key).describe()
        return use(CommittedRows(table.schema, lambda: iter([table]), key))

    def dataset(self) -> pads.Dataset:
        """The results as a dataset, in memory."""
        import pyarrow.dataset as pads

        return pads.dataset(read_results(self.spec))

    def completed_keys(self) -> Iterator[Key]:
        return read_keys(self.spec)

    def check_publishable(self) -> None:
        raise UsageError(
            f"the results are in the database, in table "
            f"{self.spec.results_table or self.spec.table}, where others can read them; publish() "
            "is for rows in Parquet: SqlCheckpoint(…, shards=DIR)"
        )


def read_results(spec: TableSpec) -> pa.Table:
    """The key and the results of all completed rows, in the order of the key, in memory.

    Raises `UsageError` if the handler's rows are in no table.
    """
    import pyarrow as pa

    if not spec.columns and not spec.results_table:
        raise UsageError(
            "this job keeps no results, only that a row is done: give SqlCheckpoint columns=, "
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
    each = each or [[] for _ in names]
    return pa.table([_column(*named) for named in zip(names, each, strict=True)], names=names)


def _column(name: str, values: list[Any]) -> pa.Array:
    """An Arrow column. Raises `BadResult` if it mixes types, as SQLite's untyped columns can."""
    import pyarrow as pa

    moments = [value for value in values if isinstance(value, datetime)]
    if len({moment.tzinfo is None for moment in moments}) > 1:
        why = "some of its moments have an offset, and some have none"
    else:
        try:
            return pa.array(values)
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            why = str(error)
    raise BadResult(
        f"column {name!r} cannot be read as one of Arrow: {why}. Read it from the database"
    )


def read_keys(spec: TableSpec) -> Iterator[Key]:
    """The keys of all completed rows."""
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
