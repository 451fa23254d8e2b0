"""Items that a service has since an earlier run: not planned, but kept until it answers."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from resumable_tasks.items import keys
from resumable_tasks.items.batch import Chunk
from resumable_tasks.items.keytable import KeyTable


class ItemsOut:
    """The keys that are out, and those of their items that have come.

    The thread that plans takes out of its items what is out; another learns what became of it. A
    key whose item was answered stays known, so that an item that comes later is not planned.
    """

    def __init__(self) -> None:
        self._keys = KeyTable()
        self._kept: dict[bytes, Chunk] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    def hold(self, lines: bytes) -> None:
        """Let these newline-joined keys be out, as far as they are not yet."""
        new = [line for line in keys.split(lines) if line not in self._keys]
        self._keys.add_lines(b"\n".join(new))

    def take_out(self, chunk: Chunk) -> Chunk:
        """The chunk without the items that are out, which are kept."""
        if not len(self._keys):
            return chunk
        with self._lock:
            out = [at for at, line in enumerate(chunk.lines) if line in self._keys]
            for at in out:
                self._kept[chunk.lines[at]] = chunk.choose([at])
        held = set(out)
        return chunk.choose([at for at in range(len(chunk)) if at not in held]) if out else chunk

    def answered(self, lines: bytes) -> None:
        """Forget the items of these keys, which are not out any more and not to be planned."""
        with self._lock:
            for line in keys.split(lines):
                self._kept.pop(line, None)

    def release(self, lines: Sequence[bytes]) -> Chunk | None:
        """Let these keys be planned again; the items of them that have come, None if none have.

        The others are planned when they come.
        """
        with self._lock:
            for line in lines:
                self._keys.remove(line)
            found = [self._kept.pop(line) for line in lines if line in self._kept]
        return Chunk.joined(found) if found else None
