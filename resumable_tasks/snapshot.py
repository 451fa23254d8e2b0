"""State that is a structure, not a set of keys: saved whole, now and then, and never half.

A snapshot is a folder of numbered generations, each an immutable file made by put-if-absent::

    {"snapshot":1,"generation":7,"version":1,"time":"…","nonce":"…"}
    {"cursor":"c120","totals":{"eur":17.5}}
    {"end":7,"checksum":"…"}

The checksum is the BLAKE2b-128 of the lines before the last, as in the journal. A generation is
linked to its name only once it is flushed, so no crash leaves a torn one; what disks and people do
is found, and the generation before is taken.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from typing import Any

from resumable_tasks import log
from resumable_tasks.checkpoint import open_store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointHeld,
    CheckpointMismatch,
    CheckpointUnusable,
    Fenced,
    ResumableTasksError,
    StoreError,
    UsageError,
)
from resumable_tasks.generations import (
    damaged,
    decode,
    encode,
    encode_state,
    file_of,
    number_of,
)
from resumable_tasks.store.base import CreateUnknown, Store
from resumable_tasks.store.local import in_temporary_folder

LOCK = "lock"
# `fsync` must not be what a loop of quick steps spends its time with.
_SECONDS = 30.0
# A copy of the state is taken at each step if it has no more bytes than this; else at one after so
# many times as long as the last copy took.
_SMALL = 16_384
_COPY_SHARE = 20

Migrate = Callable[[Any, int], Any]
"""Given a state and the version it was saved in, gives the state of the wanted version."""


class Snapshot:
    """State of JSON values that survives its process; for one process at a time.

    ``step()`` says that the state is one to go on from: it is saved, durable on return, at every
    ``every``-th step and at a step ``seconds`` after the last save; and at the end of the ``with``
    block. If the block ends by an exception, Ctrl-C included, the state may be half changed: what
    is saved then is a copy that was taken at the last step (of a state of more than 16 KiB, maybe
    at one shortly before it). Not for use by several threads at once.

    Args:
        path: the snapshot's folder, which need not exist.
        every: steps from one save to the next.
        seconds: how long a step may go unsaved, looked at when the next one ends; None: however
            long.
        initial: the state where there is no snapshot yet; an empty dict if not given.
        keep: how many good generations are kept.
        version: of the state's structure; raise it when the structure changes.
        migrate: called with a state of an older version, and that version; gives the new state.
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
                raise UsageError(f"{name}={value!r} is not a whole number from 1")
        if seconds is not None and not (type(seconds) in (int, float) and 0 <= seconds < math.inf):
            raise UsageError(f"seconds={seconds!r} is no number of seconds, nor None")
        if not os.fspath(path):
            raise UsageError("a snapshot's path is empty; name a folder")
        self._store: Store = open_store(os.fspath(path))
        self._every, self._seconds, self._keep = every, seconds, keep
        self._version, self._migrate = version, migrate
        # As text, so that what the caller does to it later changes nothing here.
        self._initial = encode_state({} if initial is None else initial, "initial")
        self._unlock: Callable[[], None] | None = None
        self._open = False
        self._state: Any = None
        self._saved = b""
        self._saved_at = 0.0
        # The state as of a step, for an end by an exception.
        self._copy = b""
        self._copied_at = self._copy_seconds = 0.0
        self._steps = 0
        # The numbers of the newest good generations, oldest first.
        self._good: list[int] = []
        self.generation = 0
        """The number of the generation that was saved or found last; 0 if there is none."""

    @property
    def path(self) -> str:
        return self._store.url

    @property
    def state(self) -> Any:
        """What is saved: change it in place, or set it."""
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
        if self._open:
            raise UsageError(f"the snapshot {self.path} is open already")
        self._refuse_foreign()
        self._store.prepare(())
        try:
            self._unlock = self._store.lock(LOCK)
        except NotImplementedError:
            pass  # the numbers alone keep two apart then: the second one to save is refused
        else:
            if self._unlock is None:
                raise CheckpointHeld(
                    f"the snapshot {self.path} is in use by another process (or twice in this "
                    "one). Wait for it to end, or name another path"
                )
        try:
            self._store.sync("")  # what is believed must be durable
            self._store.sweep("", lambda name: number_of(name) is not None)
            self._load()
        except BaseException:
            self._let_go()
            raise
        if in_temporary_folder(self._store):
            log.warning(
                "the snapshot %s lies in a temporary folder, which the system empties: name "
                "another path for work that matters",
                self.path,
            )
        self._open = True
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> None:
        try:
            if error is None:
                self.save()
            else:
                self._save_copy(error)
        finally:
            self._open = False
            self._let_go()

    def step(self, count: int = 1) -> bool:
        """Say that the state is one to go on from; whether it was saved. Raises as `save` does."""
        self._check_open()
        self._steps += count
        due = self._seconds is not None and time.monotonic() - self._saved_at >= self._seconds
        if self._steps < self._every and not due:
            pause = 0.0 if len(self._copy) <= _SMALL else _COPY_SHARE * self._copy_seconds
            if time.monotonic() - self._copied_at >= pause:
                self._take_copy()
            return False
        self.save()
        return True

    def save(self) -> None:
        """Save the state now, durable on return; nothing is written if it has not changed.

        Raises `UsageError` for a value that JSON cannot hold or would change, `Fenced` if another
        process has saved, `StoreError` if the disk has failed; what was saved before stands.
        """
        self._check_open()
        text = self._take_copy()
        if text != self._saved:
            self._write(text)
            self._saved = text
        self._steps, self._saved_at = 0, time.monotonic()

    def _take_copy(self) -> bytes:
        began = time.monotonic()
        self._copy = encode_state(self._state, "state")
        self._copied_at = time.monotonic()
        self._copy_seconds = self._copied_at - began
        return self._copy

    def _save_copy(self, error: BaseException) -> None:
        """Save the state as of a step. What keeps it from being saved is a note of ``error``."""
        if self._copy == self._saved:
            return
        try:
            if self._unlock is not None:
                # Ctrl-C may have come between the creation of a generation and our knowing it.
                self.generation = max([self.generation, *self._numbers()])
            self._write(self._copy)
        except ResumableTasksError as failed:
            log.error("the snapshot %s could not be saved at the end: %s", self.path, failed)
            error.add_note(f"and the snapshot could not be saved at the end: {failed}")

    def _write(self, text: bytes) -> None:
        number = self.generation + 1
        name, data = file_of(number), encode(text, number, self._version)
        try:
            created = self._store.create(name, data)
        except CreateUnknown as error:
            self.generation = number  # the name may be taken, by what may not be durable
            raise StoreError(
                f"{error}. The snapshot's generation {self._good[-1] if self._good else 0} stands; "
                "mend the disk and go on, or run again"
            ) from error
        if not created and not self._is_ours(name, data):
            raise self._fenced(number)
        there = self._numbers()
        if there and there[-1] > number:
            # The name was free again: another process has gone on long since, and cleared up.
            self._store.delete(name)
            raise self._fenced(there[-1])
        self.generation = number
        self._good.append(number)
        self._good = self._good[-self._keep :]
        if len(self._good) == self._keep:
            for old in there:
                if old < self._good[0]:
                    self._store.delete(file_of(old))

    def _is_ours(self, name: str, data: bytes) -> bool:
        """Whether what stands there is what was to be created: its nonce is random."""
        try:
            self._store.sync("")
            return self._store.read(name) == data
        except FileNotFoundError:
            return False

    def _fenced(self, number: int) -> Fenced:
        return Fenced(
            f"another process has saved generation {number} of the snapshot {self.path}; what this "
            f"one has done since generation {self.generation} is not saved. Run one at a time"
        )

    def _load(self) -> None:
        numbers = self._numbers()
        found: tuple[bytes, Any, int] | None = None
        bad: list[str] = []
        self._good = []
        for number in reversed(numbers):
            try:
                text, state, version = decode(self._read(number), number)
            except CheckpointDamaged as error:
                bad.append(str(error))
                continue
            self._good.insert(0, number)
            found = found or (text, state, version)
            if len(self._good) == self._keep:
                break
        files = tuple(line.split(":")[0] for line in bad)
        if found is None and numbers:
            raise CheckpointDamaged(
                f"the snapshot {self.path} is damaged, and no generation of it is good: {bad[0]}. "
                "Put one back from a copy; or move the folder away, and the next run begins with "
                "the initial state",
                files=files,
            )
        for what in bad:
            log.warning("the snapshot %s is damaged: %s; an older one is used", self.path, what)
        # After the highest number, also if that one is damaged.
        self.generation = numbers[-1] if numbers else 0
        self._steps, self._saved_at = 0, time.monotonic()
        self._copied_at = self._copy_seconds = 0.0
        if found is None:
            self._state, self._saved = json.loads(self._initial), b""
        else:
            text, state, version = found
            self._saved = text if version == self._version and not bad else b""
            self._state = state if version == self._version else self._migrated(state, version)
        self._copy = self._saved

    def _migrated(self, state: Any, version: int) -> Any:
        where = f"the snapshot {self.path} is of version {version}, and this is {self._version}"
        if version > self._version:
            raise CheckpointMismatch(
                f"{where}: run the newer program, or name another path; nothing was changed"
            )
        if self._migrate is None:
            raise CheckpointMismatch(
                f"{where}: give migrate= a function of (state, version) that gives the new state, "
                "or name another path; nothing was changed"
            )
        try:
            state = self._migrate(state, version)
        except Exception as error:
            error.add_note(f"raised by migrate=: {where}; nothing was changed on the disk")
            raise
        if state is None:
            raise UsageError(f"{where}: migrate= gave None; let it return the new state")
        return json.loads(encode_state(state, "migrate(…)"))

    def _read(self, number: int) -> bytes:
        try:
            return self._store.read(file_of(number))
        except FileNotFoundError:
            raise damaged(number, "it has gone while it was being read") from None

    def _numbers(self) -> list[int]:
        return sorted(n for n in map(number_of, self._store.list("")) if n is not None)

    def _refuse_foreign(self) -> None:
        if os.path.isfile(self.path):
            raise CheckpointUnusable(
                f"{self.path} is a file; a snapshot is a folder: name another path, and give what "
                "the file holds as initial="
            )
        there = self._store.list("")
        foreign = sorted(name for name in there if name != LOCK)
        if not foreign and not there and self._store.exists():
            foreign = [name for name in os.listdir(self.path) if not name.endswith(".tmp")]
        if foreign and not any(number_of(name) is not None for name in there):
            raise CheckpointUnusable(
                f"{self.path} holds other things ({foreign[0]!a}) and is no "
                "snapshot; name a folder of its own, which need not exist yet"
            )

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError(
                f"the snapshot {self.path} is not open: use it in `with Snapshot(…) as snapshot:`"
            )

    def _let_go(self) -> None:
        if self._unlock is not None:
            self._unlock()
            self._unlock = None
