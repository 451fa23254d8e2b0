"""The Arrow types that Parquet can store."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from resumable_tasks.runners.values.jsontype import is_json


def is_storable(kind: pa.DataType) -> bool:
    """False if a type contains, at any depth, one that Parquet cannot write or reads back as
    another.
    """
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
    """Return the rows of a table as dicts."""
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows
