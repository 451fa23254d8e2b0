"""How many batches are out at once: as many as keep handlers busy while commits take their time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from resumable_tasks import resumable_task
from resumable_tasks.engine import window as windows
from resumable_tasks.engine.window import Window
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.outcome import Done, Times
from resumable_tasks.runners.threads import ThreadRunner
from tests.checkpoint.store.plain import at


def after(commits: list[float], *, batch_seconds: float, opened: float | None = None) -> int:
    """The window once batches of this time were committed in these times, one each."""
    window = Window(ThreadRunner(4), opened)
    batch = Batch(0, [1], b"1", [{"id": 1}])
    for seconds in commits:
        times = Times(began=0.0, ended=batch_seconds, seconds=batch_seconds)
        window.widen([Done(batch, done=b"1", completed=1, times=times)], 100, seconds)
    return window.batches


def test_it_follows_the_time_of_a_commit() -> None:
    few = ThreadRunner(4).window
    far = [0.065, 0.065]
    assert after(far, batch_seconds=0.010, opened=0.035) == 52
    assert after(far, batch_seconds=10.0, opened=0.035) == few
    # The first loads Arrow, and one that had to wait for long is no measure.
    assert after([0.165], batch_seconds=0.010, opened=0.030) == 48
    assert after([600.0, *far], batch_seconds=0.010, opened=0.035) == 52
    assert after([600.0], batch_seconds=0.010, opened=600.0) == windows.MOST_BATCHES_OUT
    # A busy disk is no reason to have more redone after a crash.
    assert after(far, batch_seconds=0.010) == few
    # And on a disk nothing is less than it was.
    assert after([0.001], batch_seconds=0.001) == 32


def test_where_a_request_takes_30_ms_few_commits_take_all(tmp_path: Path) -> None:
    @resumable_task(key="id", batch_size=1, concurrency=4)
    def work(items: list[Any]) -> list[Any]:
        time.sleep(0.01)
        return items

    place = at(tmp_path / "checkpoint")
    place.plain.latency = 0.03
    assert work.run([{"id": n} for n in range(400)], checkpoint=place).completed == 400
    # Handlers that wait for commits would need one for every eight batches, or more.
    assert place.plain.counted()["put shards"] <= 30
