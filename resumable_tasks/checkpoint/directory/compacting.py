"""Compacts a checkpoint without an active run: merges its small shards, as runs do."""

from __future__ import annotations

from dataclasses import dataclass

from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.directory import folding, holder, merging, schemas, shards
from resumable_tasks.checkpoint.directory.held import held
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.merging import Limits
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.shards import FOLDER as SHARDS
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store

# More than in a run, since no commit waits meanwhile.
_MOST_PARTS = 16_384


@dataclass(frozen=True, slots=True)
class Compacted:
    """The number of shards that count, ``before`` and ``after``, and of the merged shards' files.

    ``deleted`` files were of earlier merges. ``left`` are of this one; the next run or compaction
    deletes them. ``folded`` records of the journal have moved into segments.
    """

    before: int
    after: int
    deleted: int
    left: int
    folded: int


def compact(store: Store, target_bytes: int | None = None) -> Compacted:
    """Merge small shards into shards of about ``target_bytes``, durable on return.

    Also folds small records of the journal into segments. At every moment a reader sees each row
    exactly once. The record written for this fences every run that may still be alive.

    Raises:
        CheckpointHeld: a run is active.
        CheckpointDamaged: a shard or the journal is damaged.
        UsageError: there is no checkpoint.
    """
    with held(store) as found:
        return _compact(store, found.journal, found.state, found.run, target_bytes)


def _compact(
    store: Store, journal: Journal, state: State, run: str, target_bytes: int | None
) -> Compacted:
    epoch, before = state.epoch + 1, len(state.shards)
    old = [path for path in store.list(SHARDS) if path not in state.shards]
    old = [path for path in old if 0 < shards.epoch_of(path) < epoch]
    info = holder.me(run)
    info.pop("run")

    def append(commit: Commit) -> None:
        state.apply(journal.append(commit))

    left = 0
    limits = Limits.of(state, target_bytes, _MOST_PARTS)
    while groups := merging.choose(state.shards.values(), limits):
        schema = schemas.schema_from_text(state.schema or "")
        # Last group first: then fewer shards must move to keep the order.
        for parts in reversed(groups):
            shard = merging.merged(store, epoch, parts, schema)
            append(merging.record(epoch, run, [(shard, parts)], info))
            fault_point("merge.done")
            left += len(parts)
    if old:
        if not left:  # delete only what no run can name any more, as every sweep does
            append(merging.record(epoch, run, [], info))
        store.delete_all(old)
    folded = folding.fold_all(store, journal.next_number - 1, folding.FEWEST)
    return Compacted(before, len(state.shards), len(old), left, folded)
