"""Arrow's types and arrays, as far as Arrow itself does not handle them.

Views and runs can be made and read, and not be taken from; text of more than 2 GiB cannot stand in
one array of `string`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from resumable_tasks.items.keytable import LONGEST

_LARGE = 2**30


def plain(kind: pa.DataType) -> pa.DataType:
    """The type with categories, views and runs, at any depth, as the values that they hold."""
    if pa.types.is_dictionary(kind):
        return plain(kind.value_type)
    return _changed(kind, plain)


def movable(kind: pa.DataType) -> pa.DataType:
    """The type without views and runs, at any depth, of which Arrow takes no elements."""
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
    """The type with what is within it changed; views of lists are lists."""
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
    """The table in other types for the same values."""
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
        # Runs, and dictionaries of views within others: Arrow casts none, and reads them all.
        return [pa.array(array.to_pylist(), kind)]
    except pa.ArrowInvalid:
        if len(array) < 2:
            raise
        half = len(array) // 2  # the text of all is too long for one array
        return _cast(array.slice(0, half), kind) + _cast(array.slice(half), kind)


def record_batches(found: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The record batches in types of which a run can choose rows."""
    for batch in found:
        schema = pa.schema([field.with_type(movable(field.type)) for field in batch.schema])
        if schema.equals(batch.schema):
            yield batch
        else:
            yield from cast(pa.Table.from_batches([batch]), schema).to_batches()


def in_parts(items: Any) -> bool:
    """True for a dataset of Parquet files, of which parts can be read, and columns of them."""
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
    """The record batches of a dataset `in_parts`, without the row groups that are skipped.

    Of each row group the columns of the key are read first, for ``skip`` to look at: if all its
    items are completed, no other column is.
    """
    known = set(fields) <= set(dataset.schema.names)
    for fragment in dataset.get_fragments():
        for part in fragment.split_by_row_group():
            keys = part.to_table(schema=dataset.schema, columns=list(fields)) if known else None
            each = keys.combine_chunks().to_batches() if keys is not None else []
            if len(each) != 1 or not skip(each[0]):
                yield from part.to_batches(schema=dataset.schema)


def taken(table: pa.Table, indexes: Sequence[int]) -> pa.Table:
    """The rows at these indexes, in this order.

    Arrow puts the chunks of a column together for that, which it cannot if their text is long.
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
    """The batch in types whose text may be longer than 2 GiB."""
    schema = pa.schema([field.with_type(large(field.type)) for field in batch.schema])
    return batch.cast(schema)


def large(kind: pa.DataType) -> pa.DataType:
    """The type with offsets of 64 bits at any depth."""
    if pa.types.is_string(kind):
        return pa.large_string()
    if pa.types.is_binary(kind):
        return pa.large_binary()
    if pa.types.is_list(kind):
        return pa.large_list(large(kind.value_type))
    return _within(kind, large)


def _is(kind: pa.DataType, name: str) -> bool:
    """True if the type is one that older versions of Arrow do not know, and this one does."""
    check: Callable[[Any], bool] | None = getattr(pa.types, name, None)
    return check is not None and bool(check(kind))


# Of control characters, a newline is put in between.
_CONTROLS = bytes(range(32))


def key_text(batch: pa.RecordBatch, fields: Sequence[str], *, composite: bool) -> bytes | None:
    """The canonical keys of these rows, newline-ended, made without an object of Python for each.

    None where they cannot be made so: the rows have to be looked at one by one.
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
    # Nothing in them is escaped in JSON, no part is an empty string, and no key a digest.
    plain = found.count(b'"') == 2 * sum(text) * len(batch) and b'""' not in found
    if not plain or b"\\" in found or pc.max(sizes).as_py() > LONGEST + 1:
        return None
    return found if len(found.translate(None, _CONTROLS)) == len(found) - len(batch) else None
