"""The function `prune`, which removes the oldest partitions of a job's checkpoints.

A partition's name tells its age, whenever it was run. A partition is removed only if it is finished
and published, as verified at the destination, unless the caller allows more.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta

from resumable_tasks.base import checks, log
from resumable_tasks.base.text import clean, count, duration
from resumable_tasks.checkpoint.directory import notes, pruning
from resumable_tasks.checkpoint.directory.archive import Seen
from resumable_tasks.checkpoint.directory.outstanding import named
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.directory.pruning import Found
from resumable_tasks.checkpoint.directory.reader import Reader, is_checkpoint
from resumable_tasks.checkpoint.form import Place
from resumable_tasks.checkpoint.store.ahead import in_order
from resumable_tasks.checkpoint.store.urls import is_url, open_store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointHeld,
    CheckpointMismatch,
    CheckpointUnusable,
    ResumableTasksError,
    UsageError,
)
from resumable_tasks.results.publish import held
from resumable_tasks.task.partitions import folder_of, moment_of

_AHEAD = 8


@dataclass(frozen=True, slots=True)
class Partition:
    """One partition, or an archive of one, and the decision about it.

    ``removed``: it is removed for good, or in a dry run would be. ``why`` is the reason for the
    decision. Counts are those of its checkpoint, None if it was not examined. ``bytes`` is the size
    of all its files.
    """

    name: str
    checkpoint: str
    removed: bool
    why: str
    archived: bool = False
    items: int | None = None
    rows: int | None = None
    bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Pruned:
    """The result of `prune`: all partitions of a place, by name. A ``dry_run`` removes none."""

    place: str
    dry_run: bool
    partitions: tuple[Partition, ...]

    @property
    def removed(self) -> tuple[Partition, ...]:
        """The partitions that are removed, or would be."""
        return tuple(each for each in self.partitions if each.removed)

    @property
    def kept(self) -> tuple[Partition, ...]:
        """The partitions that stay."""
        return tuple(each for each in self.partitions if not each.removed)

    @property
    def bytes(self) -> int:
        """The number of bytes that are freed, or would be."""
        return sum(each.bytes or 0 for each in self.removed)


def prune(
    checkpoints: str | os.PathLike[str] | Place,
    *,
    keep: int | None = None,
    older_than: timedelta | None = None,
    spare: str | date | None = None,
    unpublished: bool = False,
    unfinished: bool = False,
    damaged: bool = False,
    archived: bool = False,
    lose_submissions: bool = False,
    dry_run: bool = False,
) -> Pruned:
    """Remove the oldest partitions of a job's checkpoints, for good.

    A partition is removed only if its last run ended, no item failed or is parked, and all its rows
    are still at the place they were published to, which is checked. If both ``keep`` and
    ``older_than`` are given, both must allow the removal. A checkpoint with a run at work is never
    removed. The next call always finishes a removal that a crash interrupted.

    Args:
        checkpoints: the directory or URL that contains the partitions: the job's ``checkpoint=``.
        keep: how many partitions stay: the newest by their names, which are dates.
        older_than: minimum age of a removed partition, by the date in its name.
        spare: name of a partition that stays.
        unpublished: also remove partitions with rows that are not at the place they were published
            to.
        unfinished: also remove partitions that are not done: interrupted, or with failed or parked
            items.
        damaged: also remove damaged partitions, whatever they held.
        archived: also remove what `reset` has archived of these partitions, by the same rules.
        lose_submissions: also remove partitions for which a service has work that is not collected
            yet.
        dry_run: remove nothing.

    Raises:
        UsageError: neither ``keep`` nor ``older_than`` is given, or the place is a checkpoint.
        StoreError: the storage failed; call again to continue.
    """
    allowed = {"unpublished": unpublished, "unfinished": unfinished, "damaged": damaged}
    allowed["lose_submissions"] = lose_submissions
    also = {name for name, given in allowed.items() if given}
    spared = None if spare is None else folder_of(spare)
    plan = Plan.of(_place(checkpoints), Age(keep, older_than, spared, archived), also)
    return plan.pruned(dry_run=True) if dry_run else plan.carry_out()


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions of a pruning, before it carries them out."""

    place: str
    chosen: tuple[Chosen, ...]

    @classmethod
    def of(cls, place: str, age: Age, also: Collection[str]) -> Plan:
        """Examine all partitions, in detail if they are old enough. Changes nothing."""
        found = pruning.partitions(place)
        if not found and is_checkpoint(open_store(place)):
            raise UsageError(
                f"{place} is a checkpoint and has no partitions below it",
                remedy="Name the directory or URL that the job uses as checkpoint=",
            )
        young = dict(zip(found, age.kept(found), strict=True))
        old = [each for each in found if not young[each]]
        by_place = {each.place: each for each in old}

        def look(at: str) -> Chosen:
            return _look(by_place[at], also)

        looked = in_order(look, by_place, _AHEAD) if is_url(place) else map(look, by_place)
        close = dict(zip(by_place, looked, strict=True))
        return cls(place, tuple(close.get(f.place) or _kept(f, young[f] or "") for f in found))

    def pruned(self, *, dry_run: bool) -> Pruned:
        """The plan as a result."""
        return Pruned(self.place, dry_run, tuple(each.partition for each in self.chosen))

    def carry_out(self) -> Pruned:
        """Remove the chosen partitions, the oldest first."""
        return replace(self, chosen=tuple(map(_carry_out, self.chosen))).pruned(dry_run=False)


@dataclass(frozen=True, slots=True)
class Chosen:
    """An examined partition. ``seen`` is None if it was not read, or cannot be."""

    found: Found
    partition: Partition
    seen: Seen | None = None


@dataclass(frozen=True, slots=True)
class Age:
    """The rules for partitions that are too young to be removed. Raises `UsageError`."""

    keep: int | None = None
    older_than: timedelta | None = None
    spare: str | None = None
    archived: bool = False
    now: datetime = field(default_factory=lambda: datetime.now(UTC).replace(tzinfo=None))

    def __post_init__(self) -> None:
        if self.keep is None and self.older_than is None:
            raise UsageError(
                "say which partitions are old: keep or older_than",
                remedy="Give keep=30 to keep the newest 30",
            )
        checks.whole_number("keep", self.keep, 1, or_none=True)
        age = self.older_than
        if age is not None and not (isinstance(age, timedelta) and age >= timedelta(0)):
            raise UsageError(f"older_than={age!r} is not an age", remedy="Give timedelta(days=90)")

    def kept(self, found: list[Found]) -> Iterator[str | None]:
        """Yield for each partition why its age or name alone keeps it; None if it does not."""
        moments = {each.name: moment_of(each.name) for each in found}
        whole = {each.name for each in found if not each.archived and not each.discarded}
        dates = sorted(when for name in whole if (when := moments[name]) is not None)
        newest = None if self.keep is None else dates[-self.keep :]
        for each in found:
            yield None if each.discarded else self._kept(each, moments[each.name], newest)

    def _kept(
        self, found: Found, moment: datetime | None, newest: list[datetime] | None
    ) -> str | None:
        if found.archived and not self.archived:
            return "archived by a reset"
        if moment is None:
            return "its name is not a date"
        if newest is not None and (len(newest) < (self.keep or 0) or moment >= newest[0]):
            return f"one of the newest {self.keep}"
        if self.older_than is not None and self.now - moment <= self.older_than:
            return f"not older than {duration(self.older_than.total_seconds())}"
        return "spared" if found.name == self.spare else None


def _place(checkpoints: str | os.PathLike[str] | Place) -> str:
    if isinstance(checkpoints, Directory):
        return checkpoints.path
    if isinstance(checkpoints, Place):
        raise UsageError(
            f"a {type(checkpoints).__name__} has no partitions that could be removed",
            remedy="Delete rows in the database itself",
        )
    return os.fspath(checkpoints)


def _kept(found: Found, why: str) -> Chosen:
    return Chosen(found, Partition(found.name, found.place, False, why, found.archived))


def _look(found: Found, also: Collection[str]) -> Chosen:
    """Examine a partition that is old enough in detail."""
    store = open_store(found.place)
    try:
        # Moving a directory would take foreign files along.
        others = pruning.others(store)
        if found.discarded and not (others and pruning.is_removed(store)):
            return _removed(found, "left over from an earlier pruning")
        if others:
            where = store.url if found.discarded else "it"
            return _kept(found, f"{clean(others[0], 80)} in {where} is not part of a checkpoint")
        reader = Reader(store)
        reader.examine()
    except CheckpointDamaged as error:
        why = _damage(error)
        return _removed(found, why) if "damaged" in also else _kept(found, why)
    except (CheckpointMismatch, CheckpointUnusable) as error:
        return _kept(found, error.what)
    return _judged(found, reader, also)


def _removed(found: Found, why: str) -> Chosen:
    chosen = _kept(found, why)
    gone = replace(chosen.partition, removed=True, bytes=pruning.size(found.place))
    return replace(chosen, partition=gone)


def _judged(found: Found, reader: Reader, also: Collection[str]) -> Chosen:
    state = reader.state
    if state.pruned:
        chosen = _removed(found, "left over from an earlier pruning")
    elif reader.status == "running":
        chosen = _kept(found, "a run is at work on it")
    else:
        dest, reasons = _reasons(reader)
        why = "; ".join(reasons.values()) or dest
        chosen = _removed(found, why) if reasons.keys() <= set(also) else _kept(found, why)
    counts = replace(chosen.partition, items=len(state.done), rows=state.rows)
    seen = None if reader.damage else Seen(reader.manifest.id, state.records)
    return replace(chosen, partition=counts, seen=seen)


def _reasons(reader: Reader) -> tuple[str, dict[str, str]]:
    """Where it is published, and the reasons to keep it, by the option that overrides each."""
    reasons: dict[str, str] = {}
    if lost := named(reader.state.out):
        reasons["lose_submissions"] = lost
    if reader.damage is not None:
        return "", {**reasons, "damaged": _damage(reader.damage)}
    published, where = _published(reader)
    if reader.status != "done" or reader.left:
        told = (f"{count(n, 'item')} {what}" for what, n in reader.left.items())
        reasons["unfinished"] = ", ".join((reader.status, *told))
    if not published:
        reasons["unpublished"] = where
    return where, reasons


def _damage(error: CheckpointDamaged) -> str:
    return ": ".join(["damaged", *(clean(name, 80) for name in error.files[:1]), error.detail])


def _published(reader: Reader) -> tuple[bool, str]:
    """Whether all rows that count are at a place of publication, and a text about that."""
    state, checkpoint = reader.state, reader.manifest.id
    if not state.rows:
        return True, "it has no rows"
    found = notes.read(reader.store, checkpoint)
    if not found:
        return False, "not published"
    whys = []
    for note in found:
        try:
            there = held(note.dest, note.form, checkpoint)
        except ResumableTasksError as error:
            whys.append(f"published to {note.dest}, which cannot be checked: {error}")
            continue
        if there is None:
            whys.append(f"published to {note.dest}, which no longer has its rows")
        elif there.records < state.changed:
            whys.append(f"rows were added since it was published to {note.dest}")
        elif there.rows != state.rows:
            whys.append(f"{there.rows:,} of {state.rows:,} rows are published to {note.dest}")
        else:
            return True, f"published to {note.dest}"
    return False, whys[0]


def _carry_out(chosen: Chosen) -> Chosen:
    partition = chosen.partition
    if not partition.removed:
        return chosen
    try:
        pruning.remove(chosen.found, chosen.seen)
    except CheckpointHeld as error:
        return replace(chosen, partition=replace(partition, removed=False, why=error.what))
    log.info("pruned %s: %s", partition.checkpoint, partition.why)
    return chosen
