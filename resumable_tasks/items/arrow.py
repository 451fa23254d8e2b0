"""Works around gaps in Arrow's handling of its own types.

Arrow can make and read view and run-end-encoded types, but not take rows from them. An array of
`string` holds at most 2 GiB of text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from resumable_tasks.items.keytable import LONGEST

_LARGE = 2**30


def plain(kind: pa.DataType) -> pa.DataType:
    """Return the type with dictionaries, views and runs, at any depth, replaced by plain types."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    return _changed(kind, plain)


def movable(kind: pa.DataType) -> pa.DataType:
    """Return the type without views and runs, at any depth: Arrow cannot take rows from those."""
    if pa.types.is_dictionary(kind):
        values = movable(kind.value_type)
        return kind if values.equals(kind.value_type) else values
    return _changed(kind, movable)


def _changed(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    if pa.types.is_run_end_encoded(kind):
        return change(kind.value_type)
    if kind == pa.string_view():
        return pa.large_string()
    if kind == pa.binary_view():
        return pa.large_binary()
    return _within(kind, change)


def _within(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return the type with its inner types changed; list views become lists."""
    if isinstance(kind, pa.BaseExtensionType):
        return kind
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(change(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(change(kind.key_type), change(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(change(kind.value_type), kind.list_size)
    if pa.types.is_large_list(kind) or _is(kind, "is_large_list_view"):
        return pa.large_list(change(kind.value_type))
    if pa.types.is_list(kind) or _is(kind, "is_list_view"):
        return pa.list_(change(kind.value_type))
    return kind


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return the table with the same values in the types of this schema."""
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
    try:
        if "list_view" in str(array.type):
            raise pa.ArrowNotImplementedError("the cast gives offsets that are too short")
        return [array.cast(kind)]
    except pa.ArrowNotImplementedError:
        # Arrow cannot cast runs, or nested dictionaries of views, but it can read them.
        return [pa.array(array.to_pylist(), kind)]
    except pa.ArrowInvalid:
        if len(array) < 2:
            raise
        half = len(array) // 2  # the text is too long for one array
        return _cast(array.slice(0, half), kind) + _cast(array.slice(half), kind)


def record_batches(found: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Yield the record batches in types that rows can be taken from."""
    for batch in found:
        schema = pa.schema([field.with_type(movable(field.type)) for field in batch.schema])
        if schema.equals(batch.schema):
            yield batch
        else:
            yield from cast(pa.Table.from_batches([batch]), schema).to_batches()


def in_parts(items: Any) -> bool:
    """True for a dataset of Parquet files, whose row groups and columns can be read separately."""
    if not hasattr(items, "get_fragments"):
        return False
    import pyarrow.dataset as ds

    kind = isinstance(items, ds.FileSystemDataset) and isinstance(
        items.format, ds.ParquetFileFormat
    )
    return kind and getattr(items, "_scan_options", None) == {}  # no filter


def of_parts(
    dataset: Any, fields: Sequence[str], skip: Callable[[pa.RecordBatch], bool]
) -> Iterator[pa.RecordBatch]:
    """Yield the record batches of a dataset `in_parts`, without the row groups that are skipped.

    The key columns of each row group are read first and passed to ``skip``. If that returns true,
    no other column is read.
    """
    known = set(fields) <= set(dataset.schema.names)
    for fragment in dataset.get_fragments():
        for part in fragment.split_by_row_group():
            keys = part.to_table(schema=dataset.schema, columns=list(fields)) if known else None
            each = keys.combine_chunks().to_batches() if keys is not None else []
            if len(each) != 1 or not skip(each[0]):
                yield from part.to_batches(schema=dataset.schema)


def taken(table: pa.Table, indexes: Sequence[int]) -> pa.Table:
    """Return the rows at these indexes, in this order.

    Arrow's own `take` joins the chunks of a column, which fails if their text is too long.
    """
    wanted = pa.array(indexes, pa.int64())
    columns = [_taken(column, wanted) for column in table.columns]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _taken(column: pa.ChunkedArray, indexes: pa.Array) -> pa.ChunkedArray:
    kind = column.type
    if column.nbytes < _LARGE:
        return column.take(indexes)
    if isinstance(kind, pa.BaseExtensionType):
        stored = pa.chunked_array([chunk.storage for chunk in column.chunks], kind.storage_type)
        found = _taken(stored, indexes)
        pieces = [pa.ExtensionArray.from_storage(kind, chunk) for chunk in found.chunks]
        return pa.chunked_array(pieces, kind)
    wide = column.cast(large(kind))
    rows = max(1, len(indexes) * (_LARGE // 2) // column.nbytes)
    pieces = [
        piece
        for start in range(0, len(indexes), rows)
        for chunk in wide.take(indexes.slice(start, rows)).chunks
        for piece in _cast(chunk, kind)
    ]
    return pa.chunked_array(pieces, kind)


def with_large_offsets(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch in types that can hold more than 2 GiB of text."""
    schema = pa.schema([field.with_type(large(field.type)) for field in batch.schema])
    return batch.cast(schema)


def large(kind: pa.DataType) -> pa.DataType:
    """Return the type with 64-bit offsets at any depth."""
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.large_list(large(kind.value_type))
    return _within(kind, large)


def _is(kind: pa.DataType, name: str) -> bool:
    """True if the type passes this check of `pyarrow.types`, which older versions lack."""
    check: Callable[[Any], bool] | None = getattr(pa.types, name, None)
    return check is not None and bool(check(kind))


# The control characters; in the joined keys only newlines may occur.
_CONTROLS = bytes(range(32))


def key_text(batch: pa.RecordBatch, fields: Sequence[str], *, composite: bool) -> bytes | None:
    """Return the canonical keys of these rows, newline-ended, without a Python object for each.

    None if that is not possible: the rows must then be handled one by one.
    """
    import pyarrow.compute as pc

    if not fields or not len(batch) or not set(fields) <= set(batch.schema.names):
        return None
    columns = [batch.column(name) for name in fields]
    text = [pa.types.is_string(c.type) or pa.types.is_large_string(c.type) for c in columns]
    others = (c for c, is_text in zip(columns, text, strict=True) if not is_text)
    if any(c.null_count for c in columns) or not all(pa.types.is_integer(c.type) for c in others):
        return None
    parts: list[Any] = ["[" if composite else ""]
    for column, is_text in zip(columns, text, strict=True):
        quote = '"' if is_text else ""
        parts[-1] += quote
        parts += [column.cast(pa.large_string()), f"{quote},"]
    parts[-1] = parts[-1][:-1] + ("]\n" if composite else "\n")
    wide = [pa.scalar(p, pa.large_string()) if isinstance(p, str) else p for p in parts]
    lines = pc.binary_join_element_wise(*wide, pa.scalar("", pa.large_string()))
    sizes = pc.binary_length(lines)
    found = bytes(lines.buffers()[2])[: pc.sum(sizes).as_py()]
    # Only if nothing needs an escape in JSON, no part is empty and no key needs a digest.
    plain = found.count(b'"') == 2 * sum(text) * len(batch) and b'""' not in found
    if not plain or b"\\" in found or pc.max(sizes).as_py() > LONGEST + 1:
        return None
    return found if len(found.translate(None, _CONTROLS)) == len(found) - len(batch) else None
