"""The append-only journal: the protocol of adding a record to it.

A record is created by put-if-absent: the creation is the commit. The rules that make it safe (Delta
Lake's numbered log and SlateDB's fencing; checked by the state machine in
``tests/proof/properties``):

* I1: record n is created only by an author who has read or written records 0 … n-1;
* I2: its keys are disjoint from all earlier keys, except keys retracted before or by this record;
* I3: its author's epoch is the highest in the journal;
* I4: a record is never lost or rewritten while the job exists. It moves at most once: from a file
  of its own into a segment.

Put-if-absent decides only while the file of that number exists, and `folding` removes files. So:

* An author who wrote the record before is safe: if another's record n exists, its file has not
  been folded, and the creation is refused.
* Any other author looks, after creating its record, whether a segment has a record of that number.
  If so, the new record is void. In a short journal this look is not needed after a record that is
  its author's last, such as ``close``: the file of the next record is not folded.
* A reader trusts a file that could be void once the next record continues it, or once no segment
  has its number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.text import clean
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import segments
from resumable_tasks.checkpoint.directory.manifest import NAME as MANIFEST
from resumable_tasks.checkpoint.directory.record import OF_WORK, Commit
from resumable_tasks.checkpoint.directory.records import (
    FOLDER,
    MOST_BYTES,
    damaged,
    decode,
    encode,
    read,
    record_name,
)
from resumable_tasks.checkpoint.directory.segments import Listing
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import CheckpointDamaged, CommitStateUnknown, Fenced, StoreError

# After these kinds the same author can append a record that is folded into a segment later.
FOLDED_AFTER = ("claim", "merge", *OF_WORK)
# From this number on, the claim after a ``close`` can be folded too, so every author looks.
LOOKED_AT_FROM = 1_024
_SETTLE_TRIES = 3
# Records of these kinds depend on no earlier record except for the number, so they can wait.
_TRIED_AGAIN = ("claim", "archive")


class Journal:
    """The journal of one checkpoint, as read so far by one reader or driver.

    ``anchor`` is what record 0 names as its predecessor: the manifest's id. Not thread-safe; the
    driver has one committer.
    """

    def __init__(self, store: Store, anchor: str) -> None:
        self._store = store
        self._last_checksum = anchor
        self._stands_for: str | None = None
        self._epoch = 0
        self._usable = True
        self._listed: Listing | None = None
        # Whether another's record of the next number may exist in a segment, without a file.
        self._may_be_folded = False
        self._author = "", 0
        self.next_number = 0

    @property
    def last_checksum(self) -> str:
        """The checksum of the last record that was read or appended."""
        return self._last_checksum

    def read_first(self, listed: Listing) -> None:
        """Let the next `read_new` read the records of this listing and no later ones."""
        self._listed = listed

    @classmethod
    def after(cls, store: Store, last: Commit) -> Journal:
        """A journal that appends after this record, whatever state the earlier records are in."""
        journal = cls(store, "")
        journal._advance(last)
        return journal

    def wait_longer(self) -> None:
        """Wait long for a service that does not answer: from now on there are results to lose."""
        self._store = disk.patient(self._store)

    def read_new(self) -> Iterator[Commit]:
        """Yield the records that this object has not yet seen, verified and in order.

        Raises `CheckpointDamaged` if a record is missing before a later one, is unreadable, or does
        not continue its predecessor. Concurrent appends are no damage.
        """
        listed, self._listed = self._listed, None
        if listed is None:
            listed = segments.listed(self._store, self.next_number)
        last = listed.numbers[-1] if listed else -1
        while True:
            try:
                yield from self._read(listed)
                return
            except FileNotFoundError:
                listed = segments.listed(self._store, self.next_number)
                listed = listed.since(self.next_number, last)
                if listed.segment_with(self.next_number) is None:
                    name = record_name(self.next_number)
                    what = "it disappeared while being read"
                    raise damaged(name, what, self._store.url) from None

    def _read(self, listed: Listing) -> Iterator[Commit]:
        first = self.next_number
        whole = [number for at, number in enumerate(listed.numbers) if number == first + at]
        for number, commit in zip(whole, self._sure(Listing(whole, listed.segments)), strict=True):
            try:
                self._follow(commit)
            except CheckpointDamaged as error:
                segment = listed.segment_with(number)
                raise segments.blamed(error, segment, number, self._store.url) from None
            yield commit
        if len(whole) < len(listed):
            what = "it is missing, but a later record exists"
            raise damaged(record_name(self.next_number), what, self._store.url)

    def _sure(self, listed: Listing) -> Iterator[Commit]:
        """Yield the records of a listing, each once it is known not to be void."""
        held: Commit | None = None
        failed: Exception | None = None
        try:
            for _, commit in segments.read(self._store, listed, listed.numbers):
                if held is not None:
                    if commit.previous not in (held.checksum, held.info.get("stands_for")):
                        segments.check_not_void(self._store, held)
                    yield held
                held = commit
                if not self._can_be_void(commit) or listed.segment_with(commit.number):
                    yield commit
                    held = None
        except (FileNotFoundError, CheckpointDamaged) as error:
            failed = error
        if held is not None:
            segments.check_not_void(self._store, held)
            yield held
        if failed is not None:
            raise failed

    def _can_be_void(self, commit: Commit) -> bool:
        """True if this next record's file may be void: a segment can have another's record."""
        return self._may_be_folded and self._author != (commit.run, commit.epoch)

    def follow(self) -> Iterator[Commit]:
        """Yield new records as `read_new` does, but without a listing.

        Stops at the first missing number, even if later records exist; only `read_new` recognises
        that as damage.
        """
        while True:
            name = record_name(self.next_number)
            try:
                commit = decode(read(self._store, name), name, self._store.url)
                if self._can_be_void(commit):
                    segments.check_not_void(self._store, commit)
            except FileNotFoundError:
                return
            yield self._follow(commit)

    def append(self, commit: Commit, *, again: bool = False) -> Commit:
        """Append the record after all that this object has seen; durable on return.

        Returns the record as it is in the journal. Raises `Fenced` if a newer driver has taken
        over, `StoreError` if nothing was written, `CommitStateUnknown` if that is unknown; after
        any of these the object refuses to append. Raises `RecordTaken` if the number of a claim or
        an archive record is taken by a record not yet seen: read it, and decide again.
        ``again``: nothing depends on this record, so after a `StoreError` (nothing was written)
        further records can be appended.
        """
        if not self._usable:
            raise StoreError("an earlier write to this journal failed; open the checkpoint again")
        self._usable = False  # until this one is known to have landed
        commit = replace(
            commit,
            number=self.next_number,
            previous=self._last_checksum,
            nonce=token(8),
            time=commit.time or now(),
        )
        data, checksum = encode(commit)
        if len(data) > MOST_BYTES:
            raise StoreError(
                f"record {commit.number} would have {len(data):,} bytes, which is too long",
                remedy="Give a smaller batch_size, so that a commit has fewer items",
            )
        try:
            self._create(commit, data)
        except CommitStateUnknown:
            raise
        except StoreError:
            if again:
                self.check_not_overtaken(commit)
                self._usable = True
            raise
        fault_point("journal.created")
        commit = replace(commit, checksum=checksum)
        if self._may_be_folded:
            self._check_counts(commit)
        self._advance(commit)
        self._may_be_folded = False
        self._usable = True
        return commit

    def _create(self, commit: Commit, data: bytes) -> None:
        name, why = record_name(commit.number), ""
        for _ in range(_SETTLE_TRIES):
            fault_point("journal.before_create")
            try:
                if self._store.create(name, data):
                    return
            except CreateUnknown as error:
                if not error.readable_is_durable:
                    raise CommitStateUnknown(
                        f"{error}. Whether record {commit.number} is committed is unknown",
                        safe="Nothing is lost: the next run finds out",
                        remedy="Fix the disk and run the same command again",
                    ) from error
                why = f": {error}"
            except StoreError as error:
                if not why:
                    raise
                raise CommitStateUnknown(
                    f"whether record {commit.number} is committed is unknown{why}; then: {error}",
                    safe="Nothing is lost: the next run finds out",
                    remedy="Run the same command again",
                ) from error
            # Only "created" is trusted. After any other answer, the file itself decides.
            try:
                disk.sync(self._store, FOLDER)
                other = decode(read(self._store, name), name, self._store.url)
            except FileNotFoundError:
                continue  # nothing was written: try the same bytes again
            except StoreError as error:
                raise CommitStateUnknown(
                    f"cannot tell whether record {commit.number} is committed: {error}",
                    safe="Nothing is lost: the next run finds out",
                    remedy="Run the same command again",
                ) from error
            if other.nonce == commit.nonce:
                return
            self._judge(commit, other)
        raise CommitStateUnknown(
            f"record {commit.number} could neither be created nor found in {_SETTLE_TRIES} tries"
            f"{why}",
            safe="Nothing is lost: the next run finds out whether it is committed",
            remedy="Run the same command again",
        )

    def _check_counts(self, commit: Commit) -> None:
        """Raise as `append` does if a segment has another's record of this number."""
        try:
            there = segments.listed(self._store, commit.number)
            if there.segment_with(commit.number) is None:
                return
            _, other = next(segments.read(self._store, there, [commit.number]))
            if other.checksum == commit.checksum:
                return
            # The number had no file before, so removing this one loses nothing.
            self._store.delete(record_name(commit.number))
        except (StoreError, FileNotFoundError) as error:
            raise CommitStateUnknown(
                f"cannot tell whether record {commit.number} counts: {error}",
                safe="Nothing is lost: the next run finds out",
                remedy="Run the same command again",
            ) from error
        self._judge(commit, other)

    def check_not_overtaken(self, mine: Commit) -> None:
        """Raise `Fenced` if a newer driver has committed, so ``mine`` could not be appended."""
        for other in self.read_new():
            self._judge(mine, other)

    def _judge(self, mine: Commit, other: Commit) -> None:
        if mine.kind in _TRIED_AGAIN:
            self._usable = True
            raise RecordTaken(other)
        raise Fenced(
            f"another run has taken this checkpoint over: record {other.number} is from "
            f"{describe(other)}, in epoch {other.epoch}, after this run's epoch {mine.epoch}",
            safe="Everything this run committed is kept; its batches in flight are left to the "
            "other run",
            holder={"run": other.run, "since": other.time, **other.info},
            remedy="Let the other run end, then run the same command again to do what is left",
        )

    def _follow(self, commit: Commit) -> Commit:
        name = record_name(commit.number)
        if commit.previous not in (self._last_checksum, self._stands_for):
            what = "it does not continue the record before it"
            if commit.number == 0:
                what = f"it does not belong to the checkpoint that {MANIFEST} names"
            raise damaged(name, what, self._store.url)
        if (falls := falls_back(commit, self._epoch)) is not None:
            raise damaged(name, falls, self._store.url)
        self._advance(commit)
        return commit

    def _advance(self, commit: Commit) -> None:
        self.next_number = commit.number + 1
        self._last_checksum = commit.checksum
        self._stands_for = commit.info.get("stands_for")
        self._epoch = max(self._epoch, commit.epoch)
        self._may_be_folded = commit.kind in FOLDED_AFTER or is_looked_at(self.next_number)
        self._author = commit.run, commit.epoch


class RecordTaken(Exception):
    """`Journal.append` found another driver's record of that number; append this one later."""

    def __init__(self, other: Commit) -> None:
        super().__init__(f"record {other.number} is taken")
        self.other = other


def is_looked_at(number: int) -> bool:
    """True if every author of this number must look for it in segments, whatever comes before."""
    return number >= LOOKED_AT_FROM


def falls_back(commit: Commit, epoch: int) -> str | None:
    """The defect of a record whose epoch is lower than the journal's; None if it is not."""
    if commit.epoch < epoch and commit.kind != "lost":
        return f"it is of epoch {commit.epoch}, after epoch {epoch}"
    return None


def describe(commit: Commit) -> str:
    """Name the writer and time of a record, for a message."""
    info = commit.info
    host, pid = clean(str(info.get("host")), 80), clean(str(info.get("pid")), 20)
    where = f" on {host} (pid {pid})" if "host" in info else ""
    return f"run {clean(commit.run, 40)}{where}, {clean(commit.time, 40)}"
