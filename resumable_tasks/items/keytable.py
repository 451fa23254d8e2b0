"""An exact map from canonical keys to numbers, compact and fast for millions of keys."""

from __future__ import annotations

import re
import threading
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

from resumable_tasks.base.hashes import blake2b

_NEWLINE, _TAB, _DEAD = b"\n\t\0"
# How many bytes of entries are turned into Python objects at once.
_PIECE = 1 << 22
# The type of a position in the index, for a block that fits 32 bits and for a larger one.
_NARROW, _WIDE = "I", "Q"
LONGEST = 80
"""The length in bytes of the longest key that is stored itself, not as a digest."""


class _Index(NamedTuple):
    """A hash table of the positions of all entries that begin before ``end`` in the block.

    It is replaced as a whole, so that readers always have slots, mask and end that belong together.
    """

    slots: array[int]
    mask: int
    end: int


_NO_INDEX = _Index(array("I", [0]), 0, 1)


class KeyTable:
    """An exact map from canonical keys to positions (or fingerprints), compact and fast.

    Up to 131,072 recent keys are in a dict. Older ones are stored end to end in one block, in the
    order in which they were added, one line each: the key, then a tab and its number unless that is
    -1. An index by Python's hash is built when a key is first looked up in the block; a walk along
    the block (`resumable_tasks.items.walk`) does not need it. A key of 15 bytes takes about 30
    bytes; in a dict of ``bytes`` it would take 140. Keys of up to 80 bytes are stored exactly,
    longer ones as 128-bit digests. ``docs/design/0003-keys-in-memory.md`` has the measurements.

    One thread adds and removes keys; others may look up keys meanwhile.
    """

    __slots__ = ("_block", "_frozen", "_hot", "_index", "_load", "_lock")

    _HOT = 1 << 17
    # The least slots per entry. Each collision reads memory that is in no cache.
    _ROOM = 3.2

    def __init__(self, count: int = 0, load: Callable[[], bytearray] | None = None) -> None:
        """Make an empty table, or one of ``count`` keys whose `block` is loaded when needed."""
        self._hot: dict[bytes, int] = {}
        self._block = bytearray(b"\n")
        self._frozen = count
        self._load = load
        self._index = _NO_INDEX
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._hot) + self._frozen

    def __contains__(self, key: bytes) -> bool:
        key = shortened([key])[0]
        return key in self._hot or self.place(key) > 0

    def get(self, key: bytes) -> int | None:
        """Return the position stored for this key, or None."""
        key = shortened([key])[0]
        position = self._hot.get(key)
        if position is not None:
            return position
        at = self.place(key)
        return self._number(at + len(key)) if at else None

    def add(self, key: bytes, position: int) -> bool:
        """Store a new key; if the key exists, change nothing and return False."""
        if key in self:
            return False
        self._hot[shortened([key])[0]] = position
        if len(self._hot) >= self._HOT:
            self.freeze()
        return True

    def add_new(self, many: Sequence[bytes], positions: Sequence[int]) -> bool:
        """`add` for many keys, all or none: return False if any is not new."""
        if not many:
            return True
        many, hot = shortened(many), self._hot
        if not hot.keys().isdisjoint(many) or len(self._not_frozen(many)) < len(many):
            return False
        before = len(hot)
        hot.update(zip(many, positions, strict=True))
        if len(hot) < before + len(many):  # one of them occurs twice
            for key in many:
                hot.pop(key, None)
            return False
        if len(hot) >= self._HOT:
            self.freeze()
        return True

    def missing(self, many: Sequence[bytes]) -> Sequence[int]:
        """Return the indexes of the keys that are not in the table."""
        if not len(self):
            return range(len(many))
        many, hot = shortened(many), self._hot
        return [at for at in self._not_frozen(many) if many[at] not in hot]

    def has_any(self, many: Sequence[bytes]) -> bool:
        """True if any of these keys is in the table."""
        many = shortened(many)
        if not self._hot.keys().isdisjoint(many):
            return True
        if not self._frozen or not many:
            return False
        if not self.indexed:  # the first is usually there, so try it without building the index
            found = self.block.find(b"\n" + many[0])
            if found >= 0 and self.block[found + 1 + len(many[0])] in (_NEWLINE, _TAB):
                return True
        return any(self.places(many))

    def add_lines(self, lines: bytes, positions: Sequence[int] | None = None) -> None:
        """Store newline-joined keys that are known to be new; without positions they get -1."""
        if lines:
            many = shortened(lines.split(b"\n"))
            self._hot.update(
                dict.fromkeys(many, -1) if positions is None else zip(many, positions, strict=True)
            )
            if len(self._hot) >= self._HOT:
                self.freeze()

    def forget_positions(self) -> None:
        """Give every key the position -1."""
        self._hot = dict.fromkeys(self._hot, -1)
        self._block = bytearray(re.sub(rb"\t-?[0-9]+\n", b"\n", self.block))
        self.forget_index()

    def forget_index(self) -> None:
        """Free the index until the next lookup; no other thread may look up keys meanwhile."""
        self._index = _NO_INDEX

    def remove(self, key: bytes) -> bool:
        """Remove a key; return False if it was not there."""
        key = shortened([key])[0]
        if self._hot.pop(key, None) is not None:
            return True
        at = self.place(key)
        if not at:
            return False
        self._block[at] = _DEAD  # no canonical key begins with this byte
        self._frozen -= 1
        return True

    @property
    def block(self) -> bytearray:
        """The entries that are not in the dict: a newline, then each entry with a newline."""
        if self._load is not None:
            with self._lock:
                if self._load is not None:
                    self._block, self._load = self._load(), None
        return self._block

    def freeze(self) -> None:
        """Move the dict's keys into the block."""
        if not self._hot:
            return
        if set(self._hot.values()) == {-1}:
            more = b"\n".join(self._hot)
        else:
            more = b"\n".join(map(entry, self._hot, self._hot.values()))
        block = self.block
        block += more
        block += b"\n"
        self._frozen += len(self._hot)
        self._hot = {}

    def living(self) -> memoryview:
        """Return all entries, newline-ended, without removed keys.

        No key can be added until the view is released.
        """
        self.freeze()
        block = self.block
        dead = b"\n\0" in block
        return memoryview(re.sub(rb"\n\0[^\n]*(?=\n)", b"", block) if dead else block)[1:]

    def place(self, key: bytes) -> int:
        """Return the position of this (short) key's entry in the block; 0 if there is none."""
        if not self._frozen:
            return 0
        block = self.block
        slots, mask, _ = self._whole_index()
        slot = hash(key) & mask
        size = len(key)
        while at := slots[slot]:
            if block.startswith(key, at) and block[at + size] in (_NEWLINE, _TAB):
                return at
            slot = slot + 1 & mask
        return 0

    def places(self, many: Sequence[bytes]) -> list[int]:
        """`place` of each of these (short) keys."""
        if not self._frozen:
            return [0] * len(many)
        block = self.block
        slots, mask, _ = self._whole_index()
        starts = block.startswith
        found = []
        for key in many:
            slot = hash(key) & mask
            size = len(key)
            while at := slots[slot]:
                if starts(key, at) and block[at + size] in (_NEWLINE, _TAB):
                    break
                slot = slot + 1 & mask
            found.append(at)
        return found

    def _not_frozen(self, many: Sequence[bytes]) -> Sequence[int]:
        """Return the indexes of the (short) keys that are not in the block."""
        if not self._frozen:
            return range(len(many))
        return [at for at, place in enumerate(self.places(many)) if not place]

    def _number(self, end: int) -> int:
        """Return the number of the entry whose key ends at ``end``."""
        block = self._block
        if block[end] == _NEWLINE:
            return -1
        return int(block[end + 1 : block.index(b"\n", end)])

    @property
    def indexed(self) -> bool:
        """True if the index covers the whole block."""
        return self._index.end == len(self.block)

    def _whole_index(self) -> _Index:
        """Return the index, extended to the block's newest entries."""
        index = self._index
        if index.end == len(self.block):
            return index
        del index  # frees its memory before a larger one is made
        with self._lock:
            self._make_room()
            while self._index.end < len(self._block):
                self._take_in_piece()
            return self._index

    def _make_room(self) -> None:
        # Removed keys count too; there are few.
        entries = self._frozen + self._block.count(b"\n\0")
        slots, mask, _ = self._index
        room = mask + 1 if mask else 0
        kind = _NARROW if len(self._block) < 1 << 8 * array(_NARROW).itemsize else _WIDE
        if room < entries * self._ROOM or kind != slots.typecode:
            size = 1 << int(2 * entries * self._ROOM).bit_length() - 1
            # Free the old index first. A thread that is using it still holds it; others wait.
            del slots
            self._index = _NO_INDEX
            self._index = _Index(array(kind, [0]) * size, size - 1, 1)

    def _take_in_piece(self) -> None:
        block, (slots, mask, at) = self._block, self._index
        end = block.find(b"\n", min(at + _PIECE, len(block) - 1)) + 1
        piece = bytes(block[at : end - 1])
        numbered = b"\t" in piece
        for line in piece.split(b"\n"):
            slot = hash(line.partition(b"\t")[0] if numbered else line) & mask
            while slots[slot]:
                slot = slot + 1 & mask
            slots[slot] = at
            at += len(line) + 1
        self._index = _Index(slots, mask, end)


def entry(key: bytes, number: int) -> bytes:
    """Return the entry of a (short) key in a block."""
    return key if number == -1 else b"%b\t%d" % (key, number)


def entries(many: Sequence[bytes], numbers: Sequence[int] | None) -> Sequence[bytes]:
    """`entry` for each of these (short) keys; without numbers they get -1."""
    return many if numbers is None else list(map(entry, many, numbers))


def shortened(many: Sequence[bytes]) -> Sequence[bytes]:
    """Return these keys with long ones replaced by digests."""
    if not many or max(map(len, many)) <= LONGEST:
        return many
    return [key if len(key) <= LONGEST else _digest(key) for key in many]


def _digest(key: bytes) -> bytes:
    # No canonical key begins with "#", so a digest is never mistaken for a key.
    return b"#" + blake2b(key, digest_size=16).hexdigest().encode()
