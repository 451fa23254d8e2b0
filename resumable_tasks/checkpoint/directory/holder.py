"""The holder of a checkpoint: a second run is refused politely.

Nothing of safety hangs on this (that is the journal's fencing); it saves the second run the
trouble, and the first one its batches in flight. A lock of the operating system, which dies with
its process, decides where there is one; elsewhere the heartbeat does, by being seen to move: no
clock of one machine is compared with another's.
"""

from __future__ import annotations

import gc
import json
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.clock import now
from resumable_tasks.base.text import clean
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
# Without locks a holder is given up after this long without a beat.
WATCH_SECONDS = 3 * BEAT_SECONDS
# `status` shares the lock for an instant, to see whether anybody has it.
_LOCK_TRIES = 5
_MOST_BYTES = 64 << 10
_LOCK_PAUSE = 0.1


def me(run: str) -> dict[str, Any]:
    """Identify this process to others."""
    return {"run": run, "host": os.uname().nodename, "pid": os.getpid()}


class Holder:
    """A run's hold of a checkpoint: beats until it is released."""

    def __init__(self, store: Store, run: str, identity: Mapping[str, str] | None = None) -> None:
        self.run = run
        self._store = store
        self._record = {**me(run), **(identity or {}), "since": now(), "beat": 0}
        self._release_lock: Callable[[], None] | None = None
        self._locks = True
        self._stop = threading.Event()
        # By a weak reference: a hold that is lost sight of ends, and its lock with it.
        self._thread = threading.Thread(
            target=_beat, args=(weakref.ref(self), self._stop), name="resumable-heartbeat"
        )
        self._thread.daemon = True

    def take(self, *, takeover: bool) -> None:
        """Begin to hold. Raises `CheckpointHeld`, which says by whom, unless ``takeover``."""
        try:
            for attempt in range(_LOCK_TRIES):
                if self._try_lock(steal=takeover):
                    break
                if attempt == 0:
                    # A hold of this process whose release was interrupted may lie in a cycle.
                    gc.collect()
                if attempt < _LOCK_TRIES - 1:
                    time.sleep(_LOCK_PAUSE)
            else:
                raise held(self._store, read(self._store))
            if not self._locks and not takeover:
                self._watch()
            self._write()
            self._thread.start()
        except BaseException:
            self._let_go()
            raise

    def check(self) -> None:
        """Raises `CheckpointHeld` if another has taken over since; the last moment to be polite."""
        other = read(self._store)
        if other.get("run", self._record["run"]) != self._record["run"]:
            raise held(self._store, other)

    def release(self) -> None:
        """Stop holding; the checkpoint can be taken at once."""
        self._stop.set()
        try:
            if self._thread.is_alive():
                self._thread.join()
            if read(self._store).get("run") == self._record["run"]:
                self._store.delete(NAME)
        except ResumableTasksError as error:
            # Advisory: whoever comes next finds the lock free, whatever the file says.
            log.warning("%s could not be removed: %s", NAME, error)
        finally:
            self._let_go()

    def _let_go(self) -> None:
        if self._release_lock is not None:
            self._release_lock()
            self._release_lock = None

    def _try_lock(self, *, steal: bool) -> bool:
        try:
            self._release_lock = disk.lock(self._store, LOCK, steal=steal)
        except NotImplementedError:
            self._locks = False
            return True
        return self._release_lock is not None

    def _watch(self) -> None:
        """Wait for the holder's next beat where there are no locks; without one it is dead."""
        before = read(self._store)
        until = time.monotonic() + WATCH_SECONDS
        while before and time.monotonic() < until:
            time.sleep(BEAT_SECONDS / 10)
            after = read(self._store)
            if not after:
                return
            if after != before:
                raise held(self._store, after)

    def _write(self) -> None:
        self._record["beat"] += 1
        self._store.put(NAME, json.dumps(self._record).encode() + b"\n")

    def beat(self) -> None:
        """Give one more sign of life; one that cannot be given is only logged."""
        try:
            self._write()
        except ResumableTasksError as error:
            # Advisory: what matters is found out by the next commit.
            log.warning("the heartbeat could not be written: %s", error)


def _beat(hold: weakref.ref[Holder], stop: threading.Event) -> None:
    while not stop.wait(BEAT_SECONDS):
        alive = hold()
        if alive is None:
            return
        alive.beat()
        del alive


def read(store: Store) -> dict[str, Any]:
    """Read who holds the checkpoint, or held it when it died; empty if nobody."""
    try:
        found = json.loads(disk.read(store, NAME, _MOST_BYTES))
    except (FileNotFoundError, ValueError, RecursionError, CheckpointDamaged):
        return {}
    return found if isinstance(found, dict) else {}


def is_held(store: Store) -> bool:
    """True if a live run holds the checkpoint, as far as can be told without waiting."""
    try:
        return disk.locked(store, LOCK)
    except NotImplementedError:
        return bool(read(store))


def held(store: Store, holder: dict[str, Any]) -> CheckpointHeld:
    """The error that says who holds the checkpoint."""
    run, host, pid, since = (clean(str(holder.get(n)), 80) for n in ("run", "host", "pid", "since"))
    who = (
        f"run {run} on host {host}, pid {pid}, since {since}"
        if holder
        else "another run, which has just started"
    )
    return CheckpointHeld(
        f"the checkpoint {store.url} is held by {who}. Wait for it to end, or, if you know that "
        "it is stuck, take it over: takeover=True",
        holder=holder,
    )
