"""Matches a run's items with the completed keys, fast because both mostly have the same order.

The completed keys are stored end to end in the order of the journal (`KeyTable.block`), so a rerun
mostly walks along them: a thousand joined keys are compared with the next part of the block, at
once and exactly. Batches may be committed in another order than planned, so the positions that were
jumped over are remembered and tried first. If the items have no order at all, each key is looked
up.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import field
from itertools import chain

from resumable_tasks.base.frozen import changing
from resumable_tasks.items.keytable import KeyTable, entries, shortened

# How far around the last key to search before using the index, and before building it.
_NEAR, _FAR = 1 << 14, 1 << 18
_GAPS = 32
# If a third or more of this many lines had to be searched for, the items have no order.
_JUDGED = 1_000


@changing
class Match:
    """The keys of consecutive items, matched with the completed ones.

    ``stretches``: keys in a row that are completed with the same fingerprint, each as the index of
    the first, their count, and the start and end of their entries in the block. ``others``: the
    index of each remaining key, and the position of its entry, 0 if it is not completed.
    ``places``: used instead if all keys are completed but in no order: the positions of their
    entries.
    """

    stretches: list[tuple[int, int, int, int]] = field(default_factory=list)
    others: list[tuple[int, int]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    def overlaps(self) -> bool:
        """True if a key occurs twice, with the stored fingerprint and with another one."""
        others = sorted(place for _, place in self.others)
        within = (
            bisect_left(others, end) - bisect_left(others, at) for *_, at, end in self.stretches
        )
        return bool(others) and any(within)


class Walk:
    """Finds keys among the completed ones, and marks those seen in this run.

    The table must not change meanwhile.
    """

    def __init__(self, done: KeyTable) -> None:
        done.freeze()
        self._done = done
        self._at = 1
        self._gaps: list[int] = []
        self._ordered = True
        self._lines = self._jumps = 0
        # One byte per two bytes of the block: an entry has at least two.
        self._marks = bytearray()
        # The items seen: the position of the first item, and the start and end of the part of the
        # block. Items in no order: the position of the first item, and the entries' positions.
        self._came = array("Q"), array("Q"), array("Q")
        self._came_singly: list[tuple[int, array[int]]] = []
        self._numbered: bool | None = None
        self.count = 0

    def follows(self, text: bytes, count: int) -> Match | None:
        """Match ``count`` newline-ended entries if they are exactly the next ones in the block."""
        if not self._done.block.startswith(text, self._at):
            return None
        start, self._at = self._at, self._at + len(text)
        return Match([(0, count, start, self._at)])

    def match(self, lines: Sequence[bytes], numbers: Sequence[int] | None = None) -> Match:
        """Find these keys, with their fingerprints if the job uses them. Marks nothing."""
        if not len(self._done):
            return Match(others=[(at, 0) for at in range(len(lines))])
        lines = shortened(lines)
        each = entries(lines, numbers)
        if not self._ordered:
            return self._look_up(lines, each)
        return self._compare(lines, each)

    def _look_up(self, lines: Sequence[bytes], each: Sequence[bytes]) -> Match:
        found = Match()
        block = self._done.block
        places = self._done.places(lines)
        if self._numbered is None:
            self._numbered = b"\t" in block
        if not self._numbered and each is lines and 0 not in places:
            return Match(places=places)
        for at, (place, line, entry) in enumerate(zip(places, lines, each, strict=True)):
            if not place:
                found.others.append((at, 0))
                continue
            end = place + len(entry)
            same = block[end] == 10 if entry is line else block.startswith(entry + b"\n", place)
            if same:
                found.stretches.append((at, 1, place, end + 1))
            else:
                found.others.append((at, place))
        return found

    def _compare(self, lines: Sequence[bytes], each: Sequence[bytes]) -> Match:
        found, block, at, count = Match(), self._done.block, 0, len(lines)
        size, since = count, 0
        while at < count:
            if not block.startswith(each[at] + b"\n", self._at):
                place = self._jump(lines[at], each[at])
                # The next run of matching entries is probably as long as the last one.
                size, since = max(1, since), 0
                if place != self._at:
                    found.others.append((at, place))
                    at += 1
                continue
            size = min(size, count - at)
            text = b"\n".join(each[at : at + size]) + b"\n"
            while not block.startswith(text, self._at):
                size //= 2
                text = b"\n".join(each[at : at + size]) + b"\n"
            found.stretches.append((at, size, self._at, self._at + len(text)))
            self._at += len(text)
            at += size
            since += size
            size *= 2
        self._lines += count
        if self._lines >= _JUDGED:
            self._ordered = 3 * self._jumps < self._lines
            self._lines = self._jumps = 0
        return found

    def _jump(self, line: bytes, entry: bytes) -> int:
        """Return the position of this key's entry, 0 if there is none.

        The walk continues there, or after the entry if it has another fingerprint.
        """
        block, wanted = self._done.block, entry + b"\n"
        self._jumps += 1
        for at, gap in enumerate(self._gaps):
            if block.startswith(wanted, gap):
                self._gaps[at], self._at = self._at, gap
                return gap
        place = block.find(b"\n" + wanted, self._at - 1, self._at + _NEAR) + 1
        if not place and not self._done.indexed:
            place = block.find(b"\n" + wanted, max(0, self._at - _FAR), self._at + _FAR) + 1
        if not place:
            place = self._done.place(line)
            if not place:
                return 0
            if not block.startswith(wanted, place):
                self._at = block.index(b"\n", place) + 1
                return place
        if not self._marks or (self._at < len(block) and not self._marks[self._at >> 1]):
            self._gaps = [self._at, *self._gaps[: _GAPS - 1]]
        self._at = place
        return place

    def take(self, found: Match, first: int) -> bool:
        """Mark all found keys as seen; if any was seen before, mark nothing and return False.

        ``first``: the position of the first item.
        """
        if found.places:
            return self._take_places(found.places, first)
        if not found.stretches:
            return True
        marks = self._ready_marks()
        for done, (_, count, start, end) in enumerate(found.stretches):
            start, end = start >> 1, end >> 1
            if marks.find(1, start, end) >= 0 if count > 1 else marks[start]:
                for *_, start, end in found.stretches[:done]:
                    marks[start >> 1 : end >> 1] = bytes((end >> 1) - (start >> 1))
                return False
            if count > 1:
                marks[start:end] = b"\1" * (end - start)
            else:
                marks[start] = 1
        at, counts, starts, ends = zip(*found.stretches, strict=True)
        self.count += sum(counts)
        for column, values in zip(self._came, (map(first.__add__, at), starts, ends), strict=True):
            column.extend(values)
        return True

    def _take_places(self, places: list[int], first: int) -> bool:
        marks = self._ready_marks()
        for done, place in enumerate(places):
            if marks[place >> 1]:
                for place in places[:done]:
                    marks[place >> 1] = 0
                return False
            marks[place >> 1] = 1
        self._came_singly.append((first, array("Q", places)))
        self.count += len(places)
        return True

    def take_each(self, found: Match, first: int, lines: Sequence[bytes]) -> list[int]:
        """Mark the found keys as seen; return the indexes of those seen before.

        Keys that are completed with another fingerprint are marked too.
        """
        lines, indexes = shortened(lines), [at for at, place in found.others if place]
        if found.overlaps() or not self.take(found, first):
            stretched = (range(at, at + count) for at, count, *_ in found.stretches)
            # In the order of the items, because the first of two duplicates counts.
            indexes = sorted([*chain(*stretched), *range(len(found.places)), *indexes])
        return [at for at in indexes if not self._take_one(lines, at, first)]

    def _take_one(self, lines: Sequence[bytes], at: int, first: int) -> bool:
        start = self._done.place(lines[at])
        end = self._done.block.index(b"\n", start) + 1
        return self.take(Match([(at, 1, start, end)]), first)

    def _ready_marks(self) -> bytearray:
        if not self._marks:
            self._marks = bytearray((len(self._done.block) >> 1) + 1)
        return self._marks

    def __contains__(self, key: bytes) -> bool:
        """True if the item of this completed key was seen."""
        if not self._marks:
            return False
        place = self._done.place(shortened([key])[0])
        return place > 0 and self._marks[place >> 1] == 1

    def came(self) -> Iterator[tuple[int, bytes]]:
        """Yield the completed keys seen: the position of an item, and its key joined by newlines
        with the keys of the items that follow it. Long keys are digests.
        """
        block = self._done.block
        for first, places in self._came_singly:
            for at, start in enumerate(places):
                yield first + at, bytes(block[start : block.index(b"\n", start)])
        for position, start, end in zip(*self._came, strict=True):
            entries = bytes(block[start : end - 1])
            if b"\t" in entries:
                entries = b"\n".join(each.partition(b"\t")[0] for each in entries.split(b"\n"))
            yield position, entries


class Seen:
    """The keys of a run's items so far, with their positions.

    The keys of completed items are kept as marks in the walk.
    """

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self._new = KeyTable()
        self._all: KeyTable | None = None

    def __len__(self) -> int:
        return self.walk.count + len(self._new)

    def __contains__(self, key: bytes) -> bool:
        return key in self._new or key in self.walk

    def get(self, key: bytes) -> int | None:
        """Return the position of the item with this key; None if there is none."""
        position = self._new.get(key)
        if position is not None or not self.walk.count:
            return position
        if self._all is None or len(self._all) != self.walk.count:
            self._all = KeyTable()
            for first, lines in self.walk.came():
                count = lines.count(b"\n") + 1
                self._all.add_lines(lines, range(first, first + count))
        return self._all.get(key)

    def rest(self) -> None:
        """Free the index, which only speeds up adding more keys."""
        self._new.forget_index()

    def add(self, many: Sequence[bytes], positions: Sequence[int]) -> list[int]:
        """Add keys that are not completed; return the indexes of those seen before."""
        if self._new.add_new(many, positions):
            return []
        each = enumerate(zip(many, positions, strict=True))
        return [at for at, (key, position) in each if not self._new.add(key, position)]
