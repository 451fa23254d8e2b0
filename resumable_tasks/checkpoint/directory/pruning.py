"""The partitions of a job's checkpoints, and the removal of one.

A checkpoint is removed in four steps, with a crash possible after each:

1. a record ends it for good (`archive.end`), if it has not changed since the decision;
2. its place gets another name, or in a bucket a marker, which marks it for removal;
3. ``job.json`` is deleted, so that nothing reads the rest as a checkpoint;
4. everything else is deleted.

After the first step the checkpoint is still whole; after any later one it is no longer at its
place. The next pruning finds the rest and continues.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import manifest
from resumable_tasks.checkpoint.directory.archive import Seen, end
from resumable_tasks.checkpoint.directory.finding import AHEAD, INCARNATION, looks_like_one
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.layout import FOLDERS
from resumable_tasks.checkpoint.directory.opening import foreign, is_ours
from resumable_tasks.checkpoint.directory.reader import is_checkpoint
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.ahead import in_order
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.object import ObjectStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import UsageError

_FOLDER = "a folder"
_SET_ASIDE = re.compile(r"\.(archived|pruned)-\d{8}T\d{6}-[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class Found:
    """A partition's checkpoint at this place, or its remains.

    ``archived``: by a reset. ``discarded``: by a pruning that is not complete.
    """

    name: str
    place: str
    archived: bool = False
    discarded: bool = False


def partitions(place: str) -> list[Found]:
    """The checkpoints directly below this place, by name.

    Raises `UsageError` if the place is neither a directory nor the URL of a prefix.
    """
    store = open_store(place, "place")
    if isinstance(store, ObjectStore):
        found = _in_bucket(store)
    else:
        assert isinstance(store, LocalStore)
        found = _in_directory(store)
    return sorted(found, key=lambda each: (each.name, each.place))


def _in_directory(store: LocalStore) -> Iterator[Found]:
    if not store.root.is_dir():
        raise UsageError(
            f"{store.url} is not a directory",
            remedy="Name the directory that contains the partitions of a job",
        )
    with os.scandir(store.root) as entries:
        folders = [each.name for each in entries if each.is_dir(follow_symlinks=False)]
    for folder in folders:
        within = LocalStore(store.root / folder)
        name = _SET_ASIDE.split(folder)[0]
        if disk.discarded(within):
            yield Found(name, within.url, discarded=True)
        elif looks_like_one(within.url):
            yield Found(name, within.url, archived=name != folder)


def _in_bucket(store: ObjectStore) -> Iterator[Found]:
    names = sorted(name for name in store.look("")[1] if not INCARNATION.fullmatch(name))
    known = store.outlines("", len(names))
    looked = in_order(store.look, [name for name in names if name not in known], AHEAD)
    for name in names:
        there, folders = known[name] if name in known else next(looked)
        place = f"{store.url}/{name}"
        markers = filter(None, map(INCARNATION.fullmatch, (*there, *folders)))
        current = max((int(marker[1]) for marker in markers), default=0)
        left = {number for number in range(1, current + 1) if f"@{number}" in folders}
        if not folders.isdisjoint(FOLDERS) or any(map(is_ours, there)):
            left.add(0)
        for number in sorted(left):
            if number == current:
                if is_checkpoint(open_store(place)):
                    yield Found(name, place)
            else:
                older = f"{place}/@{number}"
                discarded = disk.discarded(open_store(older))
                yield Found(name, older, archived=not discarded, discarded=discarded)


def size(place: str) -> int:
    """The size of a checkpoint's files in bytes."""
    store = open_store(place)
    top = sum(each for name, each in store.list("").items() if is_ours(name))
    return top + sum(sum(store.list(folder).values()) for folder in FOLDERS)


def others(store: Store) -> list[str]:
    """The names of foreign files, which would remain in a directory after the removal.

    Empty for a bucket, where foreign objects do not matter.
    """
    if not isinstance(store, disk.Disk):
        return []
    within = {name: what for folder in FOLDERS for name, what in disk.odd(store, folder).items()}
    return [*foreign(store), *sorted(name for name, what in within.items() if what == _FOLDER)]


def is_removed(store: Store) -> bool:
    """True if nothing of a checkpoint is left."""
    there = (name for folder in FOLDERS for name in store.list(folder))
    return not any(map(is_ours, disk.names(store, ""))) and not any(there)


def remove(found: Found, seen: Seen | None) -> None:
    """Remove a checkpoint for good, if it is as it was ``seen`` (None if it cannot be read).

    Raises `CheckpointHeld`, and removes nothing, while a run is active or if one has begun since.
    After any other error the next pruning continues.
    """
    store = open_store(found.place)
    # An archive in a bucket cannot be written to, and no run can begin in it.
    ended = found.discarded or (found.archived and not isinstance(store, disk.Disk))
    if not ended and not is_checkpoint(store):
        return  # another process has removed it
    _empty(disk.discard(store) if ended else _ended(store, seen))


def _ended(store: Store, seen: Seen | None) -> Store:
    """End a checkpoint and mark it for removal. Returns the store to empty."""
    disk.prepare(store, ())
    hold = Holder(store, token(6))
    try:
        hold.take(takeover=False)
        if seen is not None:
            end(store, hold.run, seen)
        if not isinstance(store, disk.Disk):
            hold.release()  # else its heartbeat would continue in the next incarnation
        return disk.discard(store)
    finally:
        hold.release()
        disk.let_go(store)


def _empty(store: Store) -> None:
    """Delete all files of a checkpoint, the manifest first."""
    store.delete(manifest.NAME)
    disk.sync(store, "")
    fault_point("prune.deleted")
    for folder in FOLDERS:
        disk.sweep(store, folder, lambda _: True)
        odd = {name for name, what in disk.odd(store, folder).items() if what != _FOLDER}
        store.delete_all([*store.list(folder), *odd])
        fault_point("prune.deleted")
    disk.sweep(store, "", is_ours)
    store.delete_all(filter(is_ours, disk.names(store, "")))
    if not disk.remove(store, FOLDERS):
        log.warning(
            "%s contains files that are not part of a checkpoint; these were left there", store.url
        )
