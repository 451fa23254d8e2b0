"""Repairs what disks and people have damaged, and releases failed items: what people decide.

A crash never leaves damage. A record or a shard that is missing, cut or changed is therefore worth
stopping for: a person has it moved aside, never a run by itself, and only the items in it are done
again.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from resumable_tasks.base.clock import now
from resumable_tasks.base.text import count
from resumable_tasks.checkpoint.directory import holder, journal, manifest, schemas, shards
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.driver import read_manifest
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.journal import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.journal import Journal, record_name, record_number
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.runners.outcome import Failure, Shard

FOLDER = "damaged"
# A record this far ahead of those before it is a stray file, not the end of a hole.
_STRAY = 10_000


@dataclass(frozen=True, slots=True)
class Damage:
    """One damaged file, what is wrong with it, and how many completed items it costs.

    ``items`` is None where that cannot be known: a damaged record no longer says.
    """

    file: str
    what: str
    items: int | None


@dataclass(slots=True)
class Report:
    """The findings of `verify`. ``orphans`` and ``foreign`` are not damage."""

    damages: list[Damage] = field(default_factory=list)
    records: int = 0
    shards: int = 0
    items: int = 0
    rows: int = 0
    orphans: list[str] = field(default_factory=list)


def verify(store: Store) -> Report:
    """Read every byte of a checkpoint and say what is damaged. Changes nothing.

    Safe while a run is at work. Raises `UsageError` if there is no checkpoint.
    """
    return _examine(store)[0]


def repair(store: Store) -> Report:
    """Move damaged files aside, so that the next run redoes the items they held, and only those.

    Nothing is deleted: damaged files go to the folder ``damaged``. In the place of a damaged
    record comes one of kind ``lost``; the keys of damaged shards are retracted by one of kind
    ``repair``. Both fence every run that may still be alive. Returns what was damaged.

    Raises `CheckpointHeld` while a run is at work, `UsageError` if there is no checkpoint, and
    `CheckpointDamaged` if ``job.json`` itself is damaged, which only a copy can replace.
    """
    if not store.list(JOURNAL) and manifest.NAME not in store.list(""):
        raise UsageError(f"{store.url} is not a checkpoint: no {manifest.NAME}")
    hold = Holder(store, run := secrets.token_hex(6))
    hold.take(takeover=False)
    try:
        report, found, records = _examine(store)
        if found is None:
            raise manifest.damaged(store, "it is damaged, and nothing else tells what it held")
        if report.damages:
            _move_damage_aside(
                store, found, records, {damage.file for damage in report.damages}, run
            )
        return report
    finally:
        hold.release()


def release(store: Store, chosen: Callable[[Failure], bool]) -> list[Failure]:
    """Forget the attempts of the chosen failures, durable on return: the next run tries them again.

    Returns the failures as they were; their errors are kept. The record of it fences every run that
    may still be alive.

    Raises:
        CheckpointHeld: a run is at work.
        UsageError: there is no checkpoint.
    """
    found = read_manifest(store)
    hold = Holder(store, run := secrets.token_hex(6))
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


def _examine(store: Store) -> tuple[Report, Manifest | None, dict[int, Commit]]:
    """The report, the manifest if it is readable, and the readable records by number."""
    report = Report()
    there = store.list(JOURNAL)
    try:
        found: Manifest | None = manifest.read(store)
    except FileNotFoundError:
        if not there:
            raise UsageError(f"{store.url} is not a checkpoint: no {manifest.NAME}") from None
        report.damages.append(Damage(manifest.NAME, "it is missing", None))
        found = None
    except CheckpointDamaged as error:
        report.damages.append(Damage(manifest.NAME, error.detail, None))
        found = None
    records = _examine_journal(store, report, found.id if found else None)
    _examine_keys(report, records)
    state = _fold(records)
    owners = _owners(records)
    doubled = supersede.doubled([records[number] for number in sorted(records)], state)
    report.damages += [Damage(path, supersede.DOUBLED, items) for path, items in doubled.items()]
    listed = store.list(shards.FOLDER)
    for path, shard in state.shards.items():
        try:
            shards.checked_bytes(store, shard)
        except CheckpointDamaged as error:
            if path not in doubled:
                report.damages.append(Damage(path, error.detail, owners[path]))
    report.orphans = sorted(path for path in listed if path not in state.shards)
    report.records, report.shards = len(records), len(state.shards)
    report.rows = state.rows
    return report, found, records


def _fold(records: dict[int, Commit]) -> State:
    """The state by the readable records; a key that comes twice is no matter here."""
    state = State()
    for number in sorted(records):
        state.apply(replace(records[number], keys=b"", key_count=0, fingerprints=b""))
    return state


def _examine_keys(report: Report, records: dict[int, Commit]) -> None:
    """Every key is completed once, unless it was retracted in between."""
    done = KeyTable()
    for number in sorted(records):
        record, twice = records[number], 0
        for key in keys.split(record.retracted):
            done.remove(key)
        for key in keys.split(record.keys):
            twice += not done.add(key, number)
        if twice:
            what = f"it completes {count(twice, 'key')} for the second time"
            report.damages.append(Damage(record_name(number), what, record.key_count))
    report.items = len(done)


def _examine_journal(store: Store, report: Report, anchor: str | None) -> dict[int, Commit]:
    # Twice: a listing during which a run commits can miss a record and show its successor.
    names = {*store.list(JOURNAL), *store.list(JOURNAL)}
    numbers = {n for name in names if (n := record_number(name)) is not None}
    records: dict[int, Commit] = {}
    last = -1
    for number in sorted(numbers):
        if number - last > _STRAY:
            what = "it is far ahead of the others, and none of this checkpoint's"
            report.damages.append(Damage(record_name(number), what, None))
        else:
            last = number
    for number in range(last + 1):
        name = record_name(number)
        try:
            record = journal.decode(store.read(name), name)
        except FileNotFoundError:
            report.damages.append(Damage(name, "it is missing", None))
            continue
        except CheckpointDamaged as error:
            report.damages.append(Damage(name, error.detail, None))
            continue
        before = records.get(number - 1)
        expected = {anchor} if number == 0 else _continuations(before)
        if None not in expected and record.previous not in expected:
            report.damages.append(
                Damage(name, "it does not continue the record before it", record.key_count)
            )
            continue
        records[number] = record
    return records


def _continuations(before: Commit | None) -> set[str | None]:
    """The records that the next one may name as its predecessor; None if that is unknown."""
    if before is None:
        return {None}
    return {before.checksum, before.info.get("stands_for", before.checksum)}


def _owners(records: dict[int, Commit]) -> dict[str, int]:
    """Count the keys that have their rows in each shard."""
    sections = (section for record in records.values() for section in record.sections())
    return {s.shard.path: len(s.lines) for s in sections if s.shard is not None}


def _move_damage_aside(
    store: Store, found: Manifest, records: dict[int, Commit], bad: set[str], run: str
) -> None:
    stamp = now().replace(":", "").replace("+0000", "")
    lost = sorted(n for name in bad if (n := record_number(name)) is not None)
    for number in [n for n in lost if n > max(records, default=0) + _STRAY]:
        _move_aside(store, record_name(number), stamp)
        lost.remove(number)
    # A lost record may have been a claim: step over every epoch that it can have taken.
    epoch = max((record.epoch for record in records.values()), default=0) + len(lost)
    for number in lost:
        _replace_record(store, found, records, number, run, stamp)
    log = Journal(store, found.id)
    state = State(place=store.url)
    state.apply_all(log.read_new())
    # What only lost records have named is no orphan to be swept, but evidence to be kept.
    for path in store.list(shards.FOLDER) if lost else ():
        if path not in state.shards:
            _move_aside(store, path, stamp)
    gone = [shard for path, shard in state.shards.items() if path in bad]
    places = supersede.shard_of_each(Journal(store, found.id).read_new())
    gone_paths = {shard.path for shard in gone}
    info = {**holder.me(run), "retracted_shards": [shard.path for shard in gone]}
    info.pop("run")
    log.append(
        Commit(
            kind="repair",
            epoch=epoch + 1,
            run=run,
            # Not what has been handled again since: its rows are elsewhere.
            retracted=keys.join(key for key, path in places.items() if path in gone_paths),
            # A lost record may have been the one that widened the schema.
            schema=_schema(store, [s for s in state.shards.values() if s not in gone]),
            info=info,
        )
    )
    for shard in gone:
        _move_aside(store, shard.path, stamp)


def _replace_record(
    store: Store,
    found: Manifest,
    records: dict[int, Commit],
    number: int,
    run: str,
    stamp: str,
) -> None:
    """Put a ``lost`` record where a damaged one stands, in one step, keeping a copy of it.

    The place is never empty in between, so that no run that sleeps can put its own there.
    """
    name = record_name(number)
    try:
        disk.prepare(store, (FOLDER,))
        store.put(f"{FOLDER}/{stamp}-{name.rpartition('/')[2]}", store.read(name))
    except FileNotFoundError:
        pass  # there is nothing to keep of a missing one
    before, after = records.get(number - 1), records.get(number + 1)
    commit = Commit(
        kind="lost",
        epoch=0,
        run=run,
        number=number,
        time=now(),
        nonce=secrets.token_hex(8),
        previous=found.id if number == 0 else before.checksum if before else "",
        info={"stands_for": after.previous} if after else {},
    )
    data, checksum = journal.encode(commit)
    store.put(name, data)
    records[number] = replace(commit, checksum=checksum)


def _schema(store: Store, good: list[Shard]) -> str | None:
    """The unified schema of these shards, read from the files themselves."""
    unified = None
    for shard in good:
        unified = schemas.unify(unified, shards.read(store, shard).schema, shard.path)
    return schemas.schema_to_text(unified) if unified is not None else None


def _move_aside(store: Store, path: str, stamp: str) -> None:
    try:
        data = store.read(path)
    except FileNotFoundError:
        return
    disk.prepare(store, (FOLDER,))
    store.put(f"{FOLDER}/{stamp}-{path.rpartition('/')[2]}", data)
    store.delete(path)
