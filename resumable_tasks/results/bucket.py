"""Parquet files below a prefix of a bucket, and a pointer that names the files that count.

No object that somebody may be reading is ever overwritten: a reader of a file that is replaced
meanwhile would get rows of the old and the new file, without an error. So each publication writes
files with new names, and the pointer last. The files of the current pointer and of the one before
are kept; older files are removed.

A file's name contains the version after which it was begun. That distinguishes files that another
publisher is still writing from those of a dead one. See ``docs/design/0024-forms-of-publish.md``.
"""

from __future__ import annotations

import contextlib
import json
import re
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.form import CommittedRows
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import ResumableTasksError, StoreError, UsageError
from resumable_tasks.items.keys import shorten
from resumable_tasks.results.files import write_files, write_parquet
from resumable_tasks.results.form import Form, Held, Published, held
from resumable_tasks.results.rows import Wanted
from resumable_tasks.results.swap import MARKER

if TYPE_CHECKING:
    import pyarrow as pa

_OURS = re.compile(r"part-v([0-9]{1,18})-[0-9a-f]{16}-[0-9]{5,9}\.parquet")
# This many versions later, nobody can still be writing files that were begun after a version.
_OVERTAKEN = 2
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Pointer:
    """The version that counts, and its files; version 0 if nothing is published."""

    version: int = 0
    files: tuple[str, ...] = ()


class InBucket(Form):
    """A prefix of a bucket that holds nothing else.

    A reader that follows ``_published.json`` sees the complete files of one version; they stay
    until the publication after the next. A listing of the prefix shows files of several versions.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self.dest = store.url

    def check(self, wanted: Wanted) -> None:
        if self._store.list("_delta_log"):
            raise UsageError(f"{self.dest} is a Delta table; publish to it with form='delta'")
        self._refuse_foreign(self._store.list(""))

    def write(self, rows: CommittedRows, wanted: Wanted) -> Published:
        for _ in range(_TRIES):
            result = self._try(rows, wanted)
            if result is not None:
                return result
        raise StoreError(
            f"other publishers keep publishing to {self.dest}, each faster than this one",
            safe="Their published data is complete",
            remedy="Publish from one place at a time",
        )

    def held(self, checkpoint: str) -> Held | None:
        try:
            marker = self._store.read(MARKER)
        except FileNotFoundError:
            return None
        return held(marker, checkpoint, self._store.list("").__getitem__)

    def _try(self, rows: CommittedRows, wanted: Wanted) -> Published | None:
        """Write the files and the pointer; None if others have published meanwhile: try again."""
        names = self._store.list("")
        self._refuse_foreign(names)
        begun = self._pointer().version or max(map(_number, names), default=0)
        files = _Files(self._store, f"part-v{begun + 1}-{secrets.token_hex(8)}")
        try:
            count, size = write_files(
                wanted.tables(rows), rows.schema, wanted.target_bytes, files.write_one
            )
        except BaseException:
            files.remove()
            raise
        fault_point("publish.staged")
        before = self._pointer()
        if before.version >= begun + _OVERTAKEN:
            files.remove()
            return None
        version = max(before.version, begun) + 1
        result = Published(self.dest, count, tuple(files.names), size)
        record = {**rows.identity, "published": now(), "version": version, **asdict(result)}
        kept = {*files.names, *before.files}
        pointer = json.dumps({**record, "before": before.files}, indent=1).encode()
        try:
            self._store.put(MARKER, pointer)
        except StoreError as error:  # the request may have been applied
            raise StoreError(
                error.what,
                safe="Readers see either the previous data or all of the new data",
                remedy=error.remedy,
            ) from error
        fault_point("publish.exchanged")
        there = self._store.list("")
        if not there.keys() >= set(files.names):
            return None
        self._sweep(name for name in there if name not in kept and _is_over(name, version))
        return result

    def _pointer(self) -> Pointer:
        try:
            data = self._store.read(MARKER)
        except FileNotFoundError:
            return Pointer()
        try:
            found = json.loads(data)
            return Pointer(int(found["version"]), tuple(map(str, found["files"])))
        except (ValueError, KeyError, TypeError, RecursionError):
            raise self._foreign(MARKER) from None

    def _refuse_foreign(self, names: Iterable[str]) -> None:
        """Raise `UsageError` unless everything directly below the prefix is from `publish`."""
        foreign = sorted(name for name in names if name != MARKER and not _OURS.fullmatch(name))
        if foreign:
            raise self._foreign(foreign[0])

    def _foreign(self, name: str) -> UsageError:
        return UsageError(
            f"{self.dest} holds {shorten(name)}, which publish did not write; name a prefix of its "
            "own"
        )

    def _sweep(self, names: Iterable[str]) -> None:
        """Remove obsolete files. The next publication removes what cannot be removed now."""
        with contextlib.suppress(ResumableTasksError):
            self._store.delete_all(names)


class _Files:
    """The files of one publication, under unique names."""

    def __init__(self, store: Store, start: str) -> None:
        self._store, self._start = store, start
        self.names: list[str] = []

    def write_one(self, rows: pa.Table) -> int:
        import pyarrow as pa

        sink = pa.BufferOutputStream()
        write_parquet(rows, sink)
        data = memoryview(sink.getvalue())
        self.names.append(f"{self._start}-{len(self.names):05}.parquet")
        self._store.put(self.names[-1], data)
        return len(data)

    def remove(self) -> None:
        """Remove the files; no pointer has named them."""
        with contextlib.suppress(ResumableTasksError):
            self._store.delete_all(self.names)


def _number(name: str) -> int:
    """The number in a file's name: the version after which it was begun, plus one."""
    found = _OURS.fullmatch(name)
    return int(found[1]) if found else 0


def _is_over(name: str, version: int) -> bool:
    """True for a file of ours so old that no later pointer will name it."""
    return _OURS.fullmatch(name) is not None and _number(name) <= version - _OVERTAKEN
