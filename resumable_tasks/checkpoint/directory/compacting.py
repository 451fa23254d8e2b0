"""Compacts a checkpoint that no run is at work on: its small shards are merged, as runs do it."""

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

# Nobody waits for a commit meanwhile.
_MOST_PARTS = 16_384


@dataclass(frozen=True, slots=True)
class Compacted:
    """The shards that count, ``before`` and ``after``, and the files of merged ones.

    ``deleted`` were merged earlier, ``left`` just now: the next run, or the next time, deletes
    them. ``folded`` records of the journal have gone into segments.
    """

    before: int
    after: int
    deleted: int
    left: int
    folded: int


def compact(store: Store, target_bytes: int | None = None) -> Compacted:
    """Merge the small shards, durable on return, each into one of about ``target_bytes``.

    Small records of the journal are folded into segments.

    At every moment each row is there once, for whoever reads. The record of it fences every run
    that may still be alive.

    Raises:
        CheckpointHeld: a run is at work.
        CheckpointDamaged: a shard is, or the journal.
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
        # The last first: so fewer shards are moved in the order of all.
        for parts in reversed(groups):
            shard = merging.merged(store, epoch, parts, schema)
            append(merging.record(epoch, run, [(shard, parts)], info))
            fault_point("merge.done")
            left += len(parts)
    if old:
        if not left:  # as with every sweep: only what no run can name any more
            append(merging.record(epoch, run, [], info))
        store.delete_all(old)
    folded = folding.fold_all(store, journal.next_number - 1, folding.FEWEST)
    return Compacted(before, len(state.shards), len(old), left, folded)
