"""Jobs of the service in a folder, and checkpoints with submissions out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import ResumableTask, Waiting, resumable_task
from tests.submitted.service import FileService, items

COUNT, SIZE = 70, 30
"""Three submissions: of 30, 30 and 10 items."""


def job(service: FileService, **options: Any) -> ResumableTask[Any]:
    return resumable_task(service, name="svc", **{"key": "id", "batch_size": SIZE, **options})


def left_out(folder: Path, count: int = COUNT, **options: Any) -> FileService:
    """A service that has the submissions of the checkpoint ``folder / "c"``, and goes on so."""
    service = FileService(folder / "home", takes=None)
    with pytest.raises(Waiting):
        job(service, **options).run(items(count), checkpoint=folder / "c", wait=False)
    return service


def assert_all_paid_once(folder: Path, count: int = COUNT, **options: Any) -> None:
    """The rest is done, each item's row is there once, and each was paid once."""
    service = FileService(folder / "home")
    result = job(service, **options).run(items(count), checkpoint=folder / "c")
    assert sorted(result.table().column("id").to_pylist()) == list(range(count))
    assert service.paid == Counter(range(count))
