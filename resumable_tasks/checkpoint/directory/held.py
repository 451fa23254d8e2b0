"""Holds a checkpoint for a command that changes it, while no run is active."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import layout
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.shards import FOLDER as SHARDS
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store


@frozen
class Held:
    """The manifest and state of a held checkpoint, and its journal, to append to as ``run``."""

    manifest: Manifest
    state: State
    journal: Journal
    run: str


@contextmanager
def held(store: Store) -> Iterator[Held]:
    """Hold a checkpoint, with its whole journal read, until the end of the block.

    Raises:
        CheckpointHeld: a run is active.
        CheckpointDamaged: the journal is damaged.
        UsageError: there is no checkpoint.
    """
    made = read_manifest(store)
    disk.prepare(store, (JOURNAL, SHARDS))
    hold = Holder(store, run := token(6))
    try:
        hold.take(takeover=False)
        disk.sync(store, SHARDS)
        disk.sync(store, JOURNAL)
        journal, state = Journal(store, made.id), State(place=store.url)
        state.apply_all(journal.read_new())
        layout.check(store, state.records)
        supersede.check(store, made, state)
        yield Held(made, state, journal, run)
    finally:
        hold.release()
        disk.let_go(store)
