"""Rows → columns. Each value gets a type that returns it unchanged, or its row is set apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import BadResult, ResultConflict
from resumable_tasks.items.keys import shorten
from resumable_tasks.runners.values import encoding
from resumable_tasks.runners.values.columns import INFERRED, Columns, json_field
from resumable_tasks.runners.values.plain import plain
from resumable_tasks.runners.values.plaintable import PlainTable, arrow_table, plain_table

if TYPE_CHECKING:
    import pyarrow as pa

Row = Mapping[str, Any]
Odd = dict[int, str]
"""The reasons why rows cannot be stored, by their indexes."""

WAYS_OUT = (
    "Return one type, give the column a type with schema=, or store it as JSON text with "
    "json_columns="
)


def to_table(rows: Sequence[Row], columns: Columns = INFERRED) -> pa.Table | None:
    """Return the rows as a table with a column for each field of any row, in the order first met.

    Raises `ResultConflict` if a row cannot be stored with the others.
    """
    table, odd = separate(rows, columns)
    for why in odd.values():
        raise ResultConflict(why)
    return arrow_table(table)


def table_of_what_fits(rows: Sequence[Row]) -> pa.Table | None:
    """Return the rows as a table without the columns whose values have no common type."""
    import pyarrow as pa

    arrays: dict[str, pa.Array] = {}
    for name, values in _by_column(rows, None).items():
        found, unfit = _column(name, values, INFERRED)
        if not unfit:
            arrays[name] = found
    return pa.table(arrays) if arrays else None


def separate(
    rows: Sequence[Row], columns: Columns = INFERRED
) -> tuple[pa.Table | PlainTable | None, Odd]:
    """Return all rows as a table; or None, and the rows that cannot be stored with the others."""
    if not rows:
        return None, {}
    found = _by_column(rows, columns.schema)
    table = None if columns.json else plain_table(found, len(rows))
    if table is not None and (columns.schema is None or table.schema.equals(columns.schema)):
        return table, {}
    import pyarrow as pa

    odd: Odd = {}
    arrays: dict[str, pa.Array] = {}
    for name, values in found.items():
        arrays[name], unfit = _column(name, values, columns)
        odd |= {at: why for at, why in unfit.items() if at not in odd}
    if odd:
        return None, odd
    if columns.inferred:
        return pa.Table.from_arrays(list(arrays.values()), names=list(arrays)), {}
    fields = [
        json_field(name) if name in columns.json else pa.field(name, found.type)
        for name, found in arrays.items()
    ]
    return pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields)), {}


def _by_column(rows: Sequence[Row], schema: pa.Schema | None) -> dict[str, list[Any]]:
    # Not pa.Table.from_pylist, which uses only the fields of the first row.
    names = list(rows[0])
    try:
        if schema is not None or set(map(len, rows)) != {len(names)}:
            raise KeyError
        found = {name: [row[name] for row in rows] for name in names}
    except KeyError:
        declared = dict.fromkeys(schema.names if schema is not None else ())
        names = list(dict.fromkeys(name for row in rows for name in row))
        found = {
            name: [row.get(name) for row in rows] for name in {**dict.fromkeys(names), **declared}
        }
    for name in names:
        if not isinstance(name, str):
            raise BadResult(f"a row has a field named {shorten(name)}; names must be strings")
    return found


def _column(name: str, values: list[Any], columns: Columns) -> tuple[pa.Array | None, Odd]:
    if name in columns.json:
        import pyarrow as pa

        texts, unfit = json_text(name, values)
        return (None, unfit) if unfit else (pa.array(texts, pa.string()), {})
    if columns.schema is not None and name in columns.schema.names:
        import pyarrow as pa

        from resumable_tasks.runners.values import declared

        field = columns.schema.field(name)
        if not pa.types.is_null(field.type):
            return declared.column(field, values)
    return column(name, values)


_QUICK = {
    str: ("string",),
    int: ("int64", "uint64"),  # Arrow's own inference has no uint64 since its version 26
    float: ("float64",),
    bool: ("bool",),
}


def column(name: str, values: list[Any]) -> tuple[pa.Array | None, Odd]:
    """Return the column of these values; or None, and the values that do not fit the others."""
    import pyarrow as pa

    kinds = set(map(type, values)) - {type(None)}
    # Not Arrow's inference: without pandas, it tries to import pandas at every call (60 µs).
    for alias in _QUICK.get(next(iter(kinds)), ()) if len(kinds) == 1 else ():
        try:
            return pa.array(values, pa.type_for_alias(alias)), {}
        except (OverflowError, UnicodeEncodeError, pa.ArrowInvalid):
            continue
    if (found := _together(values)) is not None:
        return found
    values = _without_nan(list(map(plain, values)))
    return _together(values) or _apart(name, values)


def array(name: str, values: list[Any]) -> pa.Array:
    """Return the column of these values. Raises `ResultConflict` if they have no common type."""
    found, odd = column(name, values)
    for why in odd.values():
        raise ResultConflict(why)
    return found


def _without_nan(values: list[Any]) -> list[Any]:
    """Return the values with NaN as None, unless all are numbers: pandas marks missing ones so."""
    kinds = set(map(type, values)) - {type(None), int}
    if float not in kinds or len(kinds) == 1:
        return values
    return [None if type(value) is float and value != value else value for value in values]


def _together(values: list[Any]) -> tuple[pa.Array, Odd] | None:
    """Return the column of these plain values; None if they have no common type."""
    from resumable_tasks.runners.values import jsontype, types

    try:
        kind = types.type_of(values)
    except (types.NoType, types.NoPlace):
        return None
    found = _built(values, kind)
    # Structures may have a common type that does not hold all their values (an integer beyond 2⁵³
    # among floats); they become JSON then.
    if found is None and types.are_structures(values):
        found = _built(values, jsontype.JSON)
    return None if found is None else (found, {})


def _built(values: list[Any], kind: pa.DataType) -> pa.Array | None:
    """Return the column of this type; None if it cannot hold each value unchanged."""
    import pyarrow as pa

    from resumable_tasks.runners.values import build, jsontype, types

    if jsontype.is_json(kind) and any(map(types.why_no_place, values)):
        return None
    try:
        return build.array(values, kind)
    except (BadResult, pa.ArrowException, TypeError, ValueError, OverflowError):
        return None  # such as a year out of the range of nanoseconds


def _apart(name: str, values: list[Any]) -> tuple[None, Odd]:
    """Find the values that no column can hold, or that do not fit the type of the majority."""
    from resumable_tasks.runners.values import types

    odd: Odd = {}
    groups: dict[Any, list[int]] = {}
    for at, value in enumerate(values):
        if value is None:
            continue
        why = types.why_no_place(value) or (None if _together([value]) else "of no exact form")
        if why is not None:
            odd[at] = f"column {name!r} is {shorten(value)}: {why}. {WAYS_OUT}"
            continue
        structure = type(value) in (list, dict)
        groups.setdefault("structure" if structure else types.type_of([value]), []).append(at)
    taken: list[int] = []
    for group in sorted(groups.values(), key=len, reverse=True):
        if _together([values[at] for at in taken + group]):
            taken += group
        else:
            odd |= {at: _disagrees(name, values[at], values[taken[0]]) for at in group}
    return None, odd


def _disagrees(name: str, value: Any, usual: Any) -> str:
    return (
        f"column {name!r} is {shorten(value)} of type {_kind_of(value)} here, but of type "
        f"{_kind_of(usual)} in most rows of its batch: no type holds both. {WAYS_OUT}"
    )


def _kind_of(value: Any) -> str:
    kind = type(value).__name__
    if kind == "datetime":
        return kind + (" without an offset" if value.utcoffset() is None else " with an offset")
    return kind


def json_text(name: str, values: list[Any]) -> tuple[list[str | None], Odd]:
    """Return the values as JSON text, in the encoding of parked rows if JSON has no form."""
    odd: Odd = {}
    texts: list[str | None] = []
    for at, value in enumerate(map(plain, values)):
        try:
            texts.append(encoding.as_text(value))
        except BadResult as error:
            odd[at] = f"column {name!r} is not JSON: {error}"
    return texts, odd
