"""Rows of plain values, of which Arrow's tables are made together with those of other batches.

To make an array has a price of its own, whatever is in it: the time of some hundred values, and the
interpreter's lock is let go of and must be won back. A batch of few rows pays that for each column.
So its values stay what they are until the commit, if they are sure to fit: nothing is refused there
that was accepted here.
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

# Of more rows, or of longer texts, arrays cost what their values do; and they take less memory.
_MOST_ROWS, _MOST_TEXT = 1_000, 1_000_000
_TYPES = {str: "string", int: "int64", float: "float64", bool: "bool"}


@frozen
class PlainTable:
    """Some rows as columns of exact ``str``, ``int``, ``float`` or ``bool``, and of None.

    Each value has its place in the type that ``schema`` has for its column. The columns are this
    table's own: what they were made of may change.
    """

    columns: Sequence[Sequence[Any]]
    schema: pa.Schema
    num_rows: int


def plain_table(columns: Mapping[str, Sequence[Any]], num_rows: int) -> PlainTable | None:
    """These columns as a plain table; None if they are long, or not of these types alone."""
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
    """True if an array takes these values of one type, whatever they are beside."""
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
    """The same rows as Arrow's table; None of none."""
    return None if table is None else next(arrow_tables([table]))


def arrow_tables(tables: Iterable[pa.Table | PlainTable]) -> Iterator[pa.Table]:
    """Arrow's tables of all these rows, in their order: one of plain ones that have one schema."""
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
