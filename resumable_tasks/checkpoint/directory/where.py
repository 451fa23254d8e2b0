"""A condition in SQL on committed rows, evaluated by the SQLite of Python's standard library."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import UsageError

if TYPE_CHECKING:
    import pyarrow as pa

_MAY = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION}
_INTEGERS = range(-(2**63), 2**63)


class Where:
    """An SQL condition on rows of this schema. Raises `UsageError` if it is invalid."""

    def __init__(self, condition: str, schema: pa.Schema) -> None:
        self._condition = condition
        self._names = list(schema.names)
        self._number = "number"
        while self._number.lower() in map(str.lower, self._names):
            self._number += " of row"
        self.fitting(schema.empty_table())

    def fitting(self, rows: pa.Table) -> list[int]:
        """The indexes of the rows that meet the condition."""
        columns = [range(rows.num_rows), *(map(_plain, c.to_pylist()) for c in rows.columns)]
        named = ", ".join(map(_quoted, self._names))
        number = _quoted(self._number)
        places = ", ".join("?" * len(columns))
        with self._errors(), contextlib.closing(sqlite3.connect(":memory:")) as database:
            # Columns without a type, so that SQLite converts no value.
            database.execute(f"CREATE TABLE rows ({number} INTEGER PRIMARY KEY, {named})")
            insert = f"INSERT INTO rows VALUES ({places})"  # noqa: S608 - only question marks
            database.executemany(insert, zip(*columns, strict=True))
            # From here on the user's SQL runs: it may only read these rows.
            database.set_authorizer(_only_read)
            # The newline: a comment at the end must not hide the closing bracket.
            query = f"SELECT {number} FROM rows WHERE ({self._condition}\n)"  # noqa: S608
            return [found for (found,) in database.execute(query)]

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            raise UsageError(
                f"where {self._condition!r} is not a valid condition on the rows: {error}. Their "
                f"columns are {', '.join(self._names)}",
                remedy="Write a condition as in SQL's WHERE, such as label = 'other'",
            ) from error


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _only_read(action: int, *_: object) -> int:
    return sqlite3.SQLITE_OK if action in _MAY else sqlite3.SQLITE_DENY


def _plain(value: Any) -> Any:
    """A value for SQLite: times as text, decimals as floats, nested values as JSON."""
    if value is None or isinstance(value, (str, float, bytes, bool)):
        return value
    if isinstance(value, int):
        return value if value in _INTEGERS else float(value)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat(" ")
    if isinstance(value, (date, time)):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return json.dumps(value, ensure_ascii=False, default=str)
