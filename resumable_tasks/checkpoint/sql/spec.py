"""`SqlCheckpoint`: which table holds the items, and which column says that one is done."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import Key

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads

    from resumable_tasks.items.keytable import KeyTable

CLAIM_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class SqlCheckpoint:
    """A row is completed if and only if its ``done`` column is set, by one transaction with its
    results: both are there exactly once, whatever is killed.

    Args:
        database: a URL, such as ``postgresql://user@host/name`` or ``sqlite:///file.db``, or an
            engine of SQLAlchemy. PostgreSQL takes several drivers at once, SQLite one.
        table: whose rows are the items, ``"schema.table"`` if need be. It is read as it goes by.
        key: its column, or columns, that name a row: unique and not null.
        done: the column that is NULL while a row is to be handled. `resumable sql init` adds it.
        columns: fields of the handler's rows that are written to columns of the same row.
        results_table: the table into which the handler's rows are inserted, instead.
        results_key: its column, or columns, for the key; by default they are called as ``key``.
        shards: a directory for a checkpoint with the rows in Parquet, instead; the column is set
            after each commit, and mended when the next run begins.
        where: a condition in SQL; other rows are left alone.
        claim_seconds: after so long without a sign of life a driver's rows are given to others.

    Raises:
        UsageError: these do not fit together.
    """

    # A URL may hold a password.
    database: Any = field(repr=False)
    _: KW_ONLY
    table: str
    key: str | tuple[str, ...]
    done: str = "processed_at"
    columns: Sequence[str] = ()
    results_table: str | None = None
    results_key: str | tuple[str, ...] | None = None
    shards: str | os.PathLike[str] | None = None
    where: str | None = None
    claim_seconds: float = CLAIM_SECONDS

    def __post_init__(self) -> None:
        if isinstance(self.columns, str):
            raise UsageError(f"columns={self.columns!r}: give a list of names")
        object.__setattr__(self, "columns", tuple(self.columns))
        names = self.keys
        if not names or not all(isinstance(name, str) and name for name in names):
            raise UsageError(f"key={self.key!r} is neither a column's name nor a tuple of names")
        taken = [name for name in self.columns if name in (*names, self.done)]
        if taken:
            raise UsageError(f"columns={list(self.columns)!r}: {taken[0]!r} has its own use")
        places = [n for n in ("columns", "results_table", "shards") if getattr(self, n)]
        if len(places) > 1:
            raise UsageError(f"SqlCheckpoint: {' and '.join(places)} exclude each other")
        if self.results_key is not None and len(self.results_keys) != len(names):
            raise UsageError(f"results_key={self.results_key!r} and key={self.key!r} do not pair")
        if not self.claim_seconds > 0:
            raise UsageError(f"claim_seconds={self.claim_seconds!r} is no number above 0")

    def __reduce__(self) -> tuple[Callable[..., SqlCheckpoint], tuple[dict[str, Any]]]:
        # An engine stays behind, its URL is enough to read by.
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        named["database"] = getattr(self.database, "url", self.database)
        return _from_names, (named,)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the key's columns."""
        return self.key if isinstance(self.key, tuple) else (self.key,)

    @property
    def results_keys(self) -> tuple[str, ...]:
        """The names of the key's columns in the table of results."""
        given = self.results_key if self.results_key is not None else self.key
        return given if isinstance(given, tuple) else (given,)

    def table_of_results(self, positions: KeyTable | None = None) -> pa.Table:
        """The results of all completed rows; in the order of ``positions`` if given."""
        from resumable_tasks.checkpoint.sql.reading import read_results

        return read_results(self, positions)

    def dataset(self) -> pads.Dataset:
        """`table_of_results` as a dataset, in memory."""
        import pyarrow.dataset as pads

        return pads.dataset(self.table_of_results())

    def completed_keys(self) -> Iterator[Key]:
        """The keys of all completed rows, in their order."""
        from resumable_tasks.checkpoint.sql.reading import read_keys

        return read_keys(self)

    def not_published(self) -> UsageError:
        """Why there is nothing to publish."""
        return UsageError(
            f"the results are in the database, in table {self.results_table or self.table}, where "
            "others can read them; publish() is for rows in Parquet: SqlCheckpoint(…, shards=DIR)"
        )


def _from_names(named: dict[str, Any]) -> SqlCheckpoint:
    return SqlCheckpoint(**named)
