"""Finds out by trying whether a place can hold checkpoints, for the owner of the place."""

from __future__ import annotations

import secrets
import shutil
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from resumable_tasks.base.text import count, duration
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.object import ObjectStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import ResumableTasksError, StoreError, UsageError

Verdict = Literal["good", "note", "bad"]

RACERS = 16
# One more than a page of a listing holds.
NAMES = 1001
_LARGE = (16 << 20) + 1
_ASKED = 20
# S3 refuses requests if the clock is off by 15 minutes.
_CLOCK_SECONDS = 60.0
_FOLDERS = ("probe", "many")
_NAME = "probe/first"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one probe: ``good``, ``bad`` (the place cannot hold checkpoints), or a note."""

    probe: str
    verdict: Verdict
    said: str


class _Unfit(Exception):
    """The place behaves in a way that no checkpoint survives."""


def check(place: str, names: int = NAMES) -> Iterator[Finding]:
    """Probe the place in a new folder, which is removed at the end. Yields one finding a probe.

    ``names``: the number of objects to list and delete at once. Raises `UsageError` if the place is
    neither a directory nor the URL of a prefix in a bucket.
    """
    found = open_store(place, "place")
    name = f"resumable-check-{secrets.token_hex(6)}"
    if isinstance(found, ObjectStore):
        store: Store = found.fresh(name)
    elif Path(found.url).is_dir():
        store = LocalStore(Path(found.url) / name)
    else:
        raise UsageError(f"{place} is not a directory: name one that exists, or a URL")
    probes = _Probes(store, names)
    try:
        yield from probes.all()
    finally:
        left = probes.clear()
        if left:
            yield Finding("clean up", "note", left)


class _Probes:
    def __init__(self, store: Store, names: int) -> None:
        self._store = store
        self._names = [f"many/{number:05d}" for number in range(names)]
        self._data = secrets.token_bytes(64)
        self._wrote = False
        self._silent = False

    def all(self) -> Iterator[Finding]:
        permissions: list[tuple[str, Callable[[], str | Finding]]] = [
            ("write", self._write),
            ("read", self._read),
            ("list", self._list),
            ("delete", self._delete),
        ]
        fit = True
        for name, probe in permissions:
            finding = self._tried(name, probe)
            yield finding
            fit = fit and finding.verdict != "bad"
            if self._silent:
                return
        if not fit:
            return  # every later probe would fail for the same reason
        probes: list[tuple[str, Callable[[], str | Finding]]] = [
            ("missing name", self._missing),
            ("put if absent", self._put_if_absent),
            ("race", self._race),
            ("large object", self._large),
            ("listing and deleting", self._many),
        ]
        if isinstance(self._store, ObjectStore):
            probes += [("metadata", self._metadata), ("clock", self._clock)]
        else:
            probes += [("locks", self._locks)]
        for name, probe in [*probes, ("latency", self._latency)]:
            yield self._tried(name, probe)

    def clear(self) -> str:
        """Remove everything that the probes made. Returns a text about what cannot be removed."""
        if isinstance(self._store, LocalStore):
            shutil.rmtree(self._store.url, ignore_errors=True)
            return ""
        try:
            for folder in _FOLDERS:
                self._store.delete_all(self._store.list(folder))
        except ResumableTasksError:
            return f"objects below {self._store.url} could not be removed; delete them yourself"
        return ""

    def _tried(self, name: str, probe: Callable[[], str | Finding]) -> Finding:
        try:
            said = probe()
        except FileNotFoundError:
            return Finding(name, "bad", "an object that was just written is missing")
        except (_Unfit, ResumableTasksError) as error:
            # A refusal would be `CheckpointUnusable`: this place has not answered at all.
            self._silent = isinstance(error, StoreError) and not self._wrote
            return Finding(name, "bad", str(error))
        return said if isinstance(said, Finding) else Finding(name, "good", said)

    # One permission each

    def _write(self) -> str:
        disk.prepare(self._store, _FOLDERS)
        self._store.put(_NAME, self._data)
        self._wrote = True
        return "an object can be written"

    def _read(self) -> str:
        try:
            found = self._store.read(_NAME)
        except FileNotFoundError:
            if self._wrote:
                raise
            return "an object can be requested"
        if found != self._data:
            raise _Unfit("an object was not read as it was written")
        return "an object can be read, and is what was written"

    def _list(self) -> str:
        found = self._store.list("probe")
        if not self._wrote:
            return "a listing can be requested"
        if found != {_NAME: len(self._data)}:
            raise _Unfit("an object that was just written is not listed, or has another size")
        return "a written object is listed at once"

    def _delete(self) -> str:
        self._store.delete(_NAME)
        if _NAME in self._store.list("probe"):
            raise _Unfit("an object that was just deleted is still listed")
        return "an object can be deleted, and is gone at once"

    # Properties that the protocol needs

    def _missing(self) -> str:
        self._store.delete("probe/never-there")
        try:
            self._store.read("probe/never-there")
        except FileNotFoundError:
            return "a missing object can be told from a refusal"
        raise _Unfit("an object that was never written can be read")

    def _put_if_absent(self) -> str:
        name = "probe/absent"
        first = self._store.create(name, b"first")
        second = self._store.create(name, b"second")
        held = self._store.read(name)
        if not first:
            raise _Unfit("a free name was reported as taken")
        if second or held != b"first":
            raise _Unfit(
                "put-if-absent is ignored: an existing object was overwritten. Two runs would "
                "destroy each other's records there. Use a service that supports If-None-Match"
            )
        return "an existing object is not overwritten"

    def _race(self) -> str:
        name = "probe/raced"
        with ThreadPoolExecutor(RACERS) as racers:
            tried = racers.map(lambda n: self._store.create(name, b"%d" % n), range(RACERS))
            winners = [number for number, won in enumerate(tried) if won]
        if len(winners) != 1 or self._store.read(name) != b"%d" % winners[0]:
            raise _Unfit(
                f"of {RACERS} concurrent creations of one name, {len(winners)} were reported as "
                "successful: two runs could commit the same items there"
            )
        return f"of {RACERS} concurrent creations of one name, exactly one succeeds"

    def _large(self) -> str:
        data = secrets.token_bytes(1 << 16) * (_LARGE // (1 << 16)) + b"."
        began = time.monotonic()
        self._store.put("probe/large", data)
        seconds = time.monotonic() - began
        if self._store.read("probe/large") != data:
            raise _Unfit("a large object was not read as it was written")
        return f"16 MB are written in {duration(seconds)}, and read back correctly"

    def _many(self) -> str:
        with ThreadPoolExecutor(RACERS) as threads:
            for _ in threads.map(lambda name: self._store.put(name, b"."), self._names):
                pass
        listed = set(self._store.list("many"))
        if listed != set(self._names):
            raise _Unfit(f"only {len(listed):,} of {count(len(self._names), 'object')} are listed")
        self._store.delete_all(self._names)
        if left := len(self._store.list("many")):
            raise _Unfit(f"{left:,} of {len(self._names):,} deleted objects are still listed")
        return f"{count(len(self._names), 'object')} can be listed, and deleted together"

    # Properties that are good to know

    def _metadata(self) -> Finding:
        assert isinstance(self._store, ObjectStore)
        self._store.create("probe/described", b".")
        if self._store.written("probe/described")[1]:
            return Finding("metadata", "good", "metadata of objects is kept")
        return Finding(
            "metadata",
            "note",
            "metadata of objects is dropped: after a lost reply a run may have to end and be "
            "started again. Nothing is lost or duplicated",
        )

    def _clock(self) -> Finding:
        assert isinstance(self._store, ObjectStore)
        self._store.put("probe/clock", b".")
        off = (self._store.written("probe/clock")[0] - datetime.now(UTC)).total_seconds()
        if abs(off) < _CLOCK_SECONDS:
            return Finding("clock", "good", "this machine's clock agrees with the service's")
        way = "behind" if off > 0 else "ahead of"
        return Finding(
            "clock",
            "note",
            f"this machine's clock is {duration(abs(off))} {way} the service's: set it; S3 refuses "
            "requests that are off by 15 minutes or more",
        )

    def _locks(self) -> Finding:
        try:
            release = disk.lock(self._store, "probe/lock")
        except NotImplementedError:
            release = None
        if release is None:
            said = (
                "there are no locks: a second run waits some seconds to see whether the first is "
                "alive"
            )
            return Finding("locks", "note", said)
        release()
        return Finding("locks", "good", "locks show at once whether a run is at work")

    def _latency(self) -> str:
        wrote, read = [], []
        for number in range(_ASKED):
            began = time.monotonic()
            self._store.create(f"probe/latency-{number}", self._data)
            between = time.monotonic()
            self._store.read(f"probe/latency-{number}")
            wrote.append(between - began)
            read.append(time.monotonic() - between)
        write, again = statistics.median(wrote), statistics.median(read)
        return (
            f"a write takes {write * 1000:.0f} ms, a read {again * 1000:.0f} ms (median of "
            f"{_ASKED}), a commit about {2 * write * 1000:.0f} ms"
        )
