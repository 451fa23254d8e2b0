"""Shards: writing rows as Parquet files, and reading them back verified."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.hashes import blake2b
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import schemas
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.runners.outcome import Shard

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

FOLDER = "shards"
# Bytes in memory above which a table stays in chunks: text has offsets of 32 bits.
_LARGE = 2**30
# Bytes in memory of one row group in a shard that is written from many tables.
_GROUP_BYTES = 32_000_000
_OPTIONS: dict[str, Any] = {
    "compression": "zstd",
    # A shard is read whole: dictionaries and statistics cost more than they save.
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,
}


def new_path(epoch: int) -> str:
    """A unique path for a shard. It contains the epoch, which tells a sweep whose shard it is."""
    return f"{FOLDER}/e{epoch}-{token(8)}.parquet"


def epoch_of(path: str) -> int:
    """The epoch in the path of a shard or of another file in its folder; 0 if there is none."""
    digits = path.removeprefix(f"{FOLDER}/e").partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


def concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Concatenate tables of one schema."""
    import pyarrow as pa

    if len(tables) == 1:
        return tables[0]
    found = pa.concat_tables(tables)
    # Writing one long chunk to Parquet costs half as much as many short ones.
    return found if found.nbytes > _LARGE else found.combine_chunks()


def encode(table: pa.Table) -> memoryview:
    """The table as the bytes of a Parquet file, encoded in memory so that no file is partial."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        # Arrow cannot read lists of text of more than 2 GiB in one group.
        row_group_size=max(1, table.num_rows * _LARGE // table.nbytes)
        if table.nbytes > _LARGE
        else None,
        **_OPTIONS,
    )
    return memoryview(sink.getvalue())


def write(store: Store, epoch: int, table: pa.Table, keys: int) -> Shard:
    """Write a shard under a new name that no commit names yet; durable on return."""
    return _put(store, epoch, encode(table), table.num_rows, keys)


def _put(store: Store, epoch: int, data: memoryview, rows: int, keys: int) -> Shard:
    path = new_path(epoch)
    fault_point("shard.before_put")
    store.put(path, data)
    fault_point("shard.written")
    checksum = blake2b(data, digest_size=16).hexdigest()
    return Shard(path, rows, len(data), checksum, keys)


def write_all(
    store: Store, epoch: int, tables: Iterable[pa.Table], schema: pa.Schema, keys: int
) -> Shard:
    """`write` all of these tables as one shard, with at most one group of rows in memory.

    Raises what iterating over ``tables`` raises; nothing is written then.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    rows = 0
    writer = pq.ParquetWriter(sink, schema, **_OPTIONS)
    try:
        for group in _groups(tables):
            rows += group.num_rows
            writer.write_table(group)
    finally:
        writer.close()  # releases the sink, also after an error
    return _put(store, epoch, memoryview(sink.getvalue()), rows, keys)


def _groups(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Concatenate tables to about the size of a row group."""
    waiting: list[pa.Table] = []
    size = 0
    for table in tables:
        waiting.append(table)
        size += table.nbytes
        if size >= _GROUP_BYTES:
            yield concat(waiting)
            waiting, size = [], 0
    if waiting:
        yield concat(waiting)


def read(store: Store, shard: Shard) -> pa.Table:
    """A shard's rows. Size, checksum and row count are verified against its commit.

    Raises `CheckpointDamaged`, which names the file.
    """
    return _decoded(store, shard, checked_bytes(store, shard))


def read_all(store: Store, wanted: Iterable[Shard]) -> Iterator[pa.Table]:
    """`read` each of these shards in order, ahead of their use where reads are slow."""
    each = list(wanted)
    for shard, data in zip(each, checked_each(store, each), strict=True):
        if isinstance(data, CheckpointDamaged):
            raise data
        yield _decoded(store, shard, data)


def read_groups(store: Store, wanted: Iterable[Shard]) -> Iterator[pa.Table]:
    """`read_all`, one row group at a time: a small file may hold rows that need much memory."""
    each = list(wanted)
    for shard, data in zip(each, checked_each(store, each), strict=True):
        if isinstance(data, CheckpointDamaged):
            raise data
        with _decoding(store, shard):
            source = _opened(store, shard, data)
            for at in range(source.metadata.num_row_groups):
                yield source.read_row_group(at, use_threads=False)


def read_unnamed(store: Store, path: str) -> pa.Table:
    """The rows of a shard that no record names, verified only by the checksums inside the file.

    Raises `CheckpointDamaged` and ``FileNotFoundError``.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from resumable_tasks.runners.values import jsontype  # noqa: F401 - Parquet names its type

    try:
        data = pa.BufferReader(store.read(path))
        return _read(pq.ParquetFile(data, page_checksum_verification=True))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        what = f"it cannot be read as Parquet: {error}"
        raise CheckpointDamaged(what, files=(path,), place=store.url) from error


def _decoded(store: Store, shard: Shard, data: bytes) -> pa.Table:
    with _decoding(store, shard):
        return _read(_opened(store, shard, data))


@contextmanager
def _decoding(store: Store, shard: Shard) -> Iterator[None]:
    """Turn Arrow's errors about a shard into `CheckpointDamaged`."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise damaged(store, shard, f"it cannot be read as Parquet: {error}") from error


def _opened(store: Store, shard: Shard, data: bytes) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from resumable_tasks.runners.values import jsontype  # noqa: F401 - Parquet names its type

    source = pq.ParquetFile(pa.BufferReader(data))
    rows = source.metadata.num_rows
    # The footer of a small damaged file can promise a very large table; the commit has the
    # true number.
    if rows != shard.rows:
        raise damaged(store, shard, f"it holds {rows} rows, not {shard.rows}")
    return source


def _read(source: pq.ParquetFile) -> pa.Table:
    import pyarrow as pa

    # Not on Arrow's threads: a thread that releases Python's bytes while the interpreter shuts
    # down aborts the process after all work is done (in 22 of 60 short scripts, pyarrow 26).
    groups = range(source.metadata.num_row_groups)
    if len(groups) < 2:
        return source.read(use_threads=False)
    return pa.concat_tables([source.read_row_group(at, use_threads=False) for at in groups])


def checked_bytes(store: Store, shard: Shard) -> bytes:
    """A shard's bytes, verified against its commit. Raises `CheckpointDamaged`."""
    (found,) = checked_each(store, [shard])
    if isinstance(found, CheckpointDamaged):
        raise found
    return found


def checked_each(store: Store, wanted: Sequence[Shard]) -> Iterator[bytes | CheckpointDamaged]:
    """`checked_bytes` of each of these shards; yields the error in place of damaged bytes."""
    found = disk.read_each(store, [(shard.path, shard.bytes) for shard in wanted])
    for shard, data in zip(wanted, found, strict=True):
        if isinstance(data, FileNotFoundError):
            yield damaged(store, shard, "it is missing")
        elif isinstance(data, CheckpointDamaged):
            yield data
        else:
            try:
                yield _checked(store, shard, data)
            except CheckpointDamaged as error:
                yield error


def _checked(store: Store, shard: Shard, data: bytes) -> bytes:
    if len(data) != shard.bytes:
        raise damaged(store, shard, f"it is {len(data):,} bytes long, not {shard.bytes:,}")
    if blake2b(data, digest_size=16).hexdigest() != shard.checksum:
        raise damaged(store, shard, "its checksum does not match its commit")
    return data


def damaged(store: Store, shard: Shard, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(what, files=(shard.path,), place=store.url)


def check_sizes(
    store: Store, expected: Iterable[Shard], listed: Mapping[str, int] | None = None
) -> None:
    """Raise `CheckpointDamaged` unless each shard exists with its size. Reads no shard.

    ``listed`` is the folder's listing, if the caller has it already.
    """
    there = store.list(FOLDER) if listed is None else listed
    bad = [shard.path for shard in expected if there.get(shard.path) != shard.bytes]
    if bad:
        what = "its size has changed" if bad[0] in there else "it is missing"
        more = f", and {len(bad) - 1:,} more are damaged" if len(bad) > 1 else ""
        raise CheckpointDamaged(what + more, files=tuple(bad), place=store.url)


def dataset(store: Store, shards: Sequence[Shard], schema: pa.Schema) -> pads.Dataset:
    """A dataset over these shards, which reads rows when asked for them.

    Verifies each file against its commit once, here; reading refuses a page that is damaged later.
    Reads a shard now if only Python can convert its columns to the current types, such as JSON.
    Raises `CheckpointDamaged`.
    """
    import pyarrow as pa
    import pyarrow.dataset as pads
    import pyarrow.parquet as pq

    if not shards:
        return pads.dataset(schema.empty_table())
    if not isinstance(store, disk.Files):
        return pads.dataset([schemas.cast(rows, schema) for rows in read_all(store, shards)])
    filesystem, root = store.filesystem()
    verify = pads.ParquetFragmentScanOptions(page_checksum_verification=True)
    files, others = [], []
    for shard in shards:
        written = pq.read_schema(pa.BufferReader(checked_bytes(store, shard)))
        if schemas.is_cast_by_arrow(written, schema):
            files.append(f"{root}/{shard.path}")
        else:
            others.append(schemas.cast(read(store, shard), schema))
    found = pads.dataset(
        files,
        schema=schema,
        filesystem=filesystem,
        format=pads.ParquetFileFormat(default_fragment_scan_options=verify),
    )
    return pads.dataset([found, pads.dataset(others)]) if others else found


@frozen
class ShardWriter:
    """Writes a remote worker's rows, in the worker's own process."""

    store: Store
    epoch: int

    def __call__(self, table: pa.Table, keys: int) -> Shard:
        return write(self.store, self.epoch, table, keys)
