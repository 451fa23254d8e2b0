"""Snapshots: state that is one structure, not a set of keys; saved as a whole from time to time.

A snapshot is a folder of numbered generations, each an immutable file made by put-if-absent::

    {"snapshot":1,"generation":7,"version":1,"time":"…","nonce":"…"}
    {"cursor":"c120","totals":{"eur":17.5}}
    {"end":7,"checksum":"…"}

The checksum is the BLAKE2b-128 of the lines before the last, as in the journal. A generation gets
its name only after it is flushed, so no crash leaves a torn one. Damage by disks and people is
detected, and the generation before is used.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

from resumable_tasks.base import log, signals
from resumable_tasks.base.exits import use_exit_codes
from resumable_tasks.base.naming import named_options
from resumable_tasks.checkpoint.snapshot.format import (
    LOCK,
    Generation,
    encode_state,
    file_of,
    number_of,
    refuse_foreign,
)
from resumable_tasks.checkpoint.snapshot.generations import Generations
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore, in_temporary_folder
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointHeld,
    CheckpointMismatch,
    Fenced,
    ResumableTasksError,
    UsageError,
)

# Not less, so that a loop of quick steps does not spend its time in `fsync`.
_SECONDS = 30.0
# A state of no more bytes than this is copied at each step, a larger one when it is saved.
_SMALL = 16 * 1024

Migrate = Callable[[Any, int], Any]
"""Converts a state of the given older version to the wanted version."""


@named_options
class Snapshot:
    """State made of JSON values that survives its process; for one process at a time.

    ``step()`` marks a state from which work can continue. The state is saved, durable on return, at
    every ``every``-th step, at a step ``seconds`` or more after the last save, and at the end of
    the ``with`` block. If the block ends with an exception, including Ctrl-C and SIGTERM, the state
    may be half changed; then a copy of the state at the last step is saved instead, or, if that has
    more than 16 KiB of JSON, the last save stays. The same holds if the state at the end of the
    block cannot be saved. Not for use by several threads at once, nor by forked children.

    Args:
        path: the snapshot's folder, which need not exist yet, or a place in a bucket
            (``s3://bucket/prefix``).
        every: number of steps between saves.
        seconds: how long a step may stay unsaved, checked at the end of the next step; None: no
            limit.
        initial: the state if there is no snapshot yet; by default an empty dict.
        keep: how many good generations to keep.
        version: of the state's structure; raise it when the structure changes.
        migrate: called with a state of an older version and that version; returns the new state.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        every: int = 100,
        seconds: float | None = _SECONDS,
        initial: Any = None,
        keep: int = 3,
        version: int = 1,
        migrate: Migrate | None = None,
    ) -> None:
        for name, value in (("every", every), ("keep", keep), ("version", version)):
            if type(value) is not int or value < 1:
                raise UsageError(
                    f"{name}={value!r} is not a whole number from 1",
                    remedy=f"Give {name}= a number in that range",
                )
        if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
            raise UsageError(
                f"seconds={seconds!r} is not a number of seconds, or None",
                remedy="Give seconds= a number such as 30, or None to save only by steps",
            )
        self._store = _store_at(path)
        self._every, self._seconds = every, seconds
        self._version, self._migrate = version, migrate
        # As text, so that later changes by the caller have no effect here.
        self._initial = encode_state({} if initial is None else initial, "initial")
        self._unlock: Callable[[], None] | None = None
        self._open = self._exits = False
        # The process that opened it; a forked child must not save.
        self._pid = 0
        self._state: Any = None
        self._saved_at = 0.0
        # The state at the last step, to be saved if the block ends by an exception.
        self._copy = b""
        self._steps = 0
        self._generations = Generations(self._store, keep=keep, version=version)

    @property
    def generation(self) -> int:
        """The number of the generation last saved or found; 0 if there is none."""
        return self._generations.newest

    @property
    def path(self) -> str:
        return self._store.url

    @property
    def state(self) -> Any:
        """The state to save: change it in place, or assign it. Still readable after the block."""
        self._check_process()
        if not self._pid:
            self._check_open()
        return self._state

    @state.setter
    def state(self, value: Any) -> None:
        self._check_open()
        self._state = value

    def __enter__(self) -> Snapshot:
        """Take hold of the snapshot and load its newest good generation.

        Raises `CheckpointHeld` if another process has it, `CheckpointDamaged` if there are
        generations and none is good, `CheckpointMismatch` if its version does not fit,
        `CheckpointUnusable` if no snapshot can live there.
        """
        if self._open and self._pid == os.getpid():
            raise UsageError(
                f"the snapshot {self.path} is already open",
                remedy="Use the open one, or leave its `with` block first",
            )
        use_exit_codes()
        refuse_foreign(self._store)
        disk.prepare(self._store, ())
        try:
            self._lock()
            disk.sync(self._store, "")  # what is loaded must be durable
            disk.sweep(self._store, "", lambda name: number_of(name) is not None)
            found = self._load()
            here = found is None and isinstance(self._store, LocalStore)
            if here and in_temporary_folder(self.path):
                log.warning(
                    "the snapshot %s is in a temporary directory that the system may empty; choose "
                    "another path for work that matters",
                    self.path,
                )
            self._open, self._pid = True, os.getpid()
            self._exits = signals.exit_at_sigterm()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        if self._pid != os.getpid():
            return  # a forked child: the snapshot and its lock are its parent's
        try:
            if error is None:
                self.save()
            else:
                self._save_copy(error)
        except BaseException as failed:  # a value that is not JSON, a disk error, Ctrl-C
            self._save_copy(failed)
            raise
        finally:
            self._let_go()

    def step(self, count: int = 1) -> bool:
        """Mark a state from which work can continue; return whether it was saved. Raises as `save`.

        ``count``: the number of steps.
        """
        if type(count) is not int or count < 0:
            raise UsageError(
                f"step() takes a number of steps, not {count!r}",
                remedy="Call step() with a whole number from 0, or without one for 1",
            )
        self._check_open()
        self._check_fence()
        self._steps += count
        due = self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds
        if self._steps < self._every and not due:
            if len(self._copy) <= _SMALL:
                self._take_copy()
            return False
        self.save()
        return True

    def save(self) -> None:
        """Save the state now, durable on return. Writes nothing if the state has not changed.

        Raises `UsageError` for a value that JSON cannot hold or would change, `Fenced` if another
        process has saved, `StoreError` if the disk failed; earlier saves stay intact. After
        `Fenced` nothing more is saved.
        """
        self._check_open()
        self._check_fence()
        self._generations.write(self._take_copy())
        self._steps, self._saved_at = 0, time.monotonic()

    def _take_copy(self) -> bytes:
        self._copy = encode_state(self._state, "state")
        return self._copy

    def _save_copy(self, error: BaseException) -> None:
        """Save the state of the last step. If that fails, add the reason as a note to ``error``."""
        if self._generations.fenced and isinstance(error, Fenced):
            return  # the error itself explains it
        try:
            self._generations.write(self._copy)
        except ResumableTasksError as failed:
            log.error("the snapshot %s could not be saved at the end: %s", self.path, failed)
            error.add_note(f"and the snapshot could not be saved at the end: {failed}")

    def _load(self) -> Generation | None:
        """Load the newest good generation, if there is one."""
        found = self._generations.find()
        if found.newest is None and found.damages:
            raise CheckpointDamaged(
                f"the snapshot {self.path} is damaged, and none of its generations is intact: "
                f"{next(iter(found.damages.values()))}. Restore one from a copy; or move the "
                "folder away, and the next run starts with the initial state",
                files=tuple(map(file_of, found.damages)),
            )
        if found.newest is None:
            self._state = json.loads(self._initial)
        else:
            found.warn(self.path)
            self._take(found.newest, found.fell_back)
        self._steps, self._saved_at = 0, time.monotonic()
        self._copy = self._generations.saved
        return found.newest

    def _take(self, found: Generation, fell_back: bool) -> None:
        if found.version != self._version:
            self._state = self._migrated(found.state, found.version)
            return
        self._state = found.state
        if not fell_back:  # after a fall-back, save again, so that the newest generation is good
            self._generations.saved = found.text

    def _migrated(self, state: Any, version: int) -> Any:
        where = (
            f"the snapshot {self.path} has version {version}, but this program has version "
            f"{self._version}"
        )
        if version > self._version:
            raise CheckpointMismatch(
                f"{where}: run the newer program, or name another path; nothing was changed"
            )
        if self._migrate is None:
            raise CheckpointMismatch(
                f"{where}: give migrate= a function of (state, version) that returns the new "
                "state, or name another path; nothing was changed"
            )
        try:
            state = self._migrate(state, version)
        except Exception as error:
            error.add_note(f"raised by migrate=: {where}; nothing was changed on the disk")
            raise
        if state is None:
            raise UsageError(f"{where}: migrate= returned None; let it return the new state")
        return json.loads(encode_state(state, "migrate(…)"))

    def _lock(self) -> None:
        try:
            self._unlock = disk.lock(self._store, LOCK)
        except NotImplementedError:
            return  # without locks the numbers protect: the second process to save is refused
        if self._unlock is None:
            raise CheckpointHeld(
                f"the snapshot {self.path} is in use by another process (or twice in this one). "
                "Wait for it to end, or name another path"
            )

    def _check_open(self) -> None:
        self._check_process()
        if not self._open:
            raise UsageError(
                f"the snapshot {self.path} is not open: use it in `with Snapshot(…) as snapshot:`"
            )

    def _check_process(self) -> None:
        if self._open and self._pid != os.getpid():
            raise UsageError(
                f"the snapshot {self.path} was opened by process {self._pid}, and this process, "
                f"{os.getpid()}, was forked from it: only the parent can use the snapshot. Pass "
                "the child what it needs, and let the parent record its results"
            )

    def _check_fence(self) -> None:
        if self._generations.fenced:
            raise Fenced(self._generations.fenced)

    def _let_go(self) -> None:
        self._open = False
        if self._unlock is not None:
            self._unlock()
            self._unlock = None
        if self._exits:
            signals.end_at_sigterm()
            self._exits = False


def _store_at(path: str | os.PathLike[str]) -> Store:
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise UsageError(
            f"a snapshot's path is a str or a Path, not {path!r}",
            remedy="Give the path of a folder",
        )
    place = os.fspath(path)
    if not place:
        raise UsageError("a snapshot's path is empty; name a folder")
    return open_store(place, "snapshot")
