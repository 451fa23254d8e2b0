"""The numbered files of one snapshot, and the rules for adding the next one."""

from __future__ import annotations

from resumable_tasks.checkpoint.snapshot.format import (
    Found,
    encode,
    file_of,
    find,
    number_of,
    numbers,
)
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import Fenced, StoreError


class Generations:
    """The files of one snapshot, for the process that adds to them."""

    def __init__(self, store: Store, *, keep: int, version: int) -> None:
        self._store = store
        self._keep = keep
        self._version = version
        self.newest = 0
        """The number of the last generation written or found; 0 if there is none."""
        self.saved = b""
        """The state in it; empty if it must be written again."""
        self.fenced = ""
        """The reason why nothing may be written any more; empty if there is none."""
        # The numbers of the newest good generations, oldest first.
        self._good: list[int] = []
        # A write that was begun and has not ended.
        self._begun: tuple[int, bytes] | None = None

    def find(self) -> Found:
        """Find the newest good generation, and continue after the highest taken number."""
        found = find(self._store, self._keep)
        # Also after a damaged generation.
        self.newest, self._good = found.highest, found.good
        self.saved, self.fenced, self._begun = b"", "", None
        return found

    def write(self, state: bytes) -> None:
        """Write the state as the next generation, durable on return, if it has changed.

        Raises:
            Fenced: another process has written; this object writes nothing from then on.
            StoreError: the disk has failed; the generation before remains.
        """
        if state == self.saved:
            return
        if self.fenced:
            raise Fenced(self.fenced)
        self._settle()
        number = self.newest + 1
        name, data = file_of(number), encode(state, number, self._version)
        self._begun = number, data
        try:
            created = self._store.create(name, data)
        except CreateUnknown as error:
            raise StoreError(
                f"{error}. The snapshot's generation {self._good[-1] if self._good else 0} is "
                "intact; fix the disk and continue, or run again"
            ) from error
        if not created and self._standing_at(name) != data:
            raise self._fence(number)
        there = numbers(self._store)
        if there and there[-1] > number:
            # The name was free because another process has moved on and cleaned up.
            self._store.delete(name)
            raise self._fence(there[-1])
        self.newest, self.saved = number, state
        self._good = [*self._good, number][-self._keep :]
        self._begun = None
        if len(self._good) == self._keep:
            for old in self._store.list(""):
                if (number_of(old) or number) < self._good[0]:
                    self._store.delete(old)

    def _settle(self) -> None:
        """Settle a write that did not end, because of Ctrl-C or a failed disk.

        Only a file that this process wrote counts as its own. Even that may not be durable, so the
        next write takes the next number.
        """
        if self._begun is not None:
            number, data = self._begun
            standing = self._standing_at(file_of(number))
            if standing == data:
                self.newest = number
            elif standing is not None:
                raise self._fence(number)
            self._begun = None

    def _standing_at(self, name: str) -> bytes | None:
        """The bytes of this file. A random nonce identifies the generations of this process."""
        try:
            disk.sync(self._store, "")
            return self._store.read(name)
        except FileNotFoundError:
            return None

    def _fence(self, number: int) -> Fenced:
        self.fenced = (
            f"another process saved generation {number} of the snapshot {self._store.url}; the "
            f"work of this process since generation {self.newest} is not saved. Run one process at "
            "a time"
        )
        return Fenced(self.fenced)
