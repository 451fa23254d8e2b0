"""The completed keys, with the time of each completion."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from resumable_tasks.checkpoint.directory import layout
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.items import keys


def completed_lines(store: Store) -> Iterator[bytes]:
    """The canonical keys of all completed items, newline-joined, a record at a time."""
    return (lines for _, lines in completed_at(store))


def completed_at(store: Store) -> Iterator[tuple[str, bytes]]:
    """Yield a time and the canonical keys completed then, newline-joined, in commit order.

    Each key comes once, as of the journal at the first call. A key that was only copied with others
    of its shard has the time of its result. Reads the journal several times instead of holding it
    in memory, and finds damage before it yields the first key.
    """
    anchor = read_manifest(store).id
    retracted: dict[bytes, int] = {}
    again: set[bytes] = set()
    records = 0
    for commit in Journal(store, anchor).read_new():
        records = commit.number + 1
        again.update(copied(commit))
        for key in keys.split(commit.retracted):
            retracted[key] = commit.number
    layout.check(store, records)
    since = _since(store, anchor, again, records) if again else {}
    for commit in Journal(store, anchor).read_new():
        if commit.number >= records:
            return
        # Between two retractions a key is completed once, and only the completion after the last
        # retraction counts. A record retracts before it completes.
        lines = commit.keys.split(b"\n") if commit.keys else []
        if retracted:
            lines = [key for key in lines if retracted.get(key, -1) <= commit.number]
        if not since:
            if lines:
                yield commit.time, b"\n".join(lines)
            continue
        times = ((since.get(key, commit.time), key) for key in lines)
        for when, each in groupby(times, key=lambda pair: pair[0]):
            yield when, b"\n".join(key for _, key in each)


def copied(commit: Commit) -> list[bytes]:
    """The keys that a record completes again with their old rows."""
    count, rowless = commit.info.get("copied", 0), commit.info.get("copied_rowless", 0)
    if not count:
        return []
    lines = list(keys.split(commit.keys))
    return lines[: count - rowless] + lines[len(lines) - rowless :]


def _since(store: Store, anchor: str, wanted: set[bytes], records: int) -> dict[bytes, str]:
    """The time of each of these keys' results."""
    found: dict[bytes, str] = {}
    for commit in Journal(store, anchor).read_new():
        if commit.number >= records:
            break
        stays = set(copied(commit))
        for key in wanted.intersection(keys.split(commit.keys)) - stays:
            found[key] = commit.time
    return found
