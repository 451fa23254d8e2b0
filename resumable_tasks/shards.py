"""Rows ↔ Parquet: one schema over all shards, encoding, checksums, reading back."""

from __future__ import annotations

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import CheckpointDamaged, ResultConflict
from resumable_tasks.faults import fault_point
from resumable_tasks.model import Shard
from resumable_tasks.store.base import Store

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads

FOLDER = "shards"


def new_path(epoch: int) -> str:
    """A path that no other shard has; it names the epoch, so a sweep knows whose it is."""
    return f"{FOLDER}/e{epoch}-{secrets.token_hex(8)}.parquet"


def epoch_of(path: str) -> int:
    """The epoch in the path of a shard, or of anything in its folder (0 if it names none)."""
    digits = path.removeprefix(f"{FOLDER}/e").partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def normalise(table: pa.Table) -> pa.Table:
    """The table with every column of a type that Parquet keeps and that unifies with its kin.

    Categories become their values, string views strings: which of them a library produced says
    nothing of the result.
    """
    import pyarrow as pa

    plain = [field.with_type(_plain(field.type)) for field in table.schema]
    schema = pa.schema(plain)
    return table if schema.equals(table.schema) else table.cast(schema)


def _plain(kind: pa.DataType) -> pa.DataType:
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    return kind


def unify(current: pa.Schema | None, new: pa.Schema, batch: str) -> pa.Schema:
    """The schema that holds both, by Arrow's permissive promotion.

    Null with anything; numbers by width; new columns and struct fields. Whether the values then
    stay what they are is for `keeps` to say.
    Raises `ResultConflict` with the column, both types and the batch if there is none.
    """
    if current is None or current.equals(new):
        return new
    import pyarrow as pa

    try:
        return pa.unify_schemas([current, new], promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        pass  # found out below, with the column
    for field in new:
        before = current.field(field.name) if field.name in current.names else field
        try:
            pa.unify_schemas(
                [pa.schema([before]), pa.schema([field])], promote_options="permissive"
            )
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise conflict(field.name, before.type, field.type, batch) from error
    raise AssertionError("schemas that conflict have a column that does")


def conflict(column: str, before: pa.DataType, now: pa.DataType, batch: str) -> ResultConflict:
    return ResultConflict(
        f"column {column!r} of the results is {before} in the rows before, and {now} in batch "
        f"{batch}: no type holds both. Let the handler return one type; or, if the new one is "
        "meant, use a new version= with on_version_change='restart'"
    )


def changed(before: pa.Schema, after: pa.Schema) -> list[str]:
    """The columns of the first schema that have another type in the second."""
    return [field.name for field in before if not field.type.equals(after.field(field.name).type)]


def keeps(rows: pa.Table, column: str, schema: pa.Schema) -> bool:
    """Whether this column's values stay what they are in the type that the schema gives it.

    Promotion looks at types alone: it would make 2⁵³ + 1 a float, text bytes, and the year 9999
    nanoseconds.
    """
    import pyarrow as pa

    if column not in rows.column_names:
        return True
    before, kind = rows.column(column), schema.field(column).type
    try:
        there, back = before.cast(kind), _back(before.type, kind)
        kept = _family(before.type, kind) and bool(there.cast(back).equals(before.cast(back)))
        if kept and "decimal" in str(before.type):
            # A float comes back as the decimal that it was made of, and is printed as another.
            return all(map(_reads_as, there.to_pylist(), before.to_pylist()))
        return kept
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        return False


def _reads_as(found: Any, wanted: Any) -> bool:
    """Whether a decimal that has become a float is read as it was, at any depth."""
    if isinstance(wanted, Decimal) and isinstance(found, float):
        return Decimal(repr(found)) == wanted
    if isinstance(wanted, list) and isinstance(found, list):
        return all(map(_reads_as, found, wanted))
    if isinstance(wanted, dict) and isinstance(found, dict):
        return all(_reads_as(found.get(name), value) for name, value in wanted.items())
    return True


def _back(before: pa.DataType, after: pa.DataType) -> pa.DataType:
    """The type before, but for its nulls, to which nothing can be cast."""
    import pyarrow as pa

    if pa.types.is_null(before):
        return after
    if pa.types.is_struct(before) and pa.types.is_struct(after):
        return pa.struct(
            [field.with_type(_back(field.type, after.field(field.name).type)) for field in before]
        )
    if pa.types.is_list(before) and hasattr(after, "value_type"):
        return pa.list_(_back(before.value_type, after.value_type))
    return before


def _family(before: pa.DataType, after: pa.DataType) -> bool:
    """Whether text stays text, at any depth, and an empty struct is not filled."""
    import pyarrow as pa

    if pa.types.is_struct(before) and pa.types.is_struct(after):
        return all(_family(field.type, after.field(field.name).type) for field in before)
    if hasattr(before, "value_type") and hasattr(after, "value_type"):
        return _family(before.value_type, after.value_type)
    text = (pa.types.is_string, pa.types.is_large_string)
    if pa.types.is_null(before):
        return True
    return any(is_a(before) for is_a in text) == any(is_a(after) for is_a in text)


def unwritable(kind: pa.DataType) -> bool:
    """Whether a type holds, at any depth, a struct without fields, which Parquet cannot write."""
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return kind.num_fields == 0 or any(unwritable(field.type) for field in kind)
    return hasattr(kind, "value_type") and unwritable(kind.value_type)


def schema_to_text(schema: pa.Schema) -> str:
    """A schema as the journal keeps it: Arrow's own IPC message in base64."""
    return base64.b64encode(schema.serialize()).decode()


def schema_from_text(text: str) -> pa.Schema:
    import pyarrow as pa

    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of one schema, as one."""
    import pyarrow as pa

    if len(tables) == 1:
        return tables[0]
    # Parquet writes one long column at half the cost of many short ones.
    return pa.concat_tables(tables).combine_chunks()


def encode(table: pa.Table) -> memoryview:
    """A table as the bytes of a Parquet file. Encoded in memory: a file is never half there."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        # A shard is small and read whole: dictionaries and statistics cost more than they save.
        use_dictionary=False,
        write_statistics=False,
        write_page_checksum=True,
    )
    return memoryview(sink.getvalue())


def write(store: Store, epoch: int, table: pa.Table, keys: int) -> Shard:
    """Write a shard, durable on return, under a name that no commit knows yet."""
    data = encode(table)
    path = new_path(epoch)
    fault_point("shard.before_put")
    store.put(path, data)
    fault_point("shard.written")
    checksum = blake2b(data, digest_size=16).hexdigest()
    return Shard(path, table.num_rows, len(data), checksum, keys)


def read(store: Store, shard: Shard) -> pa.Table:
    """A shard's rows, verified: bytes, checksum and row count are those of its commit.

    Raises `CheckpointDamaged` that names the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    data = checked_bytes(store, shard)
    # The footer of a small file can promise a very large table; the commit knows better.
    source = pq.ParquetFile(pa.BufferReader(data))
    if source.metadata.num_rows != shard.rows:
        raise _damaged(shard, f"it holds {source.metadata.num_rows} rows, not {shard.rows}")
    # Not on Arrow's threads: one that lets go of Python's bytes while the interpreter shuts down
    # aborts the process, with all work done (seen in 22 of 60 short scripts, pyarrow 26).
    return source.read(use_threads=False)


def checked_bytes(store: Store, shard: Shard) -> bytes:
    """A shard's bytes, verified against its commit. Raises `CheckpointDamaged`."""
    try:
        data = store.read(shard.path)
    except FileNotFoundError:
        raise _damaged(shard, "it is missing") from None
    if len(data) != shard.bytes:
        raise _damaged(shard, f"it is {len(data):,} bytes long, not {shard.bytes:,}")
    if blake2b(data, digest_size=16).hexdigest() != shard.checksum:
        raise _damaged(shard, "its checksum does not match its commit")
    return data


def _damaged(shard: Shard, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"{shard.path}: {what}", files=(shard.path,))


def cast(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns and types of the schema; columns that it lacks are null."""
    import pyarrow as pa

    if table.schema.equals(schema):
        return table
    columns = [
        table.column(field.name).cast(field.type)
        if field.name in table.column_names
        else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def dataset(store: Store, shards: Sequence[Shard], schema: pa.Schema) -> pads.Dataset:
    """A dataset over these shards, lazily read; damaged pages are refused when they are met."""
    import pyarrow.dataset as pads

    if not shards:
        return pads.dataset(schema.empty_table())
    filesystem, root = store.filesystem()
    verify = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    return pads.dataset(
        [f"{root}/{shard.path}" for shard in shards],
        schema=schema,
        filesystem=filesystem,
        format=pads.ParquetFileFormat(default_fragment_scan_options=verify),
    )


@dataclass(frozen=True, slots=True)
class ShardWriter:
    """How a remote worker puts its rows away itself: it crosses to the worker's process."""

    store: Store
    epoch: int

    def __call__(self, table: pa.Table, keys: int) -> Shard:
        return write(self.store, self.epoch, table, keys)
