"""Delta's types for columns, and the conversion of rows without changing any value."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import shorten

if TYPE_CHECKING:
    import pyarrow as pa

_REMEDY = (
    "Publish Parquet (without form='delta'), or let the handler return another type: int64 for a "
    "duration, text for a time or any other type"
)


def delta_schema(schema: pa.Schema) -> pa.Schema:
    """The schema of these columns in Delta.

    Raises `UsageError`, which names columns for which Delta has no type, and columns whose names
    Delta cannot distinguish.
    """
    import pyarrow as pa

    if not schema.names:
        raise UsageError(
            "the results have no columns, but a Delta table needs one",
            remedy="Let the handler return rows with at least one",
        )
    kinds = [(field, delta_type(field.type)) for field in schema]
    missing = [f"{shorten(field.name)} is {field.type}" for field, kind in kinds if kind is None]
    if missing:
        raise UsageError(
            f"Delta has no type for {'; '.join(missing[:5])}"
            + (f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""),
            safe="Nothing was written",
            remedy=_REMEDY,
        )
    same = _same_name(schema.names)
    if same is not None:
        raise UsageError(
            f"Delta cannot distinguish {same[0]!r} from {same[1]!r}: column names must differ in "
            "more than case",
            safe="Nothing was written",
            remedy="Rename one of them",
        )
    return pa.schema([pa.field(field.name, kind) for field, kind in kinds])


def delta_type(kind: pa.DataType) -> pa.DataType | None:
    """The Delta type for this type; None if there is none.

    It may not hold all values; `to_delta` refuses the others.
    """
    import pyarrow as pa

    if isinstance(kind, pa.BaseExtensionType):
        return delta_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return delta_type(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", "UTC" if kind.tz is not None else None)
    if pa.types.is_decimal(kind):
        fits = kind.precision <= 38 and 0 <= kind.scale <= kind.precision
        return pa.decimal128(kind.precision, kind.scale) if fits else None
    return _plain().get(kind) or _text_or_bytes(kind) or _nested(kind)


def _plain() -> dict[pa.DataType, pa.DataType]:
    import pyarrow as pa

    same = (
        *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.float32(), pa.float64(), pa.date32()),
    )
    return {kind: kind for kind in same} | {
        pa.uint8(): pa.int16(),
        pa.uint16(): pa.int32(),
        pa.uint32(): pa.int64(),
        pa.uint64(): pa.int64(),
        pa.float16(): pa.float32(),
        pa.date64(): pa.date32(),
        # The type is not known yet, and most readers cannot read Delta's "void".
        pa.null(): pa.string(),
    }


def _text_or_bytes(kind: pa.DataType) -> pa.DataType | None:
    import pyarrow as pa

    if kind in (pa.string(), pa.binary(), pa.large_string(), pa.large_binary()):
        return kind
    if kind == pa.string_view():
        return pa.large_string()
    bare = pa.types.is_fixed_size_binary(kind) or kind == pa.binary_view()
    return pa.large_binary() if bare else None


def _nested(kind: pa.DataType) -> pa.DataType | None:
    import pyarrow as pa

    if pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind) or pa.types.is_large_list(kind):
        inner = delta_type(kind.value_type)
        make = pa.large_list if pa.types.is_large_list(kind) else pa.list_
        return None if inner is None else make(inner)
    if pa.types.is_map(kind):
        key, item = delta_type(kind.key_type), delta_type(kind.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pa.types.is_struct(kind):
        fields = [(field.name, delta_type(field.type)) for field in kind]
        if not fields or _same_name([name for name, _ in fields]):
            return None
        whole = all(inner is not None for _, inner in fields)
        return pa.struct(fields) if whole else None
    return None


def _same_name(names: list[str]) -> tuple[str, str] | None:
    """Two names that differ only in case, or not at all; None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        if name.lower() in seen:
            return seen[name.lower()], name
        seen[name.lower()] = name
    return None


def to_delta(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The rows with the types of `delta_schema`.

    Raises `UsageError`, which names the column, if a value would change.
    """
    import pyarrow as pa

    columns = []
    for column, field in zip(table.columns, schema, strict=True):
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowException as error:
            raise UsageError(
                f"a value of column {shorten(field.name)}, which is {column.type}, does not fit "
                f"{field.type}, the corresponding Delta type: {error}",
                safe="Nothing was committed to the table",
                remedy=_REMEDY,
            ) from error
    return pa.table(columns, schema=schema)
