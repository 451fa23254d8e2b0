"""The function `redo`: completed items are handled again by the next run."""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import datetime

from resumable_tasks.checkpoint.choice import choice
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.form import Place
from resumable_tasks.items.keys import Key


def redo(
    checkpoint: str | os.PathLike[str] | Place,
    *,
    keys: Iterable[Key] | None = None,
    where: str | None = None,
    before: str | datetime | None = None,
    dry_run: bool = False,
) -> list[Key]:
    """Make completed items missing, so that the next run handles them, and only them.

    On return that is durable: their rows are no results any more, and all other rows are there at
    every moment. Returns the keys of these items. Given several of ``keys``, ``where`` and
    ``before``, an item is chosen if it fits them all.

    Args:
        checkpoint: the checkpoint's directory or URL, with the partition if it has one; or a
            `SqlCheckpoint`.
        keys: these items.
        where: a condition in SQL on an item's rows, such as ``"label = 'other'"``. In a directory
            it is SQLite's: times are text, decimals are floats, and lists and structs are JSON.
        before: items whose results were committed before this time; in UTC if it has no zone.
        dry_run: nothing is changed.

    Raises:
        UsageError: a key is not completed, the condition is none, or nothing is said.
        CheckpointHeld: a run is at work.
        CheckpointDamaged: rows that are concerned are damaged.
    """
    place = checkpoint if isinstance(checkpoint, Place) else Directory(os.fspath(checkpoint))
    return place.redo(choice(keys, where, before), dry_run=dry_run)
