"""Folding: many small record files of the journal become one segment.

A segment is durable and was read back before the first of its records' own files is deleted. No
record changes, and every record can be found: in its own file, or in a segment.

The file of a record is kept if the author of the record before could still append: then the file
refuses that author when it wakes up (I1, `journal`).
``docs/design/0028-segments-of-the-journal.md`` has the argument and the rejected alternatives.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.directory import segments
from resumable_tasks.checkpoint.directory.journal import FOLDED_AFTER, Journal, is_looked_at
from resumable_tasks.checkpoint.directory.record import OF_WORK, Commit
from resumable_tasks.checkpoint.directory.records import FOLDER, damaged, record_name
from resumable_tasks.checkpoint.directory.segments import (
    MOST_PLAIN,
    MOST_RECORDS,
    Listing,
    Segment,
    packed,
    unpacked,
)
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import Fenced, StoreError

# The fewest records that are worth a segment: the checkpoint's first one, and any later one.
FEWEST_AT_FIRST, FEWEST = 1_024, 64
# A larger record stays a file: it has many keys, so there are few such files.
_LARGE = 1 << 16
_OF_A_RUN = ("merge", "close", *OF_WORK)
# A run does not fold this many of its newest records, and keeps the file of a folded record this
# long for readers that may have listed it.
_NEWEST = 64
GRACE_SECONDS = 60.0


def choose(sizes: Mapping[str, int], end: int, fewest: int | None = None) -> list[range]:
    """The ranges of records before ``end`` that are worth a segment each.

    ``sizes`` is the journal's listing. ``fewest`` records are worth a segment; the default is
    larger while the checkpoint has no segment.
    """
    there = Listing.of(sizes)
    if fewest is None:
        fewest = FEWEST if there.segments else FEWEST_AT_FIRST
    groups: list[range] = []
    size = 0
    for number in there.numbers:
        name = record_name(number)
        here = sizes.get(name, _LARGE)
        if number >= end or here >= _LARGE or there.segment_with(number) is not None:
            continue
        last = groups[-1] if groups else range(0)
        size += here
        if last and number == last.stop and size <= MOST_PLAIN and len(last) < MOST_RECORDS:
            groups[-1] = range(last.start, number + 1)
        else:
            groups.append(range(number, number + 1))
            size = here
    return [group for group in groups if len(group) >= fewest]


def fold(store: Store, group: range) -> list[str]:
    """Write these records into a segment, durable on return. Returns the files no longer needed.

    Writes nothing if that would free few files. Raises `CheckpointDamaged` and `StoreError`; no
    record has changed then.
    """
    there = Listing.of(store.list(FOLDER))
    try:
        pieces, commits = _records(store, there, group)
    except FileNotFoundError:
        return []  # another run has folded some of them meanwhile
    # Listed again: if another run has written a segment meanwhile, a file read since may be a void
    # record by an author who has not looked yet.
    if any(map(Listing.of(store.list(FOLDER)).segment_with, group)):
        return []
    for before, commit in pairwise(commits):
        if commit.previous not in (before.checksum, before.info.get("stands_for")):
            what = "it does not continue the record before it"
            raise damaged(record_name(commit.number), what, store.url)
    free = list(_without_need(commits))
    if len(free) < FEWEST // 2:
        return []
    segment = Segment(group.start, group.stop - 1, len(group) - len(free))
    fault_point("segment.before_create")
    with contextlib.suppress(CreateUnknown):  # reading it back decides
        store.create(segment.name, packed(pieces))
    if unpacked(_read_back(store, segment), segment, store.url) != pieces:
        raise StoreError(
            f"{segment.name} holds different records than the journal",
            remedy="Run `resumable verify` to find the damage",
        )
    fault_point("segment.created")
    return free


def _read_back(store: Store, segment: Segment) -> bytes:
    try:
        return store.read(segment.name)
    except FileNotFoundError:
        raise StoreError(
            f"{segment.name} could not be created",
            remedy="Check the disk; the records are safe in their own files",
        ) from None


def fold_all(store: Store, end: int, fewest: int | None = None) -> int:
    """Fold all groups that `choose` finds, and delete files that segments replace.

    Returns the number of folded records.
    """
    groups = choose(store.list(FOLDER), end, fewest)
    folded = sum(len(group) for group in groups if fold(store, group))
    store.delete_all(leftovers(store))
    fault_point("segment.deleted")
    return folded


def _records(
    store: Store, there: Listing, group: Sequence[int]
) -> tuple[list[bytes], list[Commit]]:
    """The bytes of these records, and the records, preceded by the record before them if any."""
    before = [group[0] - 1] if group[0] else []
    each = list(segments.read(store, there, [*before, *group]))
    return [data for data, _ in each[len(before) :]], [commit for _, commit in each]


def _without_need(commits: list[Commit]) -> Iterator[str]:
    """Yield the names of the files that are not needed to refuse any author.

    Every author whom such a file would refuse has ended, or looks into the segments too.
    """
    for before, commit in pairwise(commits):
        same = (commit.run, commit.epoch) == (before.run, before.epoch)
        of_it = same and before.kind in FOLDED_AFTER and commit.kind in _OF_A_RUN
        # The author of the record before has ended.
        next_run = (before.kind, commit.kind) == ("close", "claim")
        if of_it or (next_run and is_looked_at(commit.number)):
            yield record_name(commit.number)


def leftovers(store: Store) -> list[str]:
    """The files of folded records that a crash has left beside their segment."""
    sizes = store.list(FOLDER)
    there, found = Listing.of(sizes), []
    for segment in there.segments:
        beside = [name for name in map(record_name, segment.numbers) if name in sizes]
        if len(beside) > segment.kept:
            try:
                free = set(_without_need(_records(store, there, segment.numbers)[1]))
            except FileNotFoundError:
                continue  # the record before it has just moved into another segment
            found += [name for name in beside if name in free]
    return found


class Folding:
    """Folds the records of an active run, in the thread that commits.

    A failure here does not fail the run: records that cannot be folded stay as they are.
    """

    def __init__(self, store: Store, journal: Journal) -> None:
        self._store = store
        self._journal = journal
        self._looked_at = 0
        self._chosen: list[range] = []
        self._failed = False
        self._free: list[tuple[float, list[str]]] = []

    def step(self, stop: Callable[[], bool]) -> None:
        """Fold a group of records, if there are enough for a segment."""
        end = self._journal.next_number - _NEWEST
        if self._failed or stop():
            return
        if not self._chosen and end - self._looked_at >= MOST_RECORDS:
            self._looked_at = end
            self._guarded(lambda: self._choose(end))
        if self._chosen:
            self._guarded(self._fold)
            self._guarded(lambda: self._delete(time.monotonic() - GRACE_SECONDS))

    def end(self) -> None:
        """Fold the remaining records if worth it, and delete files that segments replace."""
        # The last record keeps its file, because the next run looks for it.
        end = self._journal.next_number - 1
        if end > FEWEST_AT_FIRST:
            self._guarded(lambda: fold_all(self._store, end))

    def _choose(self, end: int) -> None:
        self._chosen = choose(self._store.list(FOLDER), end, MOST_RECORDS // 2)

    def _fold(self) -> None:
        self._free.append((time.monotonic(), fold(self._store, self._chosen.pop())))

    def _delete(self, due: float) -> None:
        while self._free and self._free[0][0] <= due:
            self._store.delete_all(self._free[0][1])
            fault_point("segment.deleted")
            del self._free[0]

    def _guarded(self, step: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            step()
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the records are there
            self._failed = True
            log.warning("this run no longer folds records, but continues: %s", error)
