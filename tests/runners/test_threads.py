"""Threads that handle batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.runners import handle


def test_a_fault_of_ours_ends_the_run_instead_of_a_thread_that_is_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("of ours")

    monkeypatch.setattr(handle, "calls", broken)
    with pytest.raises(RuntimeError, match="of ours"):
        resumable_task(lambda rows: rows, name="job", key="id").run([{"id": 1}], checkpoint=place)
