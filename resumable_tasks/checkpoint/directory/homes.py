"""The current shards of each record's rows: merges move rows, and name no keys."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from resumable_tasks.base.text import count
from resumable_tasks.checkpoint.directory.record import Commit, ShardKeys
from resumable_tasks.checkpoint.directory.segments import read_some
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged


class Homes:
    """Follows the rows of a journal's records from shard to shard.

    A record writes the rows of its keys to the shards that it names, their *origins*. Merges copy
    the rows of several shards into one, repeatedly. The shard that has the rows now is their
    *home*.
    """

    def __init__(self, commits: Iterable[Commit] = ()) -> None:
        self._parts: dict[str, tuple[str, ...]] = {}
        self._into: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self._last: Commit | None = None
        for commit in commits:
            self.follow(commit)

    def follow(self, commit: Commit) -> None:
        """Apply the next record."""
        for shard, parts in commit.merges():
            self._parts[shard.path] = tuple(parts)
            self._into.update(dict.fromkeys(parts, shard.path))
            self._into.pop(shard.path, None)  # no cycles, even if a file was made by hand
        if commit.kind != "merge":
            self._numbers.update((shard.path, commit.number) for shard in commit.shards)

    def of(self, path: str) -> str:
        """The shard that has the rows of this one now; this one itself if it was not merged."""
        while path in self._into:
            path = self._into[path]
        return path

    def origins(self, path: str) -> Iterator[str]:
        """The shards whose rows were merged into this one, in the order of the rows."""
        left, seen = [path], set()
        while left:
            here = left.pop()
            if here in seen:
                continue
            seen.add(here)
            if here in self._parts:
                left += reversed(self._parts[here])
            else:
                yield here

    def strangers(self, path: str) -> list[str]:
        """The origins of a shard that no record names; the keys of their rows are unknown."""
        return [origin for origin in self.origins(path) if origin not in self._numbers]

    def sections(self, store: Store, path: str) -> list[ShardKeys]:
        """The keys of all rows in this shard by origin, read from the records.

        Skips origins that no record names. Raises `CheckpointDamaged`.
        """
        origins = [origin for origin in self.origins(path) if origin in self._numbers]
        wanted = set(origins)
        found: dict[str, ShardKeys] = {}
        for commit in self._records(store, sorted({self._numbers[origin] for origin in origins})):
            for section in commit.sections():
                if section.shard is not None and section.shard.path in wanted:
                    found[section.shard.path] = section
        missing = wanted - found.keys()
        if missing:
            # A repair has put other records in their places: a newer driver is at work.
            raise CheckpointDamaged(
                f"no record names {count(len(missing), 'part')} of {path} any more",
                place=store.url,
            )
        return [found[origin] for origin in origins]

    def _records(self, store: Store, numbers: list[int]) -> Iterator[Commit]:
        # Neighbouring shards often come from one record.
        if self._last is not None and numbers == [self._last.number]:
            yield self._last
            return
        for self._last in read_some(store, numbers):
            yield self._last
