"""Damage that shows in a checkpoint's folders, before anything is read."""

from __future__ import annotations

from resumable_tasks.base.files import LINK_TO_FILE
from resumable_tasks.base.text import shell_words
from resumable_tasks.checkpoint.directory import manifest, segments
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.records import record_name
from resumable_tasks.checkpoint.directory.shards import FOLDER as SHARDS
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged

FOLDERS = (JOURNAL, SHARDS, "outbox", "damaged", "snapshots")
"""All folders of a checkpoint."""
HEADLESS = "it is empty or missing, and there are shards"


def odd(store: Store) -> dict[str, str]:
    """The names in ``journal`` and ``shards`` of what is no plain file, and what is wrong."""
    found = {**disk.odd(store, JOURNAL), **disk.odd(store, SHARDS)}
    return {name: f"it is {what}, not a plain file" for name, what in found.items()}


def refuse_links(store: Store) -> None:
    """Raises `CheckpointDamaged` where links lead to files that may be those of the checkpoint.

    To move them aside would be to give up what is there, and to follow them, to trust whoever has
    made them. A person knows.
    """
    found = {**disk.odd(store, JOURNAL), **disk.odd(store, SHARDS)}
    links = tuple(name for name, what in found.items() if what == LINK_TO_FILE)
    if links:
        more = f", and {len(links) - 1:,} more are" if len(links) > 1 else ""
        raise CheckpointDamaged(
            f"it is {LINK_TO_FILE}{more}; what they lead to may be whole, so nothing was changed",
            files=links,
            place=store.url,
            remedy=f"Make a checkpoint of the files themselves (`cp -RL {shell_words(store.url)} "
            "COPY`), or remove links that lead elsewhere; then repair that",
        )


def is_headless(store: Store) -> bool:
    """True if there are shards, and no record that could name them.

    No run writes a shard before its claim is in the journal, which is therefore listed last.
    """
    return bool(store.list(SHARDS)) and not disk.names(store, JOURNAL)


def check(store: Store, records: int, *, shards: bool = True) -> None:
    """Raises `CheckpointDamaged` for a journal of so many records, and the shards beside it.

    ``shards``: False where there are known to be none.
    """
    found = odd(store)
    if not records and shards and is_headless(store):
        found[JOURNAL] = HEADLESS
    if found:
        files = tuple(found)
        raise CheckpointDamaged(found[files[0]], files=files, place=store.url)


def check_appended(store: Store, commit: Commit, before: int) -> None:
    """Check that a record which was appended, after that number, stands where readers look for it.

    Raises `Fenced` and `CheckpointDamaged` as `disk.check_place` does.
    """
    names = [manifest.NAME, *(shard.path for shard in commit.shards)]
    try:
        disk.check_place(store, [*names, *([record_name(before)] if before >= 0 else [])])
    except CheckpointDamaged:
        if segments.listed(store).segment_with(before) is None:
            raise
        disk.check_place(store, names)  # a newer run has put that record into a segment
