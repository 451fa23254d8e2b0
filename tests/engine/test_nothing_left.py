"""Runs that have nothing left to do: asked to stop, out of time, or with items that raise."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Budget, BudgetUsedUp, Interrupted, resumable_task
from resumable_tasks.engine import engine
from resumable_tasks.engine.events import Event


@resumable_task(name="done", key="id", batch_size=5)
def work(rows: list[Any]) -> list[Any]:
    return rows


def items(count: int = 20) -> list[dict[str, int]]:
    return [{"id": n} for n in range(count)]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    work.run(items(), checkpoint=tmp_path / "c", progress=False)
    return tmp_path / "c"


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[engine.Engine]:
    """The engines that have begun to read their items."""
    found: list[engine.Engine] = []
    run = engine.Engine.run

    def noted(self: engine.Engine, items: Any) -> engine.Ending:
        found.append(self)
        return run(self, items)

    monkeypatch.setattr(engine.Engine, "run", noted)
    return found


def test_a_request_to_stop_while_items_are_skipped_ends_the_run(
    place: Path, engines: list[engine.Engine], caplog: pytest.LogCaptureFixture
) -> None:
    events: list[Event] = []

    def source() -> Iterator[dict[str, int]]:
        for item in items(40):
            if item["id"] == 12:
                engines[0].request_stop("a test")
            yield item

    with pytest.raises(Interrupted, match="a test") as caught:
        work.run(source(), checkpoint=place, progress=False, listeners=[events.append])
    assert caught.value.result.completed == 0
    assert [type(event).__name__ for event in events] == ["RunStarted", "Stopping", "RunFinished"]
    assert "a test: finishing running batches" in caplog.text
    assert work.run(items(40), checkpoint=place, progress=False).completed == 20


def test_a_budget_of_seconds_ends_a_run_that_still_skips(place: Path) -> None:
    def source() -> Iterator[dict[str, int]]:
        for item in items():
            yield item
            time.sleep(0.02)
        yield {"id": 20}

    with pytest.raises(BudgetUsedUp, match=r"seconds=0\.1"):
        work.run(source(), checkpoint=place, progress=False, budget=Budget(seconds=0.1))


def test_items_that_raise_before_the_first_batch_raise_what_they_raise(place: Path) -> None:
    def source() -> Iterator[dict[str, int]]:
        yield from items()
        raise OSError("the source is gone")

    with pytest.raises(OSError, match="the source is gone"):
        work.run(source(), checkpoint=place, progress=False)
    assert work.run(items(), checkpoint=place, progress=False).skipped == 20


def test_nothing_is_pending_after_a_run_without_batches(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = work.run(items(), checkpoint=place, progress=False)
    assert (result.total, result.skipped, result.completed, result.retried) == (20, 20, 0, 0)
    assert result.remaining is None
    assert result.table().num_rows == 20
    assert "20 of 20 items done (20 before, 0 now)" in caplog.text
