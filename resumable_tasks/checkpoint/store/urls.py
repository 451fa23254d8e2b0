"""The store that a path or URL names."""

from __future__ import annotations

import os
from pathlib import Path

from resumable_tasks.base import text
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import UsageError


def open_store(place: str | Path, what: str = "checkpoint") -> Store:
    """The store at a place. Raises `UsageError` for one that this version cannot reach."""
    named = os.fspath(place)
    if "://" not in named:
        return LocalStore(Path(named).expanduser())
    if named.lower().startswith("file://"):
        return LocalStore.at_url(named)
    raise UsageError(
        f"{what} {text.without_secrets(named)!r}: this version keeps {what}s in directories "
        "only; give a path on a disk (of a database: SqlCheckpoint, `resumable sql`)"
    )
