"""Recovers the manifest from the first record, if ``job.json`` is lost or was changed."""

from __future__ import annotations

from resumable_tasks.checkpoint.directory import manifest, records, segments
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged


def recovered_manifest(store: Store) -> Manifest | None:
    """The manifest from record 0; None if that is damaged too, or too old to contain it.

    The id comes from the record's ``previous``, where the journal's chain begins.
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


def changed(store: Store, found: Manifest) -> str | None:
    """The defect of a readable manifest that was changed since its creation; None if it was not.

    Compares it with the first record, unless the later records do not continue that one.
    """
    told = recovered_manifest(store)
    if told is None or told == found:
        return None
    if told.id == found.id:
        return "it was changed since the first record was written"
    try:
        first, second = segments.read_some(store, [0, 1])
    except CheckpointDamaged:
        return None
    return "it belongs to another checkpoint" if second.previous == first.checksum else None
