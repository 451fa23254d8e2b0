"""Committed rows for others to read: in memory, or as a compacted Parquet dataset in a folder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resumable_tasks import keys, log, shards
from resumable_tasks.checkpoint import RepairHint, read_manifest
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.faults import fault_point
from resumable_tasks.journal import Journal, now
from resumable_tasks.keytable import KeyTable
from resumable_tasks.manifest import Manifest
from resumable_tasks.reading import anew_if_swept, reading
from resumable_tasks.state import State
from resumable_tasks.store.base import Store

if TYPE_CHECKING:
    import pyarrow as pa

TARGET_BYTES = 128_000_000
MARKER = "_published.json"
_ROW_GROUP_BYTES = 32_000_000
# Bytes of Arrow memory that become about one byte of Parquet, to begin with.
_FIRST_RATIO = 4.0


@dataclass(frozen=True, slots=True)
class Published:
    """What was published. ``files`` are names in ``dest``, ``bytes`` their sum."""

    dest: str
    rows: int
    files: tuple[str, ...]
    bytes: int


def schema(state: State) -> pa.Schema:
    """The one schema of all committed rows."""
    import pyarrow as pa

    return shards.schema_from_text(state.schema) if state.schema else pa.schema([])


def tables(store: Store, state: State) -> Iterator[pa.Table]:
    """The committed rows, a shard at a time, verified, in the one schema, in commit order."""
    unified = schema(state)
    for shard in state.shards.values():
        yield shards.cast(shards.read(store, shard), unified)


def table(store: Store, state: State) -> pa.Table:
    """All committed rows in memory, in commit order."""
    import pyarrow as pa

    parts = list(tables(store, state))
    return pa.concat_tables(parts) if parts else schema(state).empty_table()


def ordered_table(
    store: Store, found: Manifest, state: State, positions: KeyTable | None
) -> pa.Table:
    """All committed rows in memory: by item, then those of other items by key.

    Without positions all are by key. Integers come before strings.
    """
    rows = table(store, state)
    if rows.num_rows == 0:
        return rows
    scheme = found.key if isinstance(found.key, dict) else {}
    composite = "fields" in scheme
    named = scheme.get("fields") or [scheme.get("field", "key")]
    values = [rows.column(name).to_pylist() for name in named]
    each: Iterable[Any] = zip(*values, strict=True) if composite else values[0]
    order: list[tuple[Any, ...]] = []
    for at, key in enumerate(each):
        position = _position(key, positions) if positions is not None else None
        order.append((1, _sortable(key), at) if position is None else (0, position, at))
    return rows.take([entry[-1] for entry in sorted(order)])


def _position(key: Any, positions: KeyTable) -> int | None:
    found = positions.get(keys.canonical(key))
    # A tuple that a callable made stands in its column as its canonical text.
    return positions.get(key.encode()) if found is None and isinstance(key, str) else found


def _sortable(key: Any) -> tuple[Any, ...]:
    parts = key if isinstance(key, tuple) else (key,)
    return tuple((isinstance(part, str), part) for part in parts)


def completed_lines(store: Store) -> Iterator[bytes]:
    """The canonical keys of all completed items, newline-joined, a record at a time."""
    return (lines for _, lines in completed_at(store))


def completed_at(store: Store) -> Iterator[tuple[str, bytes]]:
    """The time of each record, and the canonical keys that it completes, newline-joined.

    In commit order, each once, as the journal was at the first call. The journal is read twice
    rather than held in memory; damage is found before the first key is given.
    """
    anchor = read_manifest(store).id
    retracted: dict[bytes, int] = {}
    records = 0
    with RepairHint(store):
        for commit in Journal(store, anchor).read_new():
            records = commit.number + 1
            for key in commit.retracted.split(b"\n") if commit.retracted else ():
                retracted[key] = commit.number
        for commit in Journal(store, anchor).read_new():
            if commit.number >= records:
                return
            # Between two retractions a key is completed once; what comes before the last of
            # them does not count. A record retracts first.
            lines = commit.keys.split(b"\n") if commit.keys else []
            if retracted:
                lines = [key for key in lines if retracted.get(key, -1) <= commit.number]
            if lines:
                yield commit.time, b"\n".join(lines)


@anew_if_swept
def publish(
    checkpoint: str,
    dest: str | Path,
    *,
    ordered: bool = False,
    positions: KeyTable | None = None,
    target_bytes: int = TARGET_BYTES,
) -> Published:
    """Write all committed rows to the folder ``dest``, as Parquet files of about ``target_bytes``.

    A reader of ``dest`` sees the dataset that was there before, or this one, whole: it is written
    beside ``dest``, flushed, and exchanged for it in one step. A dataset of one file keeps the
    file's name, so that even a reader in the middle goes on undisturbed. ``ordered`` holds all
    rows in memory; without it memory is bounded by a file's rows.

    Raises `UsageError` if ``dest`` holds anything that `publish` has not written there,
    `CheckpointDamaged` if a shard does not match its commit; ``dest`` is then as it was.
    """
    target = Path(os.path.abspath(dest))
    _refuse_foreign(target)
    with reading(checkpoint) as (store, found, state), _io_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        stage = target.with_name(_stage_prefix(target) + f"{os.getpid()}-{secrets.token_hex(4)}")
        stage.mkdir()
        try:
            rows = (
                iter([ordered_table(store, found, state, positions)])
                if ordered
                else tables(store, state)
            )
            files, count, size = _write_files(stage, rows, schema(state), target_bytes)
            result = Published(str(target), count, tuple(files), size)
            _write_marker(stage, found, state, result)
            _flush_folder(stage)
            fault_point("publish.staged")
            _exchange(stage, target)
        except BaseException:
            _remove_published(stage)
            raise
    log.info("published %d rows in %d files to %s", count, len(files), target)
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
    one, stamp = len(paths) == 1, secrets.token_hex(4)
    names = [
        "part-00000.parquet" if one else f"part-{stamp}-{i:05d}.parquet" for i in range(len(paths))
    ]
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
            row_group_size=max(1_000, _ROW_GROUP_BYTES // per_row),
            write_page_checksum=True,
        )
        file.flush()
        os.fsync(file.fileno())


def _write_marker(stage: Path, found: Manifest, state: State, result: Published) -> None:
    """What says of a folder that it may be replaced: which files in it are ours."""
    record = {
        "job": found.job,
        "checkpoint": found.id,
        "records": state.records,
        "published": now(),
        **asdict(result),
    }
    with open(stage / MARKER, "x", encoding="utf-8") as file:
        json.dump(record, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _refuse_foreign(target: Path) -> None:
    """Raises `UsageError` unless the folder is absent, empty, or all of `publish`'s own."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; publish to a folder")
    foreign = sorted({path.name for path in target.iterdir()} - _ours(target))
    if foreign:
        raise UsageError(
            f"{target} holds {keys.shorten(foreign[0])}, which publish has not written there, and "
            "publishing replaces the whole folder; name a folder of its own"
        )


def _ours(folder: Path) -> set[str]:
    try:
        record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {MARKER, *record["files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()


def _exchange(stage: Path, target: Path) -> None:
    """Put the stage in the target's place, in one step, and remove what was there."""
    if not target.exists():
        os.rename(stage, target)
        _flush_folder(target.parent)
        return
    if not _swap(stage, target):
        aside = stage.with_name(stage.name + ".old")
        # No exchange on this system: for an instant there is no dataset, but never half a one.
        os.rename(target, aside)
        os.rename(stage, target)
        stage = aside
    _flush_folder(target.parent)
    fault_point("publish.exchanged")
    _remove_published(stage)


def _swap(a: Path, b: Path) -> bool:
    """Exchange two paths atomically; False where the system cannot."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    paths = (os.fsencode(a), os.fsencode(b))
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        at_cwd, exchange = -100, 2
        failed = library.renameat2(at_cwd, paths[0], at_cwd, paths[1], exchange)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(paths[0], paths[1], 2)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _remove_leftovers(target: Path) -> None:
    """Remove the stages of publishers of this machine that died."""
    prefix = _stage_prefix(target)
    for path in target.parent.iterdir():
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if path.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            _remove_published(path)


def _stage_prefix(target: Path) -> str:
    return f".{target.name}.publish-{os.uname().nodename}-"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _remove_published(folder: Path) -> None:
    """Remove a stage, or what an exchange has put in its place.

    Whatever else has come into it stays, and so does the folder.
    """
    if not folder.is_dir():
        return
    ours = _ours(folder)
    # By what is in the folder, not by what a file in it says. A stage whose publisher died has no
    # marker, or half of one.
    for path in folder.iterdir():
        if path.name in ours or path.name == MARKER or (not ours and path.suffix == ".parquet"):
            path.unlink()
    try:
        folder.rmdir()
    except OSError as error:
        log.warning("%s holds files that publish has not written; it was left: %s", folder, error)


def _flush_folder(path: Path) -> None:
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _io_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"cannot publish to {target}: {error}. The dataset that was there is untouched; mend "
            "the cause and publish again"
        ) from error
