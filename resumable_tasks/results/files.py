"""Writes rows as Parquet files of about a given size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow as pa

TARGET_BYTES = 128_000_000
_ROW_GROUP_BYTES = 32_000_000
# The initial estimate of the bytes of Arrow memory for one byte of Parquet.
_FIRST_RATIO = 4.0


def write_files(
    rows: Iterator[pa.Table],
    schema: pa.Schema,
    target_bytes: int,
    write_one: Callable[[pa.Table], int],
) -> tuple[int, int]:
    """Call ``write_one`` with the rows of each file. Returns the totals of rows and bytes.

    ``write_one`` returns the number of bytes that it wrote. Without any rows there is one file.
    """
    import pyarrow as pa

    waiting: list[pa.Table] = []
    in_memory = files = count = size = 0
    ratio = _FIRST_RATIO

    def write() -> None:
        nonlocal in_memory, files, size, ratio
        written = write_one(pa.concat_tables(waiting) if waiting else schema.empty_table())
        ratio = max(1.0, in_memory / max(written, 1))
        files += 1
        size += written
        waiting.clear()
        in_memory = 0

    for part in rows:
        count += part.num_rows
        for piece in _pieces(part, int(target_bytes * ratio)):
            waiting.append(piece)
            in_memory += piece.nbytes
            if in_memory >= target_bytes * ratio:
                write()
    if waiting or not files:
        write()
    return count, size


def _pieces(part: pa.Table, limit: int) -> Iterator[pa.Table]:
    """Yield a table in slices of at most about this many bytes of memory."""
    if part.nbytes <= limit:
        yield part
        return
    rows = max(1, part.num_rows * limit // part.nbytes)
    for start in range(0, part.num_rows, rows):
        yield part.slice(start, rows)


def write_parquet(rows: pa.Table, sink: Any) -> None:
    """Write a Parquet file, optimised for column readers, to a file object or Arrow stream."""
    import pyarrow.parquet as pq

    per_row = max(1, rows.nbytes // max(rows.num_rows, 1))
    pq.write_table(
        rows,
        sink,
        compression="zstd",
        row_group_size=max(1, _ROW_GROUP_BYTES // per_row),
        write_page_checksum=True,
    )
