"""Verifies and repairs checkpoints, and releases failed items, when a person asks for it.

A crash never leaves damage. So a missing, truncated or changed record or shard stops the run: a
person must have it moved aside, no run does that by itself. Only the items in it are done again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from resumable_tasks.base.text import count
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import (
    holder,
    layout,
    manifest,
    segments,
    shards,
    snapshots,
)
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.homes import Homes
from resumable_tasks.checkpoint.directory.journal import Journal, falls_back
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.moving import STRAY, Findings, Repairs
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.record import OF_SUBMISSIONS, Commit
from resumable_tasks.checkpoint.directory.records import (
    CONVERTED,
    MOST_BYTES,
    decode,
    record_name,
    unconverted,
)
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.recover import changed, recovered_manifest
from resumable_tasks.checkpoint.directory.segments import Listing, Segment
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointHeld,
    CheckpointMismatch,
    Fenced,
    UsageError,
)
from resumable_tasks.items import keys
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.runners.outcome import Failure

_FENCE_TRIES = 100


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged file, its defect, and the number of completed items it costs.

    ``items`` is None if unknown, because a damaged record no longer tells.
    """

    file: str
    what: str
    items: int | None


@dataclass(slots=True)
class Report:
    """The findings of `verify`. ``orphans`` are not damage.

    ``strays`` are submissions with a service whose record of items was lost, by token, with the
    handle if it is known. ``submits``: the checkpoint has submissions, so some may be lost too.
    """

    damages: list[Damage] = field(default_factory=list)
    records: int = 0
    shards: int = 0
    items: int = 0
    rows: int = 0
    orphans: list[str] = field(default_factory=list)
    strays: dict[str, Any] = field(default_factory=dict)
    submits: bool = False


def verify(store: Store) -> Report:
    """Read every byte of a checkpoint and report all damage. Changes nothing.

    Safe while a run is active. Raises `UsageError` if there is no checkpoint.
    """
    return _examine(store)[0]


def repair(store: Store) -> Report:
    """Move damaged files aside, so that the next run redoes the items they held and no others.

    Returns the damage. A record first fences every run that may still be alive; then files older
    than that record are moved. Nothing is deleted: damaged files go to the folder ``damaged``. A
    record of kind ``lost`` replaces each damaged record; one of kind ``repair`` retracts the keys
    of damaged shards. Restores what it can: ``job.json`` from the first record, and records whose
    line endings were changed.

    Raises `CheckpointHeld` while a run is active, and `UsageError` if there is no checkpoint.
    Raises `CheckpointDamaged` if ``job.json`` is damaged and the first record cannot restore it,
    and if there are links to files: only a person can decide which of them is the real file.
    """
    if not disk.names(store, JOURNAL) and manifest.NAME not in disk.names(store, ""):
        raise UsageError(
            f"{store.url} is not a checkpoint: no {manifest.NAME}",
            remedy="Use `resumable ls PLACE` to find those below a directory or bucket",
        )
    disk.prepare(store, (JOURNAL, shards.FOLDER))
    hold = Holder(store, run := token(6))
    try:
        hold.take(takeover=False)
        for _ in range(_FENCE_TRIES):
            report, found = _examine(store)
            if found is None:
                raise manifest.damaged(store, "it is damaged, and nothing else shows what it held")
            if not report.damages:
                return report
            layout.refuse_links(store)
            repairs = Repairs(store, found, run)
            try:
                repairs.fence()
            except Fenced:
                continue  # a live run has committed meanwhile: examine again with its shards
            repairs.carry_out()
            return report
        raise CheckpointHeld(f"{store.url}: runs keep committing; stop them first")
    finally:
        hold.release()
        disk.let_go(store)


def release(store: Store, chosen: Callable[[Failure], bool]) -> list[Failure]:
    """Reset the attempts of the chosen failures, durable on return: the next run tries them again.

    Returns the failures as they were; their errors are kept. The record written for this fences
    every run that may still be alive.

    Raises:
        CheckpointHeld: a run is active.
        UsageError: there is no checkpoint.
    """
    found = read_manifest(store)
    hold = Holder(store, run := token(6))
    hold.take(takeover=False)
    try:
        journal, state = Journal(store, found.id), State(place=store.url)
        state.apply_all(journal.read_new())
        released = [failure for failure in state.failures.values() if chosen(failure)]
        if released:
            info = holder.me(run)
            info.pop("run")
            forgotten = tuple(replace(failure, attempts=0) for failure in released)
            journal.append(Commit("release", state.epoch + 1, run, failures=forgotten, info=info))
        return released
    finally:
        hold.release()


def _examine(store: Store) -> tuple[Report, Findings | None]:
    """The report, and the findings that a repair needs; None if no manifest can be read."""
    report = Report()
    found = _examine_manifest(store, report)
    seen = _examine_journal(store, report, found.id if found else None)
    standing = _examine_keys(report, seen)
    state = _fold(standing)
    owners = _owners(standing)
    commits = [standing[number] for number in sorted(standing)]
    doubled = supersede.doubled(commits, state)
    report.damages += [Damage(path, supersede.DOUBLED, items) for path, items in doubled.items()]
    mixed = [path for path in supersede.with_strangers(commits, state) if path not in doubled]
    listed = store.list(shards.FOLDER)
    each = list(state.shards.values())
    unsound = {
        shard.path: data.detail
        for shard, data in zip(each, shards.checked_each(store, each), strict=True)
        if isinstance(data, CheckpointDamaged) and shard.path not in doubled
    }
    for path in _replaced_since(store, seen, found) if unsound else ():
        unsound.pop(path, None)
    report.damages += [Damage(path, what, owners[path]) for path, what in unsound.items()]
    report.damages += [
        Damage(path, supersede.STRANGERS, 0) for path in mixed if path not in unsound
    ]
    if not seen.records and layout.is_headless(store):
        report.damages.append(Damage(JOURNAL, layout.HEADLESS, None))
    bad = {damage.file for damage in report.damages}
    odd = {name: what for name, what in layout.odd(store).items() if name not in bad}
    report.damages += [Damage(name, what, 0) for name, what in odd.items()]
    report.orphans = sorted(path for path in listed if path not in state.shards)
    report.records, report.shards = len(seen.records), len(state.shards)
    report.rows = state.rows
    report.strays = dict(state.out.strays)
    report.submits = any(record.kind in OF_SUBMISSIONS for record in seen.records.values())
    if found is None:
        return report, None
    findings = Findings(
        *(found, seen.records, frozenset({*bad, *odd}), frozenset(seen.converted)),
        *(frozenset(seen.lost), frozenset(seen.unsound)),
    )
    return report, findings


def _replaced_since(store: Store, seen: _Journal, found: Manifest | None) -> set[str]:
    """The shards that newer records have retracted; a run may have deleted them meanwhile."""
    now = _examine_journal(store, Report(), found.id if found else None).records
    newer = now.keys() - seen.records.keys()
    return {path for n in newer for path in now[n].info.get("retracted_shards", ())}


def _examine_manifest(store: Store, report: Report) -> Manifest | None:
    """The manifest, restored from the first record if necessary; None if that fails too."""
    try:
        here = manifest.read(store)
        if (wrong := changed(store, here)) is None:
            return here
        detail = wrong
    except FileNotFoundError:
        if not disk.names(store, JOURNAL):
            raise UsageError(
                f"{store.url} is not a checkpoint: no {manifest.NAME}",
                remedy="Use `resumable ls PLACE` to find those below a directory or bucket",
            ) from None
        if manifest.NAME in disk.names(store, ""):
            return _examine_manifest(store, report)  # a run has just begun
        detail = "it is missing"
    except CheckpointDamaged as error:
        detail = error.detail
    except CheckpointMismatch:
        # Either it has another format, or a digit was changed; then record 0 has the true one.
        if recovered_manifest(store) is None:
            raise
        detail = "its format field was changed after the first record was written"
    found = recovered_manifest(store)
    if found is not None:
        detail += "; record 0 shows what it held"
    report.damages.append(Damage(manifest.NAME, detail, None if found is None else 0))
    return found


def _fold(records: dict[int, Commit]) -> State:
    """The state after the records that stand, without its keys."""
    state = State()
    for number in sorted(records):
        state.follow_rows(records[number])
    return state


def _examine_keys(report: Report, seen: _Journal) -> dict[int, Commit]:
    """The records that stand: no key is completed twice without being retracted in between."""
    done, standing = KeyTable(), {}
    for number in sorted(seen.records):
        record = seen.records[number]
        taken = [key for key in keys.split(record.retracted) if done.remove(key)]
        lines = list(keys.split(record.keys))
        twice = len(lines) - len({line for line in lines if line not in done})
        if twice:
            what = f"it completes {count(twice, 'key')} a second time"
            seen.lose(number, what, record.key_count, report)
            lines = taken  # a repair replaces the record, so what it retracted stays completed
        else:
            standing[number] = record
        for key in lines:
            done.add(key, number)
    report.items = len(done)
    return standing


@dataclass(slots=True)
class _Journal:
    """The readable records, and which others are damaged.

    ``converted`` are records that are readable once their line endings are restored. ``lost`` are
    the numbers of unreadable records, ``unsound`` the segments that are damaged or contain one.
    """

    there: Listing
    records: dict[int, Commit] = field(default_factory=dict)
    converted: list[str] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    unsound: set[Segment] = field(default_factory=set)

    def lose(self, number: int, what: str, items: int | None, report: Report) -> None:
        """Count a record as lost, and report its file as damaged: its own, or its segment."""
        self.lost.add(number)
        segment = self.there.segment_with(number)
        if segment is None:
            report.damages.append(Damage(record_name(number), what, items))
        elif segment not in self.unsound:
            self.unsound.add(segment)
            report.damages.append(Damage(segment.name, f"record {number} in it: {what}", items))


def _examine_journal(store: Store, report: Report, anchor: str | None) -> _Journal:
    """Examine the journal; a record that moves into a segment meanwhile is not missing."""
    there, others = segments.listed(store), report.damages
    while True:
        report.damages = [*others]
        found = _examine_records(store, report, anchor, there)
        if not found.lost:
            return found
        there = segments.listed(store)
        if there.segments == found.there.segments:
            return found


def _examine_records(store: Store, report: Report, anchor: str | None, there: Listing) -> _Journal:
    found, last = _Journal(there), -1
    for number in found.there.numbers:
        if number - last > STRAY:
            far = "it is far ahead of the others and does not belong to this checkpoint"
            report.damages.append(Damage(record_name(number), far, None))
        else:
            last = number
    strange, epoch = set[Segment](), 0
    snapshot, known = snapshots.ahead(store, anchor or "") or ("", -1)
    end = max(last, min(known, last + STRAY)) + 1
    for number, data in _each_record(store, found, end, report):
        try:
            record, was_converted = _read_record(data, record_name(number))
        except FileNotFoundError:
            missing = "it is missing" if number <= last else snapshots.cut(snapshot)
            found.lose(number, missing, None, report)
            continue
        except CheckpointDamaged as error:
            found.lose(number, error.detail, None, report)
            continue
        segment, what = found.there.segment_with(number), falls_back(record, epoch)
        expected = {anchor} if number == 0 else _continuations(found.records.get(number - 1))
        of_others = None not in expected and record.previous not in expected
        if of_others or (segment is not None and segment in strange):
            if segment is not None:
                strange.add(segment)  # the records after it in the segment continue it
            what = "it does not continue the record before it"
        if what is not None:
            found.lose(number, what, record.key_count, report)
            continue
        epoch = max(epoch, record.epoch)
        if was_converted:
            found.converted.append(record_name(number))
            report.damages.append(Damage(record_name(number), CONVERTED, 0))
        found.records[number] = record
    return found


def _each_record(
    store: Store, found: _Journal, count: int, report: Report
) -> Iterator[tuple[int, bytes | Exception]]:
    """Yield the number and the bytes of each record, or the error of reading it."""
    files = found.there.files(range(count))
    names = [segment.name if segment else record_name(at[0]) for segment, at in files]
    each = disk.read_each(store, [(name, MOST_BYTES) for name in names])
    for (segment, numbers), data in zip(files, each, strict=True):
        if segment is None:
            yield numbers[0], data
            continue
        pieces, what = segments.salvaged(store, segment, data)
        if what:
            found.unsound.add(segment)
            items = 0 if len(pieces) == len(segment.numbers) else None
            report.damages.append(Damage(segment.name, what, items))
        for number in numbers:
            yield number, pieces.get(number, FileNotFoundError())


def _read_record(data: bytes | Exception, name: str) -> tuple[Commit, bool]:
    """A record, and whether its line endings were changed. Raises what `decode` raises."""
    if isinstance(data, Exception):
        raise data
    if b"\r\n" not in data:
        return decode(data, name), False
    return decode(unconverted(data), name), True


def _continuations(before: Commit | None) -> set[str | None]:
    """The checksums that the next record may name as ``previous``; {None} if unknown."""
    if before is None:
        return {None}
    return {before.checksum, before.info.get("stands_for", before.checksum)}


def _owners(records: dict[int, Commit]) -> dict[str, int]:
    """Count the keys whose rows are in each shard."""
    homes, found = Homes(records[number] for number in sorted(records)), Counter[str]()
    for section in (section for record in records.values() for section in record.sections()):
        if section.shard is not None:
            found[homes.of(section.shard.path)] += len(section.lines)
    return found
