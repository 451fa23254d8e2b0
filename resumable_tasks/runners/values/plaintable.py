"""Rows of plain values, converted to Arrow later, together with those of other batches.

Making an array has a fixed cost: the time of some hundred values, and the GIL is released and must
be acquired again. A small batch would pay that for each column. So its values stay Python objects
until the commit, provided that they are certain to fit: the commit never refuses a value that was
accepted here.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.frozen import frozen

if TYPE_CHECKING:
    import pyarrow as pa

# With more rows or longer texts, the fixed cost does not matter, and arrays take less memory.
_MOST_ROWS, _MOST_TEXT = 1_000, 1_000_000
_TYPES = {str: "string", int: "int64", float: "float64", bool: "bool"}


@frozen
class PlainTable:
    """Some rows as columns of exact ``str``, ``int``, ``float`` or ``bool``, and None.

    Each value fits the type of its column in ``schema``. The table owns its columns: the objects
    they were made from may change.
    """

    columns: Sequence[Sequence[Any]]
    schema: pa.Schema
    num_rows: int


def plain_table(columns: Mapping[str, Sequence[Any]], num_rows: int) -> PlainTable | None:
    """Return the columns as a plain table; None if they are long or have other types."""
    if not columns or num_rows > _MOST_ROWS:
        return None
    kinds = []
    for values in columns.values():
        found = set(map(type, values))
        if len(found) > 1:
            found.discard(type(None))
            values = [value for value in values if value is not None]
        kind = found.pop()
        if found or not _fit(kind, values):
            return None
        kinds.append(kind)
    return PlainTable([*columns.values()], _schema(tuple(columns), tuple(kinds)), num_rows)


def _fit(kind: type, values: Sequence[Any]) -> bool:
    """True if an array of this type takes these values, beside any other such values."""
    if kind is str:
        return sum(map(len, values)) <= _MOST_TEXT and _is_unicode("".join(values))
    return _are_int64(values) if kind is int else kind in _TYPES


def _are_int64(values: Sequence[int]) -> bool:
    try:
        array("q", values)
    except OverflowError:
        return False
    return True


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True


@lru_cache(64)
def _schema(names: tuple[str, ...], kinds: tuple[type, ...]) -> pa.Schema:
    import pyarrow as pa

    return pa.schema([(name, _TYPES[kind]) for name, kind in zip(names, kinds, strict=True)])


def arrow_table(table: pa.Table | PlainTable | None) -> pa.Table | None:
    """Return the same rows as an Arrow table; None for None."""
    return None if table is None else next(arrow_tables([table]))


def arrow_tables(tables: Iterable[pa.Table | PlainTable]) -> Iterator[pa.Table]:
    """Yield Arrow tables of all rows in order; plain tables in a row with one schema become one."""
    import pyarrow as pa

    for schema, some in groupby(tables, _schema_of_plain):
        if schema is None:
            yield from some
            continue
        each = zip(*(table.columns for table in some), strict=True)
        values = [list(chain.from_iterable(columns)) for columns in each]
        arrays = [
            pa.array(column, field.type) for column, field in zip(values, schema, strict=True)
        ]
        yield pa.Table.from_arrays(arrays, schema=schema)


def _schema_of_plain(table: pa.Table | PlainTable) -> pa.Schema | None:
    return table.schema if isinstance(table, PlainTable) else None
