"""Tables and data frames from handlers → Arrow tables in types that shards can store.

A frame with values that have no common Arrow type, or that Arrow would change, becomes rows, as if
the handler had returned those.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import BadResult
from resumable_tasks.items.keys import shorten

if TYPE_CHECKING:
    import pyarrow as pa

Rows = list[dict[str, Any]]

# The last schema that needed no conversion: a job's tables mostly have the same schema.
_plain: pa.Schema | None = None


def is_arrow(value: Any) -> bool:
    """True for an object that Arrow can read, or a non-empty list of such objects."""
    if type(value) is list:
        return bool(value) and all(map(is_arrow, value))
    return hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")


def to_arrow(value: Any) -> pa.Table | Rows:
    """Return a handler's table, or its rows; the tables of a list are joined.

    Raises `BadResult`.
    """
    import pyarrow as pa

    if type(value) is list:
        return _joined(list(map(to_arrow, value)))
    if type(value) is pa.Table and _plain is not None and value.schema.equals(_plain, True):
        return value
    try:
        found = _pandas(value) if type(value).__module__.startswith("pandas") else _arrow(value)
        if isinstance(found, pa.Table):
            _check_names(found.column_names)
            found = _plain_table(found.replace_schema_metadata(None))
        return found
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        what = f"{type(value).__name__} {shorten(value, 60)}"
        raise BadResult(f"the handler's {what} is not an Arrow table: {error}") from error


def to_rows(value: Any) -> Rows:
    """Return the rows of an object that `is_arrow` accepts. Raises `BadResult`."""
    found = to_arrow(value)
    rows: Rows = found if isinstance(found, list) else found.to_pylist()
    return rows


def spread(entries: list[Any]) -> list[Any]:
    """Return the entries with each table replaced by its rows. Raises `BadResult`."""
    return [row for each in entries for row in (to_rows(each) if is_arrow(each) else [each])]


def _joined(parts: list[pa.Table | Rows]) -> pa.Table | Rows:
    import pyarrow as pa

    tables = [part for part in parts if isinstance(part, pa.Table)]
    if len(tables) == len(parts):
        try:
            return pa.concat_tables(tables, promote_options="default")
        except pa.ArrowException:  # the types differ, and are unified as those of rows
            pass
    return [row for part in parts for row in (part if isinstance(part, list) else part.to_pylist())]


def _arrow(value: Any) -> pa.Table | Rows:
    import pyarrow as pa

    if isinstance(value, pa.Table):
        return value
    if type(value).__module__.startswith("polars"):
        _refuse_objects(value)
        if hasattr(value, "to_arrow"):  # avoids view types, which Arrow supports only in part
            try:
                return pa.table(value.to_arrow())
            except pa.ArrowException:  # a type that Arrow does not have, such as Int128
                if not hasattr(value, "to_dicts"):
                    raise TypeError("it has no columns; return a DataFrame") from None
                rows: Rows = value.to_dicts()
                return rows
    if hasattr(value, "__arrow_c_stream__"):
        return pa.table(value)
    return pa.Table.from_batches([pa.record_batch(value)])


def _refuse_objects(frame: Any) -> None:
    """Raise `TypeError` for Python objects in polars: Arrow would receive their addresses."""
    for name, kind in getattr(frame, "schema", {}).items():
        if "Object" in str(kind):
            raise TypeError(
                f"column {name!r} holds Python objects (polars.Object), which polars exports only "
                "as memory addresses; cast it, for instance to text, or return rows"
            )


def _pandas(frame: Any) -> pa.Table | Rows:
    """Return a pandas frame without its index, which is arbitrary.

    A frame with object columns becomes rows: in a column of times, Arrow would give one without an
    offset the offset of its neighbour.
    """
    import pyarrow as pa

    if not hasattr(frame, "columns"):
        raise TypeError("it has no columns; return a DataFrame")
    names = list(frame.columns)
    _check_names(names)
    if any(name is not None for name in frame.index.names):
        index = ", ".join(repr(name) for name in frame.index.names)
        if not set(frame.index.names) & set(names):
            raise TypeError(
                f"its index {index} would be lost: turn it into columns with reset_index(), or "
                "drop it with reset_index(drop=True)"
            )
    if all(_is_of_arrow(kind) for kind in frame.dtypes):
        return pa.Table.from_pandas(frame, preserve_index=False)
    rows: Rows = frame.to_dict("records")
    return rows


def _is_of_arrow(kind: Any) -> bool:
    if kind.__class__.__name__ in ("SparseDtype", "PeriodDtype", "IntervalDtype"):
        return False
    return getattr(kind, "kind", "") not in "Oc" or kind.__class__.__name__ in (
        *("StringDtype", "CategoricalDtype", "ArrowDtype"),
    )


def _check_names(names: list[Any]) -> None:
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"a column is named {shorten(name)}; names must be strings")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two columns are named {twice!r}")


def _plain_table(table: pa.Table) -> pa.Table | Rows:
    """Return the table in types that Parquet stores and that unify with related types.

    Dictionaries become plain values and string views become strings: the library that made the
    table chose these, not the user.
    """
    global _plain
    if _plain is not None and table.schema.equals(_plain):
        return table
    import pyarrow as pa

    from resumable_tasks.items import arrow
    from resumable_tasks.runners.values import storable

    schema = pa.schema([field.with_type(arrow.plain(field.type)) for field in table.schema])
    if not all(storable.is_storable(kind) for kind in schema.types):
        return storable.to_rows(table)
    if not schema.equals(table.schema):
        return arrow.cast(table, schema)
    _plain = schema
    return table
