"""Moves a checkpoint aside: for a reset, or for a job that starts over."""

from __future__ import annotations

import contextlib

from resumable_tasks.checkpoint.directory import holder, manifest
from resumable_tasks.checkpoint.directory.journal import Journal, RecordTaken
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, CheckpointMismatch, CheckpointUnusable

_TRIES = 100


def archive(store: Store, run: str) -> str:
    """Move the whole place aside and return its new url.

    Before that a record of kind ``archive`` ends the epoch of every run that may still be alive:
    one that sleeps, and wakes up in the archived checkpoint, commits nothing there.
    """
    # A checkpoint that cannot be read is archived all the same. A run that is alive in it finds at
    # its next commit that it was moved.
    with contextlib.suppress(FileNotFoundError, CheckpointDamaged, CheckpointMismatch):
        _fence(store, run)
    if holder.read(store).get("run") == run:
        store.delete(holder.NAME)  # where there are no locks, nobody would see that it has ended
    return disk.archive(store)


def _fence(store: Store, run: str) -> None:
    log, state = Journal(store, manifest.read(store).id), State(place=store.url)
    info = holder.me(run)
    info.pop("run")
    for _ in range(_TRIES):
        state.apply_all(log.read_new())
        try:
            log.append(Commit("archive", state.epoch + 1, run, info=info))
            return
        except RecordTaken:
            continue
    raise CheckpointUnusable(f"{store.url}: other runs keep committing; stop them first")
