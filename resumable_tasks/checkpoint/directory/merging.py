"""Merging: the rows of many small shards are written into one, and a record replaces them.

The merged shard is durable before the record that names it. From that record on it counts and its
parts do not; for every reader this is one step, as with any record. It completes and retracts no
key. The parts are deleted later. ``docs/design/0026-merging.md`` has the rules and the rejected
alternatives.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.frozen import frozen
from resumable_tasks.checkpoint.directory import schemas, shards
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CommitStateUnknown, Fenced, ResumableTasksError, StoreError
from resumable_tasks.runners.outcome import Shard

if TYPE_CHECKING:
    import pyarrow as pa

# The fewest shards that are worth a merge.
FEWEST = 32
# The same size as the files that publish writes.
TARGET_BYTES = 128_000_000
# Limited because redoing an item copies the shard with its rows and writes all keys of the shard.
MOST_KEYS, MOST_KEYS_THAT_CHANGE = 100_000, 1_000
# Limited because a run commits nothing while it reads the parts of a merge.
MOST_PARTS_AT_ONCE = 256
# An active run keeps merged parts this long for readers that have begun to read them.
GRACE_SECONDS = 60.0


class Stopped(Exception):
    """The merge was given up because the run is asked to stop. Nothing has changed."""


@frozen
class Limits:
    """The limits of a merged shard: its bytes, its completed keys, and its parts."""

    bytes: int
    keys: int
    parts: int

    @classmethod
    def of(cls, state: State, target_bytes: int | None = None, parts: int | None = None) -> Limits:
        """The limits for this checkpoint. Fewer keys if items can change and be done again."""
        keys = MOST_KEYS if state.fingerprint is None else MOST_KEYS_THAT_CHANGE
        return cls(target_bytes or TARGET_BYTES, keys, parts or MOST_PARTS_AT_ONCE)

    def share(self, shard: Shard) -> float:
        """The size of a shard as a fraction of a full one."""
        return max(shard.bytes / self.bytes, shard.keys / self.keys)


def choose(there: Iterable[Shard], limits: Limits) -> list[list[Shard]]:
    """The groups of small neighbouring shards that are worth merging, in order.

    A merge moves each row into a shard that is full, or at least twice as large as the one before.
    So a row is copied only as often as a shard can double.
    """
    found: list[list[Shard]] = []
    run: list[Shard] = []
    for shard in there:
        if limits.share(shard) < 1 / 4:
            run.append(shard)
        elif run:
            found += _groups(run, limits)
            run = []
    return found + _groups(run, limits)


def _groups(run: list[Shard], limits: Limits) -> list[list[Shard]]:
    found, left = [], [run]
    while left:
        here = left.pop()
        group = _fitting(here, limits)
        shares = [limits.share(shard) for shard in group]
        full = len(group) < min(len(here), limits.parts)
        if not full and len(group) < FEWEST:
            continue
        largest = max(range(len(group)), key=shares.__getitem__)
        if full or shares[largest] * 2 <= sum(shares):
            found.append(group)
            left.append(here[len(group) :])
        else:
            left += (here[largest + 1 :], here[:largest])
    return found


def _fitting(here: Sequence[Shard], limits: Limits) -> list[Shard]:
    """The leading shards that fit into one."""
    size = keys = 0
    for at, shard in enumerate(here[: limits.parts]):
        size, keys = size + shard.bytes, keys + shard.keys
        if size > limits.bytes or keys > limits.keys:
            return list(here[:at])
    return list(here[: limits.parts])


def merged(
    store: Store,
    epoch: int,
    parts: Sequence[Shard],
    schema: pa.Schema,
    stop: Callable[[], bool] = lambda: False,
) -> Shard:
    """Write the rows of these shards into one that no record names yet; durable on return.

    Raises `Stopped`, `CheckpointDamaged` if a part is damaged, and `StoreError`.
    """

    def rows() -> Iterable[pa.Table]:
        for found in shards.read_groups(store, parts):
            if stop():
                raise Stopped
            yield schemas.cast(found, schema)

    shard = shards.write_all(store, epoch, rows(), schema, sum(part.keys for part in parts))
    if shard.rows != sum(part.rows for part in parts):
        raise StoreError(
            f"{shard.path} has {shard.rows:,} rows, which differ from those of its parts",
            remedy="Run `resumable verify` to find the damage",
        )
    # Its parts will be deleted, so verify what was written.
    shards.checked_bytes(store, shard)
    fault_point("merge.shard_written")
    return shard


def record(
    epoch: int,
    run: str,
    each: Sequence[tuple[Shard, Sequence[Shard]]],
    by: Mapping[str, Any] = MappingProxyType({}),
) -> Commit:
    """The record that replaces the parts by the merged shards. ``by`` names its author."""
    info = {
        **by,
        "merged": [len(parts) for _, parts in each],
        "retracted_shards": [part.path for _, parts in each for part in parts],
    }
    return Commit("merge", epoch, run, shards=tuple(shard for shard, _ in each), info=info)


class Merging:
    """Merges small shards between the commits of a run, in the thread that commits.

    A failure here does not fail the run, except in the journal: unmerged shards stay as they are.
    """

    def __init__(
        self, store: Store, state: State, run: str, append: Callable[[Commit], None]
    ) -> None:
        """``append`` adds a record to the journal and the state.

        It raises a plain `StoreError` if nothing was written, and can be called again after that.
        """
        self._store = store
        self._state = state
        self._run = run
        self._append = append
        # The groups still to merge, the last shards last, and the number of shards at the last
        # look.
        self._chosen: list[list[Shard]] = []
        self._looked_at = 0
        self._failed = False
        # The parts of each merge, with its time, until they are deleted.
        self._parts: deque[tuple[float, list[str]]] = deque()

    def step(self, stop: Callable[[], bool]) -> None:
        """Merge a group of small shards, if there is one. Ends soon once ``stop`` is true.

        Raises what an append to the journal raises, except where nothing was written.
        """
        if self._failed or not self._look() or stop():
            return
        parts = self._chosen.pop()
        if any(part.path not in self._state.shards for part in parts):
            return  # a part was replaced since, because items in it were done again
        shard = self._written(parts, stop)
        if shard is None:
            return
        try:
            self._append(record(self._state.epoch, self._run, [(shard, parts)]))
        except CommitStateUnknown:
            raise
        except StoreError as error:
            self._give_up(error)
            return
        fault_point("merge.done")
        self._looked_at = min(self._looked_at, len(self._state.shards))
        self._parts.append((time.monotonic(), [part.path for part in parts]))
        self._delete(lambda when: when < time.monotonic() - GRACE_SECONDS)

    def end(self) -> None:
        """Delete merged parts, except those of the last merge, which the next run deletes."""
        self._delete(lambda when: True)

    def _written(self, parts: Sequence[Shard], stop: Callable[[], bool]) -> Shard | None:
        """The merged shard; None if it could not be written."""
        try:
            schema = schemas.schema_from_text(self._state.schema or "")
            return merged(self._store, self._state.epoch, parts, schema, stop)
        except Stopped:
            return None
        except Fenced:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the rows are where they were
            self._give_up(error)
            return None

    def _give_up(self, error: Exception) -> None:
        self._failed = True
        log.warning("this run no longer merges small shards, but continues: %s", error)

    def _look(self) -> bool:
        """True if there is a group to merge. Looks again only after enough new shards."""
        if not self._chosen and len(self._state.shards) >= self._looked_at + FEWEST:
            self._chosen = choose(self._state.shards.values(), Limits.of(self._state))
            self._looked_at = len(self._state.shards)
        return bool(self._chosen)

    def _delete(self, due: Callable[[float], bool]) -> None:
        paths: list[str] = []
        while len(self._parts) > 1 and due(self._parts[0][0]):
            paths += self._parts.popleft()[1]
        try:
            if paths:
                self._store.delete_all(paths)
        except ResumableTasksError as error:
            log.info("merged shards are left for the next run to delete: %s", error)
