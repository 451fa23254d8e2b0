"""The manifest of a checkpoint whose ``job.json`` is lost or another's, from its first record."""

from __future__ import annotations

from resumable_tasks.checkpoint.directory import manifest, records, segments
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged


def recovered_manifest(store: Store) -> Manifest | None:
    """The manifest as record 0 has it; None if that is damaged too, or too old to have it.

    The record names the manifest's id as its ``previous``, by which the journal's chain begins.
    """
    name = records.record_name(0)
    try:
        data = records.unconverted(records.read(store, name))
        first = records.decode(data, name, store.url)
    except (FileNotFoundError, CheckpointDamaged):
        return None
    told = first.info.get("manifest")
    if not isinstance(told, dict):
        return None
    try:
        return manifest.parsed({**told, "id": first.previous})
    except (KeyError, TypeError, ValueError):
        return None


def is_of_another(store: Store, found: Manifest) -> bool:
    """True for a manifest that was put here from elsewhere: two records belong to each other.

    The first one names another id, and tells what that manifest was.
    """
    try:
        first, second = segments.read_some(store, [0, 1])
    except CheckpointDamaged:
        return False
    told = recovered_manifest(store)
    others = told is not None and told.id == first.previous != found.id
    return others and second.previous == first.checksum
