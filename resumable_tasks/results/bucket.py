"""Parquet files below a prefix of a bucket, and a pointer that names those that count.

No object that somebody may be reading is ever overwritten: a reader of one file that is replaced
under its eyes gets rows of the old and of the new one, and no error. So each publishing writes
files that no other has, and the pointer last. Files are removed when nobody is to read them any
more: those that the pointer names, and those that the one before it named, stay.

Their names say after which version they were begun, so that what another publisher is still
writing is told from what a dead one has left. See ``docs/design/0024-forms-of-publish.md``.
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
# So many versions later nobody can still be writing the files that were begun after one.
_OVERTAKEN = 2
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Pointer:
    """The version that counts, and its files; 0 where nothing is published."""

    version: int = 0
    files: tuple[str, ...] = ()


class InBucket(Form):
    """A prefix of a bucket of its own.

    A reader who goes by ``_published.json`` sees the files of one version, whole; they stay until
    the publishing after the next one. Whoever lists the prefix sees files of several.
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
            f"others publish to {self.dest} without a pause, each faster than this publisher",
            safe="What they have published is whole",
            remedy="Publish from one place at a time",
        )

    def held(self, checkpoint: str) -> Held | None:
        try:
            marker = self._store.read(MARKER)
        except FileNotFoundError:
            return None
        return held(marker, checkpoint, self._store.list("").__getitem__)

    def _try(self, rows: CommittedRows, wanted: Wanted) -> Published | None:
        """Write the files and the pointer; None if others have published too much meanwhile."""
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
        except StoreError as error:  # whose request may have been applied
            raise StoreError(
                error.what,
                safe="Readers see what was published before, or all of this",
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
        """Raise `UsageError` unless all that lies right below the prefix is of `publish`."""
        foreign = sorted(name for name in names if name != MARKER and not _OURS.fullmatch(name))
        if foreign:
            raise self._foreign(foreign[0])

    def _foreign(self, name: str) -> UsageError:
        return UsageError(
            f"{self.dest} holds {shorten(name)}, which publish has not written there; name a "
            "prefix of its own"
        )

    def _sweep(self, names: Iterable[str]) -> None:
        """Remove what is over. What cannot be removed now is over the next time too."""
        with contextlib.suppress(ResumableTasksError):
            self._store.delete_all(names)


class _Files:
    """The files of one publishing, under names that no other has."""

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
        """Remove them again; no pointer has named them."""
        with contextlib.suppress(ResumableTasksError):
            self._store.delete_all(self.names)


def _number(name: str) -> int:
    """The number in the name of a file: one more than the version after which it was begun."""
    found = _OURS.fullmatch(name)
    return int(found[1]) if found else 0


def _is_over(name: str, version: int) -> bool:
    """True for a file of ours that, if no pointer names it, none ever will."""
    return _OURS.fullmatch(name) is not None and _number(name) <= version - _OVERTAKEN
