"""The description of a table as a checkpoint: the fields of `SqlCheckpoint`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, field, fields
from importlib.util import find_spec
from typing import Any

from resumable_tasks.base import checks
from resumable_tasks.errors import UsageError

INSTALL = 'pip install "resumable-tasks[sql]"'
CLAIM_SECONDS = 60.0
# SQLite takes 32,766 values in a statement, PostgreSQL 65,535.
MOST_KEYS = 5_000


def require_sqlalchemy() -> None:
    """Raise `UsageError`, with the command that installs it, if SQLAlchemy is missing.

    Call it before opening a database, since most files of this folder import SQLAlchemy.
    """
    if find_spec("sqlalchemy") is None:
        raise UsageError("SqlCheckpoint needs SQLAlchemy", remedy=INSTALL)


@dataclass(frozen=True, slots=True)
class TableSpec:
    """The description of a table; `SqlCheckpoint` documents its fields."""

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
            raise UsageError(
                f"key={self.key!r} is neither a column's name nor a tuple of names",
                remedy="Give key= one of the two",
            )
        taken = [name for name in self.columns if name in (*names, self.done)]
        if taken:
            raise UsageError(
                f"columns={list(self.columns)!r}: {taken[0]!r} is already used otherwise",
                remedy="Leave it out of columns=",
            )
        places = [n for n in ("columns", "results_table", "shards") if getattr(self, n)]
        if len(places) > 1:
            raise UsageError(f"SqlCheckpoint: {' and '.join(places)} exclude each other")
        if self.results_key is not None and len(self.results_keys) != len(names):
            raise UsageError(
                f"results_key={self.results_key!r} and key={self.key!r} do not match",
                remedy="Give results_key= as many columns as key=, in the same order",
            )
        if not (checks.is_seconds(self.claim_seconds) and self.claim_seconds):
            raise UsageError(
                f"claim_seconds={self.claim_seconds!r} is not a number of seconds above 0",
                remedy="Give claim_seconds= a number such as 300",
            )

    def __reduce__(self) -> tuple[Callable[..., TableSpec], tuple[Any, ...]]:
        # An engine cannot be pickled; its URL is enough for reading.
        named = {each.name: getattr(self, each.name) for each in fields(self)}
        named["database"] = getattr(self.database, "url", self.database)
        return _from_names, (type(self), named)

    @property
    def keys(self) -> tuple[str, ...]:
        """The names of the key's columns."""
        return self.key if isinstance(self.key, tuple) else (self.key,)

    @property
    def results_keys(self) -> tuple[str, ...]:
        """The names of the key's columns in the results table."""
        given = self.results_key if self.results_key is not None else self.key
        return given if isinstance(given, tuple) else (given,)


def _from_names(kind: type[TableSpec], named: dict[str, Any]) -> TableSpec:
    return kind(**named)
