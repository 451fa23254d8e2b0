"""Archives a checkpoint (for a reset, or a job that starts over), or ends it for removal."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.directory import holder, manifest
from resumable_tasks.checkpoint.directory.journal import Journal, RecordTaken
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointHeld,
    CheckpointMismatch,
    CheckpointUnusable,
    Fenced,
)

_TRIES = 100


@dataclass(frozen=True, slots=True)
class Seen:
    """The state of a checkpoint at an earlier look: its id and the number of its records."""

    checkpoint: str
    records: int


def archive(store: Store, run: str) -> str:
    """Move the whole place aside and return its new url.

    First a record of kind ``archive`` fences every run that may still be alive: a run that sleeps
    and wakes up in the archived checkpoint commits nothing there.
    """
    # An unreadable checkpoint is archived too. A run that is alive in it finds at its next commit
    # that it was moved.
    with contextlib.suppress(FileNotFoundError, CheckpointDamaged, CheckpointMismatch):
        _fence(store, run)
    _let_go(store, run)
    return disk.archive(store)


def end(store: Store, run: str, seen: Seen) -> None:
    """End a checkpoint for good, if it is as it was seen: no run continues it after this.

    The record written for this is the point of no return: a run that opens the place later discards
    it (`disk.discard`) and begins from nothing. Raises `CheckpointHeld` if it has changed.
    """
    log, state = Journal(store, manifest.read(store).id), State(place=store.url)
    state.apply_all(log.read_new())
    if state.pruned:
        return
    try:
        if seen != Seen(manifest.read(store).id, state.records):
            raise _changed(store)
        log.append(_record(state, run, pruned=True))
    except RecordTaken:
        raise _changed(store) from None
    fault_point("prune.ended")


def _changed(store: Store) -> CheckpointHeld:
    return CheckpointHeld(
        f"a run has started in {store.url} meanwhile",
        safe="Nothing was removed",
        remedy="Wait for it to end, and prune again",
    )


def _record(state: State, run: str, *, pruned: bool = False) -> Commit:
    info = holder.me(run)
    info.pop("run")
    more = {"pruned": True} if pruned else {}
    return Commit("archive", state.epoch + 1, run, info=info | more)


def _let_go(store: Store, run: str) -> None:
    if holder.read(store).get("run") == run:
        store.delete(holder.NAME)  # without locks, the file would look like a live holder's


def _fence(store: Store, run: str) -> None:
    log, state = Journal(store, manifest.read(store).id), State(place=store.url)
    for _ in range(_TRIES):
        state.apply_all(log.read_new())
        try:
            log.append(_record(state, run))
            return
        except RecordTaken:
            continue
    raise CheckpointUnusable(f"{store.url}: other runs keep committing; stop them first")


def pruned(url: str) -> Fenced:
    """The error for a run whose checkpoint is being removed."""
    return Fenced(
        f"the checkpoint {url} was pruned while this run was starting",
        remedy="Run the same command again; it starts from scratch",
    )
