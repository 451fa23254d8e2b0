"""Plain values and their type → an Arrow array."""

from __future__ import annotations

from itertools import accumulate, chain
from typing import Any

import pyarrow as pa

from resumable_tasks.runners.values import jsontype


def array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Return the array. Raises Arrow's errors if a value does not fit, and `CannotEncode`."""
    if jsontype.is_json(kind):
        return jsontype.column(values)
    if not _has_extension(kind):
        return pa.array(values, kind)
    # Arrow cannot make nested extension types from Python values.
    if pa.types.is_struct(kind):
        return _structs(values, kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _lists(values, kind)
    bits = [None if value is None else value.bytes for value in values]
    return pa.ExtensionArray.from_storage(kind, pa.array(bits, kind.storage_type))


def _structs(values: list[Any], kind: pa.DataType) -> pa.Array:
    rows = [{} if value is None else value for value in values]
    children = [array([row.get(field.name) for row in rows], field.type) for field in kind]
    absent = pa.array([value is None for value in values], pa.bool_())
    return pa.StructArray.from_arrays(children, fields=list(kind), mask=absent)


def _lists(values: list[Any], kind: pa.DataType) -> pa.Array:
    there = [value if value is not None else () for value in values]
    offsets: list[int | None] = [0, *accumulate(map(len, there))]
    for at, value in enumerate(values):
        if value is None:
            offsets[at] = None
    within = array(list(chain.from_iterable(there)), kind.value_type)
    make = pa.LargeListArray if pa.types.is_large_list(kind) else pa.ListArray
    width = pa.int64() if pa.types.is_large_list(kind) else pa.int32()
    return make.from_arrays(pa.array(offsets, width), within, type=kind)


def _has_extension(kind: pa.DataType) -> bool:
    if isinstance(kind, pa.BaseExtensionType):
        return True
    return any(_has_extension(kind.field(at).type) for at in range(kind.num_fields))
