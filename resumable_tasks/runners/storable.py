"""Types of Arrow: which Parquet keeps, and which are only a library's way to hold others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from resumable_tasks.runners import build
from resumable_tasks.runners.jsontype import is_json

_LARGEST = 2**30


def plain(kind: pa.DataType) -> pa.DataType:
    """The type with categories, views and runs, at any depth, as the values that they hold."""
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(plain(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind) or _is(kind, "is_large_list_view"):
        return pa.large_list(plain(kind.value_type))
    if pa.types.is_list(kind) or _is(kind, "is_list_view"):
        return pa.list_(plain(kind.value_type))
    return kind


def is_storable(kind: pa.DataType) -> bool:
    """False if a type holds, at any depth, what Parquet cannot write, or reads as another."""
    if is_json(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return kind.extension_name == "arrow.uuid" or is_storable(kind.storage_type)
    if pa.types.is_struct(kind) and not kind.num_fields:
        return False
    if pa.types.is_interval(kind) or pa.types.is_union(kind):
        return False
    return all(is_storable(kind.field(at).type) for at in range(kind.num_fields))


def to_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dicts."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in other types of the same values. A chunk's text may be too long for one array."""
    columns = [
        pa.chunked_array(
            [piece for chunk in column.chunks for piece in _cast(chunk, field.type)], field.type
        )
        for column, field in zip(table.columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _cast(array: pa.Array, kind: pa.DataType) -> list[pa.Array]:
    if array.type.equals(kind):
        return [array]
    if len(array) > 1 and array.nbytes > _LARGEST:
        half = len(array) // 2
        return _cast(array.slice(0, half), kind) + _cast(array.slice(half), kind)
    try:
        return [array.cast(kind)]
    except pa.ArrowNotImplementedError:
        # Runs, and dictionaries of views within others: Arrow casts none, and reads them all.
        return [build.array(array.to_pylist(), kind)]


def _is(kind: pa.DataType, name: str) -> bool:
    """True if the type is one that older versions of Arrow do not know, and this one does."""
    check: Callable[[Any], bool] | None = getattr(pa.types, name, None)
    return check is not None and bool(check(kind))
