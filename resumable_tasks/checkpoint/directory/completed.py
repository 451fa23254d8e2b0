"""The completed keys, and the record that completed each."""

from __future__ import annotations

from collections.abc import Iterator

from resumable_tasks.checkpoint.directory import layout
from resumable_tasks.checkpoint.directory.driver import read_manifest
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.store.base import Store


def completed_lines(store: Store) -> Iterator[bytes]:
    """The canonical keys of all completed items, newline-joined, a record at a time."""
    return (lines for _, lines in completed_at(store))


def completed_at(store: Store) -> Iterator[tuple[str, bytes]]:
    """The time of each record, and the canonical keys that it completes, newline-joined.

    In commit order, each once, as the journal was at the first call. The journal is read twice
    rather than held in memory; damage is found before the first key is given.
    """
    anchor = read_manifest(store).id
    retracted: dict[bytes, int] = {}
    records = 0
    for commit in Journal(store, anchor).read_new():
        records = commit.number + 1
        for key in commit.retracted.split(b"\n") if commit.retracted else ():
            retracted[key] = commit.number
    layout.check(store, records)
    for commit in Journal(store, anchor).read_new():
        if commit.number >= records:
            return
        # Between two retractions a key is completed once; what comes before the last of
        # them does not count. A record retracts first.
        lines = commit.keys.split(b"\n") if commit.keys else []
        if retracted:
            lines = [key for key in lines if retracted.get(key, -1) <= commit.number]
        if lines:
            yield commit.time, b"\n".join(lines)
