"""Committed rows for others to read: in memory, or as a compacted Parquet dataset in a folder."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log, text
from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.form import CommittedRows, Reader
from resumable_tasks.errors import StoreError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.results.swap import (
    MARKER,
    ONE_FILE,
    alone,
    flush_folder,
    make_parents,
    new_stage,
    put_in_place,
    refuse_foreign,
    remove_published,
)

if TYPE_CHECKING:
    import pyarrow as pa

TARGET_BYTES = 128_000_000
_ROW_GROUP_BYTES = 32_000_000
# Bytes of Arrow memory that become about one byte of Parquet, to begin with.
_FIRST_RATIO = 4.0


@dataclass(frozen=True, slots=True)
class Published:
    """The result of `publish`. ``files`` are names in ``dest``, ``bytes`` their sum."""

    dest: str
    rows: int
    files: tuple[str, ...]
    bytes: int


def table(rows: CommittedRows) -> pa.Table:
    """All rows in memory, in commit order."""
    import pyarrow as pa

    parts = list(rows.tables())
    return pa.concat_tables(parts) if parts else rows.schema.empty_table()


def ordered_table(rows: CommittedRows, positions: KeyTable | None) -> pa.Table:
    """All rows in memory: by item, then those of other items by key.

    Without positions all are by key. Integers come before strings.
    """
    from resumable_tasks.items import arrow

    found = table(rows)
    if found.num_rows == 0:
        return found
    lines = KeyScheme.of(rows.key).lines_of(found, positions or ())
    order: list[tuple[Any, ...]] = []
    for at, (line, key) in enumerate(zip(lines, keys.parse_lines(keys.join(lines)), strict=True)):
        position = positions.get(line) if positions is not None else None
        order.append((1, keys.sortable(key), at) if position is None else (0, position, at))
    return arrow.taken(found, [entry[-1] for entry in sorted(order)])


def given_rows(rows: CommittedRows, given: KeyTable) -> CommittedRows:
    """The rows of these items, without those of all others."""
    import pyarrow as pa

    scheme = KeyScheme.of(rows.key)

    def tables() -> Iterator[pa.Table]:
        for part in rows.tables():
            lines = scheme.lines_of(part, given)
            yield part.filter(pa.array([line in given for line in lines], pa.bool_()))

    return replace(rows, tables=tables)


def publish(
    reader: Reader,
    dest: str | Path,
    *,
    ordered: bool = False,
    positions: KeyTable | None = None,
    given: KeyTable | None = None,
    target_bytes: int = TARGET_BYTES,
) -> Published:
    """Write all committed rows to the folder ``dest``, as Parquet files of about ``target_bytes``.

    A reader of ``dest`` sees the dataset that was there before, or this one, whole: it is written
    beside ``dest``, flushed, and put in its place in one step. A dataset of one file keeps the
    file's name, so that even a reader in the middle goes on undisturbed. Where the old one or the
    new one has several, a reader in the middle finds none of the old ones any more: an error, or
    no rows at all, and never some. ``ordered`` holds all rows in memory; without it memory is
    bounded by a file's rows. Of ``given`` items only, if there are any.

    Raises `UsageError` if ``dest`` holds anything that `publish` has not written there,
    `CheckpointDamaged` if a shard does not match its commit; ``dest`` is then as it was.
    """
    reader.check_publishable()
    target = Path(os.path.realpath(dest))
    with _io_errors(target):
        refuse_foreign(target)

    def write(rows: CommittedRows) -> Published:
        rows = rows if given is None else given_rows(rows, given)
        with _io_errors(target):
            return _write(rows, target, ordered, positions, target_bytes)

    result = reader.read(write)
    published = text.count(result.rows, "row"), text.count(len(result.files), "file")
    log.info("published %s in %s to %s", *published, target)
    return result


def _write(
    rows: CommittedRows,
    target: Path,
    ordered: bool,
    positions: KeyTable | None,
    target_bytes: int,
) -> Published:
    make_parents(target)
    stage = new_stage(target)
    try:
        tables = iter([ordered_table(rows, positions)]) if ordered else rows.tables()
        files, count, size = _write_files(stage, tables, rows.schema, target_bytes)
        result = Published(str(target), count, tuple(files), size)
        _write_marker(stage, rows, result)
        flush_folder(stage)
        fault_point("publish.staged")
        with alone(target):
            # Another publisher, or program, may have been there meanwhile.
            refuse_foreign(target)
            put_in_place(stage, target)
    except BaseException:
        remove_published(stage)
        raise
    return result


def _write_files(
    stage: Path, rows: Iterator[pa.Table], unified: pa.Schema, target_bytes: int
) -> tuple[list[str], int, int]:
    """The Parquet files of a dataset; their names, rows and bytes."""
    import pyarrow as pa

    paths: list[Path] = []
    waiting: list[pa.Table] = []
    in_memory = count = size = 0
    ratio = _FIRST_RATIO

    def write_one() -> None:
        nonlocal in_memory, size, ratio
        path = stage / f"{len(paths)}.parquet"
        whole = pa.concat_tables(waiting) if waiting else unified.empty_table()
        _write_file(path, whole)
        paths.append(path)
        ratio = max(1.0, in_memory / max(path.stat().st_size, 1))
        size += path.stat().st_size
        waiting.clear()
        in_memory = 0

    for part in rows:
        count += part.num_rows
        for piece in _pieces(part, int(target_bytes * ratio)):
            waiting.append(piece)
            in_memory += piece.nbytes
            if in_memory >= target_bytes * ratio:
                write_one()
    if waiting or not paths:
        write_one()
    # Files of several have a name that no other dataset has: a reader that listed the folder
    # before the exchange finds none of them after it, rather than some.
    stamp = secrets.token_hex(4)
    names = [f"part-{stamp}-{i:05d}.parquet" for i in range(len(paths))]
    if len(paths) == 1:
        names = [ONE_FILE]
    for path, name in zip(paths, names, strict=True):
        path.rename(stage / name)
    return names, count, size


def _pieces(part: pa.Table, limit: int) -> Iterator[pa.Table]:
    """A table in slices of at most about this many bytes of memory."""
    if part.nbytes <= limit:
        yield part
        return
    rows = max(1, part.num_rows * limit // part.nbytes)
    for start in range(0, part.num_rows, rows):
        yield part.slice(start, rows)


def _write_file(path: Path, rows: pa.Table) -> None:
    import pyarrow.parquet as pq

    per_row = max(1, rows.nbytes // max(rows.num_rows, 1))
    with open(path, "xb") as file:
        pq.write_table(
            rows,
            file,
            compression="zstd",
            row_group_size=max(1, _ROW_GROUP_BYTES // per_row),
            write_page_checksum=True,
        )
        file.flush()
        os.fsync(file.fileno())


def _write_marker(stage: Path, rows: CommittedRows, result: Published) -> None:
    """Write what says of a folder that it may be replaced: which files in it are ours."""
    record = {**rows.identity, "published": now(), **asdict(result)}
    with open(stage / MARKER, "x", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


@contextlib.contextmanager
def _io_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot publish to {target}: {error}",
            safe="The dataset that was there is untouched",
            remedy="Fix the cause and publish again",
        ) from error
