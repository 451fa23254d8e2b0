"""A published dataset survives a power loss: what `publish` flushes, and when."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.base import faults
from resumable_tasks.results import swap


class Disk:
    """What has been flushed: of each file its size then, of each folder its entries then."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[int, int] = {}
        self.folders: dict[int, set[tuple[str, int]]] = {}
        fsync = os.fsync

        def flush(handle: int) -> None:
            fsync(handle)
            path = Path(os.readlink(f"/proc/self/fd/{handle}"))
            there = os.fstat(handle)
            if path.is_dir():
                self.folders[there.st_ino] = entries(path)
            else:
                self.files[there.st_ino] = there.st_size

        monkeypatch.setattr(os, "fsync", flush)

    def has(self, folder: Path) -> bool:
        """True if all that is in this folder is on the disk as it is now."""
        files = [path.stat() for path in folder.iterdir()]
        return self.folders.get(folder.stat().st_ino) == entries(folder) and all(
            self.files.get(there.st_ino) == there.st_size for there in files
        )

    def has_entry(self, path: Path) -> bool:
        """True if the folder of this path has it on the disk, and what it stands for."""
        known = self.folders.get(path.parent.stat().st_ino, set())
        return (path.name, path.stat().st_ino) in known


def entries(folder: Path) -> set[tuple[str, int]]:
    return {(path.name, path.lstat().st_ino) for path in folder.iterdir()}


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    yield Disk(monkeypatch)
    faults.arm(None)


@pytest.fixture
def result(place: Path) -> Any:
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=50)
    return job.run([{"id": i, "text": f"{i}" * 50} for i in range(300)], checkpoint=place)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("sizes", [(None, None), (3_000, 3_000), (None, 3_000)])
def test_all_is_flushed_before_it_is_in_its_place_and_its_place_before_it_is_told(
    sizes: tuple[int | None, int | None],
    exchange: bool,
    result: Any,
    disk: Disk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not exchange:
        monkeypatch.setattr(swap, "_swap", lambda a, b: False)
    target = tmp_path / "out" / "deep" / "labels"
    staged = []

    def look(name: str) -> None:
        if name == "publish.staged":
            (stage,) = [path for path in target.parent.iterdir() if path.name.startswith(".")]
            staged.append(disk.has(stage))

    faults.arm(look)
    for size in sizes:
        result.publish(target, **({} if size is None else {"target_bytes": size}))
        assert staged.pop() is True
        for path in (target, *target.parents[:2]):
            assert disk.has_entry(path), path
        assert disk.has(target)
