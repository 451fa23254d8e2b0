"""Failed items are released: their attempts are forgotten, and the next run tries them again."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from resumable_tasks.checkpoint.directory import holder
from resumable_tasks.checkpoint.directory.driver import RepairHint, read_manifest
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.runners.outcome import Failure


def release(store: Store, chosen: Callable[[Failure], bool]) -> list[Failure]:
    """Forget the attempts of the chosen failures, durable on return; the failures as they were.

    What they failed with is kept. The record that says so fences every run that may still be
    alive. Raises `CheckpointHeld` while a run is at work, `UsageError` if there is no checkpoint.
    """
    found = read_manifest(store)
    hold = Holder(store, run := secrets.token_hex(6))
    hold.take(takeover=False)
    try:
        journal, state = Journal(store, found.id), State()
        with RepairHint(store):
            state.apply_all(journal.read_new())
        released = [failure for failure in state.failures.values() if chosen(failure)]
        if released:
            info = holder.me(run)
            info.pop("run")
            forgotten = tuple(replace(failure, attempts=0) for failure in released)
            journal.append(Commit("release", state.epoch + 1, run, failures=forgotten, info=info))
        return released
    finally:
        hold.release()
