"""What a run flushes before it believes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.store.local import LocalStore


def test_both_folders_are_flushed_before_a_record_is_believed(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that died may have left names that only memory knows: of records, and of shards."""
    job = resumable_task(lambda rows: rows, name="job", key="id")
    job.run([{"id": 1}], checkpoint=place)
    seen: list[str] = []
    sync, read = LocalStore.sync, LocalStore.read_within

    def flushed(self: LocalStore, folder: str) -> None:
        sync(self, folder)
        seen.append(f"flush {folder}")

    def believed(self: LocalStore, name: str, limit: int | None) -> bytes:
        if name.startswith("journal/"):
            seen.append("read")
        return read(self, name, limit)

    monkeypatch.setattr(LocalStore, "sync", flushed)
    monkeypatch.setattr(LocalStore, "read_within", believed)
    job.run([{"id": 1}], checkpoint=place)
    assert set(seen[: seen.index("read")]) == {"flush shards", "flush journal"}
