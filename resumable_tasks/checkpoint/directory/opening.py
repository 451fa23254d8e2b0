"""The first look at a place before a checkpoint is opened there."""

from __future__ import annotations

from collections.abc import Iterable

from resumable_tasks.checkpoint.directory import holder, manifest
from resumable_tasks.checkpoint.directory.layout import FOLDERS
from resumable_tasks.checkpoint.directory.manifest import Manifest, Stored
from resumable_tasks.checkpoint.directory.notes import is_note
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.shards import FOLDER as SHARDS
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointUnusable, ResumableTasksError, UsageError
from resumable_tasks.items import keys

NO_MANIFEST = "it is missing, but there is a journal"


def is_ours(name: str) -> bool:
    """True for the name of a checkpoint's file at the top of its place."""
    return name in (manifest.NAME, holder.NAME, holder.LOCK) or is_note(name)


def foreign(store: Store) -> list[str]:
    """The names at the top of a place that are not part of a checkpoint."""
    there = disk.names(store, "")
    return sorted(name for name in there if name not in FOLDERS and not is_ours(name))


def read_manifest(store: Store) -> Manifest:
    """The manifest of the checkpoint at this place.

    Raises `UsageError` if there is no checkpoint, and `CheckpointDamaged` with remedies.
    """
    try:
        return manifest.read(store)
    except FileNotFoundError:
        error = none_there(store)
    try:
        return manifest.read(store)  # a run has begun since the first read
    except FileNotFoundError:
        raise error from None


def none_there(store: Store) -> ResumableTasksError:
    """The error for a place that should be a checkpoint and has no manifest."""
    from resumable_tasks.checkpoint.snapshot import format as generations

    if disk.names(store, JOURNAL):
        return manifest.damaged(store, NO_MANIFEST)
    if generations.numbers(store):
        return UsageError(
            f"{store.url} is a Snapshot, which keeps one state, but no items, runs or rows",
            remedy="Read it in Python, `with Snapshot(path) as snapshot: snapshot.state`",
        )
    return UsageError(
        f"{store.url} is not a checkpoint (it has no {manifest.NAME})",
        remedy="`resumable ls PLACE` finds those below a directory or bucket",
    )


def prepare(store: Store) -> None:
    """Make the place ready for writing. If it raises `CheckpointUnusable`, nothing has changed."""
    if isinstance(store, disk.Disk):
        try:
            there = store.list("")
        except CheckpointUnusable:
            there = {}  # `disk.prepare` reports what is wrong
        _refuse_foreign(store, there)
    disk.prepare(store, (JOURNAL, SHARDS))


def is_new(store: Store) -> bool:
    """True if there is nothing at all at this place."""
    return store.is_empty((JOURNAL, SHARDS))


def look(store: Store) -> Stored | None:
    """The manifest, None if there is none.

    Raises `CheckpointUnusable` for a place with foreign files, `CheckpointDamaged` for a journal
    without a manifest.
    """
    found = manifest.find(store)
    if found is not None:
        return found
    # The top is listed last, because a run creates the manifest before its first record.
    records, there = disk.names(store, JOURNAL), store.list("")
    if manifest.NAME in there:
        return manifest.find(store)
    _refuse_foreign(store, there)
    if records:
        raise manifest.damaged(store, NO_MANIFEST)
    return None


def _refuse_foreign(store: Store, there: Iterable[str]) -> None:
    """Raise `CheckpointUnusable` if the place contains foreign files."""
    foreign = sorted(name for name in there if not is_ours(name))
    if foreign and manifest.NAME not in there:
        raise CheckpointUnusable(
            f"{store.url} holds other files ({keys.shorten(foreign[0])}) and is not a checkpoint; "
            "name a directory of its own, which need not exist yet"
        )
