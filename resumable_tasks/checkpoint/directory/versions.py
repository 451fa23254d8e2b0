"""Checks that a checkpoint belongs to this job and to this version of it."""

from __future__ import annotations

from typing import Any

from resumable_tasks.base.text import command
from resumable_tasks.checkpoint.directory import handlers, manifest
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.outstanding import named
from resumable_tasks.checkpoint.directory.recover import changed
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointMismatch


def described_fingerprint(job: Job) -> Any:
    """Describe the job's fingerprints for a claim; None if the job takes none."""
    fingerprinter = job.planning.fingerprinter
    return None if fingerprinter is None else fingerprinter.describe()


def is_for_another(store: Store, found: Manifest, wanted: Manifest, state: State, job: Job) -> bool:
    """True if the job starts over in a new checkpoint.

    It does if it asks to at another version, and if this checkpoint differs but holds nothing: that
    must not refuse a job whose key or results were wrong in the run before. Raises
    `CheckpointMismatch` if the checkpoint is another job's, or of another version and the user has
    not decided what to do then. Raises `CheckpointDamaged` if it differs only because its manifest
    was changed.
    """
    try:
        manifest.check(store, found.with_moved_key(wanted) if job.same_key else found, wanted)
    except CheckpointMismatch as error:
        if (wrong := changed(store, manifest.read(store))) is not None:
            raise manifest.damaged(store, wrong) from error
        if state.holds_nothing and "job" not in found.differences(wanted):
            return True
        raise
    restarts = _restarts(store, found, state, job)
    if not restarts and state.done:
        handlers.check(store.url, state.handlers, job)
    return restarts


def _restarts(store: Store, found: Manifest, state: State, job: Job) -> bool:
    version, described = state.version or found.version, described_fingerprint(job)
    before = state.fingerprint if described is not None else None
    if job.on_version_change == "restart":
        restarts = version not in ("", job.version) or before not in (None, described)
        if restarts and (lost := named(state.out)):
            raise CheckpointMismatch(
                f"{store.url}: {lost}. Starting over would lose these and pay for them again; "
                "nothing was changed",
                remedy='Run once with on_version_change="reuse", which collects them; or give them '
                f"up: {command('reset', store.url, '--lose-submissions')}",
            )
        return restarts
    if job.on_version_change != "reuse" and not state.holds_nothing:
        try:
            manifest.check_version(store, version, job.version)
            manifest.check_fingerprint(store, before, described)
        except CheckpointMismatch as error:
            if there := named(state.out):
                what = f'{error.what}\n  and {there}, which only "reuse" collects'
                raise CheckpointMismatch(what, safe=error.safe, remedy=error.remedy) from None
            raise
    return False
