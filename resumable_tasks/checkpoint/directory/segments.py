"""Segments of the journal: many small records, unchanged, in one file.

``journal/<first>-<last>-<kept>.jsonl.gz`` holds all bytes of these records, one after the other
(``zcat`` shows them). It is created by put-if-absent and never changes. A record in a segment is
the valid record of its number, even if another file has that number. ``kept`` of the records also
keep their own files: `resumable_tasks.checkpoint.directory.folding` decides which.
"""

from __future__ import annotations

import contextlib
import json
import re
import zlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import field
from math import inf
from typing import NamedTuple

from resumable_tasks.base.frozen import changing
from resumable_tasks.checkpoint.directory.record import OF_WORK, Commit
from resumable_tasks.checkpoint.directory.records import (
    FOLDER,
    MOST_BYTES,
    UNREADABLE,
    damaged,
    decode,
    record_name,
    record_number,
)
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged

_NAME = re.compile(FOLDER + r"/([0-9]{20})-([0-9]{20})-([0-9]{1,4})\.jsonl\.gz")
# The limits of a segment; a name that claims more records is not a segment's.
MOST_RECORDS, MOST_PLAIN = 2_048, 4 << 20
_GZIP = 31  # the window of zlib, and a header
_IN_A_MEMBER, _MEMBER = 64, zlib.compressobj(wbits=_GZIP).flush()[:8]
_END = b'\n{"end":'
_STEP = 1_024
# A run appends these kinds only after its own claim, so no other record can have their number.
_NEVER_VOID = ("close", *OF_WORK)


class Segment(NamedTuple):
    """A file with the records ``first`` to ``last``; ``kept`` of them also keep their own file."""

    first: int
    last: int
    kept: int

    @property
    def name(self) -> str:
        return f"{FOLDER}/{self.first:020d}-{self.last:020d}-{self.kept}.jsonl.gz"

    @property
    def numbers(self) -> range:
        return range(self.first, self.last + 1)


def segment_of(name: str) -> Segment | None:
    """The segment with this name; None if it is not a segment's name."""
    found = _NAME.fullmatch(name)
    if found is None:
        return None
    first, last, kept = map(int, found.groups())
    return Segment(first, last, kept) if 0 <= last - first < MOST_RECORDS else None


@changing
class Listing:
    """The numbers of a journal's records, in order, and its segments."""

    numbers: Sequence[int] = ()
    segments: list[Segment] = field(default_factory=list)

    @classmethod
    def of(cls, names: Iterable[str]) -> Listing:
        """The listing of a folder with these names."""
        numbers, segments = set[int](), list[Segment]()
        for name in names:
            number = record_number(name)
            if number is not None:
                numbers.add(number)
            elif (segment := segment_of(name)) is not None:
                segments.append(segment)
                numbers.update(segment.numbers)
        return cls(sorted(numbers), sorted(segments))

    def __len__(self) -> int:
        return len(self.numbers)

    def since(self, first: int, last: float = inf) -> Listing:
        """The records from ``first`` to ``last``."""
        return Listing([n for n in self.numbers if first <= n <= last], self.segments)

    def segment_with(self, number: int) -> Segment | None:
        """The segment that contains a record; None if the record has only its own file."""
        at = bisect_right(self.segments, number, key=lambda segment: segment.first)
        for segment in reversed(self.segments[:at]):
            if number in segment.numbers:
                return segment
            if segment.first + MOST_RECORDS < number:
                break
        return None

    def files(self, numbers: Iterable[int]) -> list[tuple[Segment | None, list[int]]]:
        """The files to read for these records, each with the records to take from it."""
        found: list[tuple[Segment | None, list[int]]] = []
        for number in numbers:
            here = found[-1][0] if found else None
            if here is not None and number in here.numbers:
                found[-1][1].append(number)
            else:
                found.append((self.segment_with(number), [number]))
        return found


def listed(store: Store, first: int = 0) -> Listing:
    """The records of a journal from ``first`` on."""
    # A listing is no snapshot. It can miss a record that is created meanwhile and show its
    # successor, and it can miss a record that moves into a segment meanwhile. Each happens to a
    # record once, so a record missing in three listings does not exist. Records after the first
    # listing's last are left out: the third listing may show them with gaps.
    names = set(disk.names(store, FOLDER))
    found = Listing.of(names).since(first)
    for _ in range(2):
        if not found or found.numbers[-1] == first + len(found) - 1:
            break
        names |= disk.names(store, FOLDER)
        found = Listing.of(names).since(first, found.numbers[-1])
    return found


def read(store: Store, there: Listing, numbers: Iterable[int]) -> Iterator[tuple[bytes, Commit]]:
    """Yield these records with their bytes, in this order, reading ahead where reads are slow.

    Raises ``FileNotFoundError``, and `CheckpointDamaged`, which names the file.
    """
    files = there.files(numbers)
    names = (segment.name if segment else record_name(at[0]) for segment, at in files)
    each = disk.read_all(store, ((name, MOST_BYTES) for name in names))
    for (segment, wanted), data in zip(files, each, strict=True):
        if segment is None:
            yield data, decode(data, record_name(wanted[0]), store.url)
            continue
        pieces = unpacked(data, segment, store.url)
        for number in wanted:
            piece = pieces[number - segment.first]
            yield piece, _decoded(piece, segment, number, store.url)


def read_some(store: Store, numbers: Sequence[int]) -> Iterator[Commit]:
    """Yield these records in this order, reading ahead where reads are slow.

    Raises `CheckpointDamaged`, also if a record is missing.
    """
    at, missed = 0, -1
    while at < len(numbers):
        there = listed(store)
        try:
            for _, commit in read(store, there, numbers[at:]):
                if commit.kind not in _NEVER_VOID and there.segment_with(commit.number) is None:
                    check_not_void(store, commit)
                yield commit
                at += 1
        except FileNotFoundError:
            if missed == at:
                raise damaged(record_name(numbers[at]), "it is missing", store.url) from None
            missed = at  # it may just have moved into a segment: look once more


def check_not_void(store: Store, commit: Commit) -> None:
    """Raise ``FileNotFoundError`` if a segment has the number of this record of its own file."""
    # Listed after the file was read. An older file of that number can only have been deleted after
    # its record was in a segment.
    if listed(store, commit.number).segment_with(commit.number) is not None:
        raise FileNotFoundError(record_name(commit.number))


def _decoded(piece: bytes, segment: Segment, number: int, place: str) -> Commit:
    try:
        return decode(piece, record_name(number), place)
    except CheckpointDamaged as error:
        raise blamed(error, segment, number, place) from error


def blamed(
    error: CheckpointDamaged, segment: Segment | None, number: int, place: str
) -> CheckpointDamaged:
    """The error about a record, with the segment that contains it, if any, as the file."""
    if segment is None:
        return error
    return damaged(segment.name, f"record {number} in it: {error.detail}", place)


def packed(pieces: Sequence[bytes]) -> bytes:
    """Pack the bytes of records into the bytes of a segment.

    Every few records are a gzip member of their own, so damage in one costs no record of another.
    """
    found = []
    for at in range(0, len(pieces), _IN_A_MEMBER):
        packer = zlib.compressobj(wbits=_GZIP)
        found += [*map(packer.compress, pieces[at : at + _IN_A_MEMBER]), packer.flush()]
    return b"".join(found)


def unpacked(data: bytes, segment: Segment, place: str = "") -> list[bytes]:
    """The bytes of each record in a segment. Raises `CheckpointDamaged`."""
    plain, rest, whole = b"", data, True
    while rest and whole and len(plain) < MOST_PLAIN:
        unpacker = zlib.decompressobj(wbits=_GZIP)
        try:
            plain += unpacker.decompress(rest, MOST_PLAIN - len(plain))
        except zlib.error as error:
            raise damaged(segment.name, f"it cannot be unpacked: {error}", place) from error
        rest, whole = unpacker.unused_data, unpacker.eof
    pieces = _split(plain)
    if rest or not whole or b"".join(pieces) != plain:
        raise damaged(segment.name, "it is truncated, or longer than it should be", place)
    if len(pieces) != len(segment.numbers):
        what = f"it has {len(pieces):,} records, not {len(segment.numbers):,}"
        raise damaged(segment.name, what, place)
    return pieces


def salvaged(
    store: Store, segment: Segment, data: bytes | Exception
) -> tuple[dict[int, bytes], str]:
    """The bytes of the readable records of a segment, and its defect ("" if it has none).

    For a damaged segment, these are the records in readable members and those that still have their
    own file. ``data``: the segment's bytes, or the error of reading them.
    """
    try:
        if isinstance(data, Exception):
            raise data
        return dict(zip(segment.numbers, unpacked(data, segment), strict=True)), ""
    except FileNotFoundError:
        what = "it is missing"
    except CheckpointDamaged as error:
        what = error.detail
    beside = [(record_name(number), MOST_BYTES) for number in segment.numbers]
    each = zip(segment.numbers, disk.read_each(store, beside), strict=True)
    found = {number: piece for number, piece in each if isinstance(piece, bytes)}
    if isinstance(data, bytes):
        found |= _readable(data)
    return {number: found[number] for number in segment.numbers if number in found}, what


def _readable(data: bytes) -> dict[int, bytes]:
    """The undamaged records in a damaged segment, by number."""
    found: dict[int, bytes] = {}
    for start in (match.start() for match in re.finditer(re.escape(_MEMBER), data)):
        plain = b""
        with contextlib.suppress(zlib.error):
            unpacker = zlib.decompressobj(wbits=_GZIP)
            for at in range(start, len(data), _STEP):
                plain += unpacker.decompress(data[at : at + _STEP], MOST_PLAIN - len(plain))
                if unpacker.eof or len(plain) >= MOST_PLAIN:
                    break
        for piece in _split(plain):
            with contextlib.suppress(*UNREADABLE, CheckpointDamaged):
                number = json.loads(piece[: piece.index(b"\n")])["number"]
                decode(piece, record_name(number))
                found[number] = piece
    return found


def _split(plain: bytes) -> list[bytes]:
    # Only the last line of a record begins like this, and no line contains a raw newline.
    pieces, at = [], 0
    while (end := plain.find(_END, at)) >= 0 and (stop := plain.find(b"\n", end + 1) + 1):
        pieces.append(plain[at:stop])
        at = stop
    return pieces
