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
    """Mark completed items as missing, so that the next run handles them, and only them.

    The change is durable on return: their rows are no longer part of the results; all other rows
    stay available throughout. Returns the keys of these items. If several of ``keys``, ``where``
    and ``before`` are given, an item must match all of them.

    Args:
        checkpoint: the checkpoint's directory or URL, with the partition if it has one; or a
            `SqlCheckpoint`.
        keys: the items with these keys.
        where: a condition in SQL on an item's rows, such as ``"label = 'other'"``. In a directory
            it is SQLite's: times are text, decimals are floats, and lists and structs are JSON.
        before: items whose results were committed before this time; UTC if it has no time zone.
        dry_run: change nothing.

    Raises:
        UsageError: a key is not completed, the condition is invalid, or nothing is chosen.
        CheckpointHeld: a run is at work.
        CheckpointDamaged: rows of these items are damaged.
    """
    place = checkpoint if isinstance(checkpoint, Place) else Directory(os.fspath(checkpoint))
    return place.redo(choice(keys, where, before), dry_run=dry_run)
