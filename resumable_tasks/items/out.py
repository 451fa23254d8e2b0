"""Items that a service has had since an earlier run: not planned, but kept until it answers."""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from resumable_tasks.items import keys
from resumable_tasks.items.batch import Chunk
from resumable_tasks.items.keytable import KeyTable


class ItemsOut:
    """The keys that are out with a service, and their items as far as they were read.

    The planning thread removes these items from its own; another thread reports the answers. A key
    that was answered stays here, so that its item is not planned when it is read later.
    """

    def __init__(self) -> None:
        self._keys = KeyTable()
        # The items read are numbered; a chunk is stored under the number of its first item.
        self._numbers = KeyTable()
        self._chunks: dict[int, Chunk] = {}
        self._left: dict[int, int] = {}
        self._firsts: list[int] = []
        self._came = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._keys)

    def has_any(self, lines: Sequence[bytes]) -> bool:
        """True if one of these keys is out."""
        with self._lock:
            return self._keys.has_any(lines)

    def __contains__(self, line: bytes) -> bool:
        with self._lock:
            return line in self._keys

    @property
    def came(self) -> int:
        """How many of the items read were out when they were read."""
        return self._came

    def hold(self, lines: bytes) -> bytes:
        """Mark these newline-joined keys as out; return those that were not out before."""
        many = list(keys.split(lines))
        new = b"\n".join(many[at] for at in self._keys.missing(many))
        self._keys.add_lines(new)
        return new

    def take_out(self, chunk: Chunk) -> Chunk:
        """Return the chunk without the items that are out, which are kept here."""
        if not len(self._keys):
            return chunk
        with self._lock:
            left = self._keys.missing(chunk.lines)
            if len(left) < len(chunk):
                planned = set(left)
                self._keep(chunk.choose([n for n in range(len(chunk)) if n not in planned]))
        return chunk.choose(left)

    def _keep(self, chunk: Chunk) -> None:
        first, self._came = self._came, self._came + len(chunk)
        self._numbers.add_lines(b"\n".join(chunk.lines), range(first, self._came))
        self._chunks[first], self._left[first] = chunk, len(chunk)
        self._firsts.append(first)

    def answered(self, lines: bytes) -> None:
        """Forget the items of these keys: they were answered, and are not planned either."""
        with self._lock:
            for first, places in self._places(keys.split(lines)).items():
                self._forget(first, places)

    def release(self, lines: Sequence[bytes]) -> Chunk | None:
        """Make these keys plannable again; return their items read so far, None if there are none.

        The other items are planned when they are read.
        """
        with self._lock:
            for line in lines:
                self._keys.remove(line)
            places = self._places(lines)
            found = [self._chunks[first].choose(each) for first, each in places.items()]
            for first, each in places.items():
                self._forget(first, each)
        return Chunk.joined(found) if found else None

    def all_of(self, lines: bytes) -> Chunk | None:
        """Return the items of these keys in this order, or None until all were read.

        The items are kept.
        """
        wanted = list(keys.split(lines))
        with self._lock:
            if self._numbers.missing(wanted):
                return None
            places = self._places(wanted)
            found = Chunk.joined(
                [self._chunks[first].choose(each) for first, each in places.items()]
            )
        at = {line: place for place, line in enumerate(found.lines)}
        return found.choose([at[line] for line in wanted])

    def _places(self, lines: Sequence[bytes] | Iterator[bytes]) -> dict[int, list[int]]:
        """Return the indexes of these keys' items in their chunks, by the chunk's number."""
        places: dict[int, list[int]] = {}
        for line in lines:
            number = self._numbers.get(line)
            if number is not None:
                first = self._firsts[bisect_right(self._firsts, number) - 1]
                places.setdefault(first, []).append(number - first)
        return places

    def _forget(self, first: int, places: list[int]) -> None:
        chunk = self._chunks[first]
        for place in places:
            self._numbers.remove(chunk.lines[place])
        self._left[first] -= len(places)
        if not self._left[first]:
            del self._chunks[first], self._left[first]
