"""The holder of a checkpoint: refuses a second run while the first one is alive.

Safety does not depend on this; the journal's fencing provides it. A refusal spares the first run
its batches in flight, and the second a start in vain. Where the system has file locks, a lock
decides; it ends with its process. Elsewhere a holder is dead if its process was on this machine and
has ended; otherwise it is alive if its heartbeat changes while being watched. Clocks of different
machines are never compared. If several runs start at once, the journal decides: a run that finds
another's claim in place of its own gives way.
"""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from resumable_tasks.base import log, process
from resumable_tasks.base.clock import now
from resumable_tasks.base.hanging import seconds_left
from resumable_tasks.base.outage import Outage
from resumable_tasks.base.text import clean
from resumable_tasks.checkpoint.directory.record import OF_WORK, Commit
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointHeld,
    ResumableTasksError,
)

NAME = "holder.json"
LOCK = "holder.lock"
BEAT_SECONDS = 5.0
# Without locks, a holder counts as dead after this many missed beats; fewer for a reader, who takes
# nothing from anybody.
WATCHED_BEATS, LOOKED_BEATS = 3.0, 1.5
# Several tries, because `status` takes the lock for an instant to see whether anybody holds it.
_LOCK_TRIES = 5
_MOST_BYTES = 64 << 10
_LOCK_PAUSE = 0.1


def me(run: str) -> dict[str, Any]:
    """The fields that identify this process to others."""
    return {"run": run, "host": os.uname().nodename, "pid": os.getpid()}


class Holder:
    """A run's hold on a checkpoint: sends heartbeats until it is released."""

    def __init__(self, store: Store, run: str, identity: Mapping[str, str] | None = None) -> None:
        self.run = run
        self._store = store
        here = {"machine": process.machine(), "started": process.started(os.getpid())}
        self._record = {**me(run), **(identity or {}), **here, "since": now(), "beat": 0}
        self._release_lock: Callable[[], None] | None = None
        self.locks = True
        """Whether a lock decides which run may begin."""
        # Records from this number on were written by runs that have begun since.
        self._known = math.inf
        self._outage = Outage("the heartbeat")
        # Whether the heartbeat file was this run's when last read.
        self._mine: bool | None = None
        self._stop = threading.Event()
        # A weak reference, so that a hold that nobody references ends, and its lock with it.
        self._thread = threading.Thread(
            target=_beat, args=(weakref.ref(self), self._stop), name="resumable-heartbeat"
        )
        self._thread.daemon = True

    def lock(self, *, steal: bool) -> None:
        """Take the lock, if there are locks. Raises `CheckpointHeld` unless ``steal``."""
        for attempt in range(_LOCK_TRIES):
            if self._try_lock(steal=steal):
                return
            if attempt == 0:
                # A hold of this process whose release was interrupted may wait in a reference
                # cycle.
                gc.collect()
            if attempt < _LOCK_TRIES - 1:
                time.sleep(_LOCK_PAUSE)
        raise held(self._store, read(self._store))

    def take(self, *, takeover: bool, known: float = math.inf, new: bool = False) -> None:
        """Begin to hold. Raises `CheckpointHeld`, which names the holder, unless ``takeover``.

        ``known``: the number of records before this, for `polite`. ``new``: the checkpoint is new
        and has no holder.
        """
        try:
            if self._release_lock is None and self.locks:
                self.lock(steal=takeover)
            if not self.locks and not takeover:
                self._known = known
                if not new and (other := Watch(self._store, WATCHED_BEATS).holder()):
                    raise held(self._store, other)
            self._write()
            self._thread.start()
        except BaseException:
            self._let_go()
            raise

    def polite(self, commits: Iterable[Commit]) -> Iterator[Commit]:
        """Yield these records. Raises `CheckpointHeld` at one of a run that began since `take`.

        Never raises where locks decide, and in a takeover.
        """
        for commit in commits:
            if commit.number >= self._known and commit.kind in ("claim", *OF_WORK):
                other = {"run": commit.run, "since": commit.time, **commit.info}
                raise held(self._store, other)
            yield commit

    def check(self) -> None:
        """Raise `CheckpointHeld` if another run has taken over; the last check before the claim.

        Does nothing where there are no locks; there the journal shows a takeover (`polite`).
        """
        other = read(self._store) if self.locks else {}
        if other.get("run", self._record["run"]) != self._record["run"]:
            raise held(self._store, other)

    def look(self) -> None:
        """Check now whether the heartbeat file is this run's, to spare `release` the read.

        Ignores an error; `release` reads again and meets it.
        """
        with contextlib.suppress(ResumableTasksError):
            self._mine = self._is_mine()

    def release(self) -> None:
        """Stop holding; another run can take the checkpoint at once."""
        self._stop.set()
        try:
            if self._thread.is_alive():
                self._thread.join(seconds_left())
            if self._thread.is_alive():
                log.warning(
                    "%s could not be removed: the last heartbeat is still being written", NAME
                )
            elif self._is_mine() if self._mine is None else self._mine:
                self._store.delete(NAME)
        except ResumableTasksError as error:
            # The file is advisory: the next run finds the lock free, whatever the file says.
            log.warning("%s could not be removed: %s", NAME, error)
        finally:
            self._let_go()

    def _is_mine(self) -> bool:
        return self._record["beat"] > 0 and read(self._store).get("run") == self.run

    def _let_go(self) -> None:
        if self._release_lock is not None:
            self._release_lock()
            self._release_lock = None

    def _try_lock(self, *, steal: bool) -> bool:
        try:
            self._release_lock = disk.lock(self._store, LOCK, steal=steal)
        except NotImplementedError:
            self.locks = False
            return True
        return self._release_lock is not None

    def _write(self) -> None:
        self._record["beat"] += 1
        self._store.put(NAME, json.dumps(self._record).encode() + b"\n")

    def beat(self) -> None:
        """Write one more heartbeat. A failure is only logged."""
        try:
            self._write()
        except ResumableTasksError as error:
            # The heartbeat is advisory; the next commit finds any real problem.
            self._outage.failed(error)
        else:
            self._outage.succeeded()


def _beat(hold: weakref.ref[Holder], stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        alive = hold()
        if alive is None:
            return
        alive.beat()
        del alive


def read(store: Store) -> dict[str, Any]:
    """The last recorded holder of the checkpoint, alive or dead; empty if there is none."""
    try:
        found = json.loads(disk.read(store, NAME, _MOST_BYTES))
    except (FileNotFoundError, ValueError, RecursionError, CheckpointDamaged):
        return {}
    return found if isinstance(found, dict) else {}


class Watch:
    """Finds out who holds a checkpoint; can be asked again and again. Writes nothing.

    ``beats``: how many beats to wait for a holder's next heartbeat, if nothing else shows whether
    it is alive. Waits only once for a holder whose heartbeat does not come.
    """

    def __init__(self, store: Store, beats: float = LOOKED_BEATS) -> None:
        self._store = store
        self._beats = beats
        # A live process may have released the checkpoint and failed to remove the file.
        self._trusts_processes = beats <= LOOKED_BEATS
        self._seen: dict[str, Any] = {}
        self._until = -math.inf

    def holder(self) -> dict[str, Any] | None:
        """The live holder; empty if it has not identified itself, None if there is no holder."""
        try:
            return read(self._store) if disk.locked(self._store, LOCK) else None
        except NotImplementedError:
            return self._moving(read(self._store))

    def _moving(self, found: dict[str, Any]) -> dict[str, Any] | None:
        """The holder if it is alive, decided without locks."""
        here, gone = _process_of(found)
        if not found or gone:
            return None
        if here and self._trusts_processes:
            return found
        if found != self._seen:
            known, self._seen = bool(self._seen), found
            self._until = time.monotonic() + self._beats * BEAT_SECONDS
            if known:
                return found  # a beat has come since the last look
        while time.monotonic() < self._until:
            time.sleep(BEAT_SECONDS / 10)
            if (after := read(self._store)) != found:
                return self._moving(after)
        return None


def _process_of(found: dict[str, Any]) -> tuple[bool, bool]:
    """Whether the holder's process was on this machine, and whether it has ended."""
    noted, pid, since = (found.get(name) for name in ("machine", "pid", "started"))
    if not isinstance(noted, str) or type(pid) is not int or not isinstance(since, str):
        return False, False
    return process.is_here(noted), process.is_gone(noted, pid, since)


def held(store: Store, holder: dict[str, Any]) -> CheckpointHeld:
    """The error that names the holder of the checkpoint."""
    run, host, pid, since = (clean(str(holder.get(n)), 80) for n in ("run", "host", "pid", "since"))
    who = (
        f"run {run} on host {host}, pid {pid}, since {since}"
        if holder
        else "another run, which has just started"
    )
    return CheckpointHeld(
        f"the checkpoint {store.url} is held by {who}. Wait for it to end; or, if you know that it "
        "is stuck, take the checkpoint over: takeover=True",
        holder=holder,
    )
