"""Damage that a checkpoint's listings show, before any file is read."""

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
HEADLESS = "it is empty or missing, but there are shards"


def odd(store: Store) -> dict[str, str]:
    """The names in ``journal`` and ``shards`` that are not plain files, with what is wrong."""
    found = {**disk.odd(store, JOURNAL), **disk.odd(store, SHARDS)}
    return {name: f"it is {what}, not a plain file" for name, what in found.items()}


def refuse_links(store: Store) -> None:
    """Raise `CheckpointDamaged` if there are links to files that may be the checkpoint's.

    Moving the links aside would lose these files; following them would trust whoever made them.
    Only a person can decide.
    """
    found = {**disk.odd(store, JOURNAL), **disk.odd(store, SHARDS)}
    links = tuple(name for name, what in found.items() if what == LINK_TO_FILE)
    if links:
        more = f", and {len(links) - 1:,} more are" if len(links) > 1 else ""
        raise CheckpointDamaged(
            f"it is {LINK_TO_FILE}{more}; the target may be intact, so nothing was changed",
            files=links,
            place=store.url,
            remedy="Copy the files themselves into a new checkpoint (`cp -RL "
            f"{shell_words(store.url)} COPY`) and repair that, or remove links that lead elsewhere "
            "and repair again",
        )


def is_headless(store: Store) -> bool:
    """True if there are shards but no record that could name them.

    A run writes its claim before its first shard, so the journal is listed after the shards.
    """
    return bool(store.list(SHARDS)) and not disk.names(store, JOURNAL)


def check(store: Store, records: int, *, shards: bool = True) -> None:
    """Raise `CheckpointDamaged` if the folders do not fit a journal of ``records`` records.

    ``shards``: False if there are known to be no shards.
    """
    found = odd(store)
    if not records and shards and is_headless(store):
        found[JOURNAL] = HEADLESS
    if found:
        files = tuple(found)
        raise CheckpointDamaged(found[files[0]], files=files, place=store.url)


def check_appended(store: Store, commit: Commit, before: int) -> None:
    """Check that a record was appended where readers look: with its shards and the one before it.

    Raises `Fenced` and `CheckpointDamaged` as `disk.check_place` does.
    """
    names = [manifest.NAME, *(shard.path for shard in commit.shards)]
    try:
        disk.check_place(store, [*names, *([record_name(before)] if before >= 0 else [])])
    except CheckpointDamaged:
        if segments.listed(store).segment_with(before) is None:
            raise
        disk.check_place(store, names)  # a newer run may have folded the record before
