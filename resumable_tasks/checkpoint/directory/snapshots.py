"""Snapshots of the journal: the state so far in two files. A verified cache, never needed.

``snapshots/<20 digits>.jsonl`` has the format of a record, with the kind ``snapshot``. It holds the
shards, the failures and the rest of the state after the record of that number, and that record's
checksum. ``snapshots/<20 digits>-<token>.keys.zst`` has the completed keys with their fingerprints,
one a line in the order of the journal; it is read only when keys are needed.

A snapshot counts if it belongs to this checkpoint, its contents are consistent, and the journal has
the very record that it names. It does not count after a repair, which can replace older records. In
any doubt the journal is read from its beginning. If the record of a snapshot and all later ones are
missing, the end of the journal was cut off; nothing else would reveal this damage.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.hashes import blake2b
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import records, segments
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import record_name
from resumable_tasks.checkpoint.directory.segments import Listing
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointUnusable,
    ResumableTasksError,
    StoreError,
)
from resumable_tasks.items.keytable import KeyTable

FOLDER = "snapshots"
_HEAD = re.compile(FOLDER + r"/([0-9]{20})\.jsonl")
_KEYS = re.compile(FOLDER + r"/([0-9]{20})-[0-9a-f]{16}\.keys\.zst")
# A new snapshot pays after this many records, or keys, since the last.
_RECORDS, _KEYS_MORE = 1_000, 1_000_000
# In a bucket, reading fewer records than this is as fast as asking whether there is a snapshot.
_FEW_RECORDS = 64
# The last snapshot and the one before it, which somebody may be reading.
_KEPT = 2
# Kinds of records that can change records before an existing snapshot.
_VOIDING = ("repair", "lost")


def read_state(
    store: Store,
    anchor: str,
    listed: Listing | None = None,
    polite: Callable[[Iterator[Commit]], Iterable[Commit]] = iter,
) -> tuple[State, Journal]:
    """The state after all records, and the journal as read up to there.

    ``listed``: the journal's listing, if the caller has it; later records are not read then. Raises
    `CheckpointDamaged`.
    """
    listed = segments.listed(store) if listed is None else listed
    found = _recalled(store, anchor, listed)
    if found is not None:
        state, journal = found
        journal.read_first(listed.since(state.records))
        for commit in polite(journal.read_new()):
            if commit.kind in _VOIDING:
                break
            state.apply(commit)
        else:
            return state, journal
    state, journal = State(place=store.url), Journal(store, anchor)
    journal.read_first(listed)
    state.apply_all(polite(journal.read_new()))
    return state, journal


def starting(store: Store, anchor: str) -> tuple[State, Journal]:
    """The state and the journal to read on from: at a snapshot, or before the first record.

    The journal first reads the records of one listing. The caller must start again without a
    snapshot at a record that `voids` the snapshot.
    """
    listed = segments.listed(store)
    found = _recalled(store, anchor, listed)
    state, journal = found or (State(place=store.url), Journal(store, anchor))
    journal.read_first(listed.since(state.records))
    return state, journal


def voids(commit: Commit) -> bool:
    """True if this record can change records before an existing snapshot."""
    return commit.kind in _VOIDING


def ahead(store: Store, anchor: str) -> tuple[str, int] | None:
    """The last snapshot of this checkpoint with its record's number, if the journal was cut off.

    None if the journal has that record or a later one, as it has unless its end was cut off.
    """
    for name in sorted(filter(_HEAD.fullmatch, store.list(FOLDER)), reverse=True):
        number = int(name[-26:-6])
        if len(segments.listed(store, number)):
            return None
        # Read after the listing: a snapshot of a checkpoint archived meanwhile is then not found.
        with contextlib.suppress(CheckpointDamaged, FileNotFoundError):
            head = records.decode(store.read(name), record_name(number), store.url)
            if (head.kind, head.nonce) == ("snapshot", anchor):
                return name, number
    return None


def cut(name: str) -> str:
    """The defect of a missing record that this snapshot, of it or a later one, proves to exist."""
    return f"it is missing, but existed when {name} was made"


def pays(store: Store, state: State, more_keys: int = 0) -> bool:
    """True if a snapshot of this state, with ``more_keys`` more keys, would save much reading."""
    fresh = len(state.done) + more_keys - state.recalled[1]
    many = state.records - state.recalled[0] >= _RECORDS
    return _is_asked(store, state.records) and (many or fresh >= _KEYS_MORE)


def write(store: Store, anchor: str, state: State, journal: Journal) -> None:
    """Write a snapshot of this state, the state after all records that the journal has read.

    A failure is logged and does no harm.
    """
    try:
        _write(store, anchor, state, journal)
    except (StoreError, CheckpointUnusable) as error:
        log.warning("%s: the snapshot of the journal could not be written: %s", store.url, error)


def refresh(store: Store, anchor: str, state: State, more_keys: int) -> None:
    """`write` a snapshot, if it pays, after reading the records again.

    Reads them because this state lacks the keys of its own run. Ignores damage; the next run finds
    it.
    """
    if pays(store, state, more_keys):
        with contextlib.suppress(CheckpointDamaged):
            write(store, anchor, *read_state(store, anchor))


def at(path: str) -> int:
    """The number of the record that this snapshot file belongs to; -1 for any other file."""
    found = _HEAD.fullmatch(path) or _KEYS.fullmatch(path)
    return int(found[1]) if found else -1


def forget(store: Store) -> None:
    """Remove all snapshots."""
    store.delete_all(list(store.list(FOLDER)))


def _write(store: Store, anchor: str, state: State, journal: Journal) -> None:
    import pyarrow as pa

    disk.prepare(store, (FOLDER,))
    number = journal.next_number - 1
    with state.done.living() as living:
        size, data = len(living), pa.Codec("zstd").compress(living, asbytes=True)
    path = f"{FOLDER}/{number:020d}-{token(8)}.keys.zst"
    fault_point("snapshot.before_keys")
    store.put(path, data)
    fault_point("snapshot.keys_written")
    described = {
        "path": path,
        "count": len(state.done),
        "size": size,
        "bytes": len(data),
        "checksum": blake2b(data, digest_size=16).hexdigest(),
    }
    head = Commit(
        kind="snapshot",
        epoch=state.epoch,
        run=state.last.run if state.last is not None else "",
        number=number,
        time=now(),
        nonce=anchor,
        previous=journal.last_checksum,
        shards=tuple(state.shards.values()),
        schema=state.schema,
        failures=(*state.failures.values(), *state.parked.values()),
        info={"keys": described, "state": state.told()},
    )
    try:
        made = store.create(_name(number), records.encode(head)[0])
    except CreateUnknown:
        made = True  # every reader verifies it
    fault_point("snapshot.written")
    if not made:
        store.delete(path)
        return
    state.recalled = state.records, len(state.done)
    _remove_older(store, number, path)


def _name(number: int) -> str:
    return f"{FOLDER}/{number:020d}.jsonl"


def _remove_older(store: Store, number: int, path: str) -> None:
    """Remove all but the last two snapshots, and files left by writers that died."""
    there = store.list(FOLDER)
    heads = sorted(int(found[1]) for found in map(_HEAD.fullmatch, there) if found)
    kept = [head for head in heads if head <= number][-_KEPT:]
    old = []
    for name in there:
        of_another = at(name) == number and name not in (_name(number), path)
        if 0 <= at(name) <= number and (at(name) not in kept or of_another):
            old.append(name)
    store.delete_all(old)


def _is_asked(store: Store, count: int) -> bool:
    """True if a journal of ``count`` records is long enough to look for a snapshot."""
    return count >= _FEW_RECORDS or isinstance(store, disk.Disk)


def _recalled(store: Store, anchor: str, listed: Listing) -> tuple[State, Journal] | None:
    """The state of the last snapshot that counts, and the journal after it; None if none counts.

    Raises `CheckpointDamaged` if the end of the journal was cut off since.
    """
    if not _is_asked(store, len(listed)):
        return None
    there = store.list(FOLDER)
    heads = [name for name in there if _HEAD.fullmatch(name)]
    if not heads:
        return None
    last = listed.numbers[-1] if listed else -1
    if last < int(max(heads)[-26:-6]) and (found := ahead(store, anchor)) is not None:
        raise _doubt(store, record_name(last + 1), cut(found[0]))
    for name in sorted(heads, reverse=True):
        if int(name[-26:-6]) <= last:
            try:
                return _checked(store, anchor, listed, name, there)
            except (ResumableTasksError, FileNotFoundError, *records.UNREADABLE) as error:
                log.info("%s: ignoring %s: %s", store.url, name, error)
    return None


def _checked(
    store: Store, anchor: str, listed: Listing, name: str, there: Mapping[str, int]
) -> tuple[State, Journal]:
    number = int(name[-26:-6])
    head = records.decode(store.read(name), record_name(number), store.url)
    _, last = next(segments.read(store, listed, [number]))
    told = head.info["keys"]
    if (head.kind, head.nonce, head.previous) != ("snapshot", anchor, last.checksum):
        raise _doubt(store, name, "it belongs to another journal")
    if list(listed.numbers[: number + 1]) != list(range(number + 1)):
        raise _doubt(store, name, "records before it are missing")
    if not _KEYS.fullmatch(told["path"]) or there.get(told["path"]) != told["bytes"]:
        raise _doubt(store, name, "its keys have changed")
    state = State.of_told(head, head.info["state"], store.url)
    state.recalled = state.records, told["count"]

    def block() -> bytearray:
        found = _kept(store, told)
        if found is None:
            state.recalled = 0, 0  # so that a new snapshot pays
            found = _read_again(store, anchor, number)
        return found

    state.done = KeyTable(told["count"], block)
    if state.records != number + 1:
        raise _doubt(store, name, f"it counts {state.records:,} records")
    return state, Journal.after(store, replace(last, epoch=max(last.epoch, state.epoch)))


def _kept(store: Store, told: Mapping[str, Any]) -> bytearray | None:
    """The keys of a snapshot as a `KeyTable` block; None if they are missing or damaged."""
    import pyarrow as pa

    try:
        data = store.read(told["path"])
        if blake2b(data, digest_size=16).hexdigest() == told["checksum"]:
            block = bytearray(1 + told["size"])
            block[0] = 10
            plain = pa.Codec("zstd").decompress(data, told["size"])
            memoryview(block)[1:] = memoryview(plain).cast("B")
            if block.endswith(b"\n") and block.count(b"\n") == told["count"] + 1:
                return block
    except (FileNotFoundError, CheckpointDamaged, OSError, ValueError) as error:
        log.info("%s: the keys of a snapshot cannot be read: %s", store.url, error)
    return None


def _read_again(store: Store, anchor: str, number: int) -> bytearray:
    """The keys of all records up to this one, read from the journal, as a `KeyTable` block."""
    state, journal = State(place=store.url), Journal(store, anchor)
    there = segments.listed(store)
    journal.read_first(replace(there, numbers=there.numbers[: number + 1]))
    state.apply_all(journal.read_new())
    with state.done.living() as living:
        return bytearray(b"\n") + living


def _doubt(store: Store, name: str, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(what, files=(name,), place=store.url)
