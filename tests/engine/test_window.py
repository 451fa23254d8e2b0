"""How many batches are out at once: as many as keep handlers busy while commits take their time."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.engine import window as windows
from resumable_tasks.engine.window import OUT_SECONDS, Gathering, Window
from resumable_tasks.items.batch import Batch, ErrorKind
from resumable_tasks.runners.outcome import Done, Failed, Outcome, Times
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


def call_of(seconds: float) -> Done:
    return Done(Batch(0, [1], b"1", []), b"1", 1, times=Times(seconds=seconds))


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


def test_the_first_calls_which_load_what_they_need_are_no_measure_of_the_others() -> None:
    window = Window(ThreadRunner(4))
    for seconds in (0.5, 0.001, 0.001):
        window.widen([call_of(seconds)], 100, 0.001)
    assert window.batches == 32


def test_calls_that_were_held_up_once_are_no_measure_of_those_after_them() -> None:
    window = Window(ThreadRunner(4), 0.035)
    for seconds in (0.010, 0.010, 2.0):
        window.widen([call_of(seconds)], 100, 0.065)
    assert window.batches == 52
    for _ in range(2):  # and what goes on is no exception
        window.widen([call_of(2.0)], 100, 0.065)
    assert window.batches == ThreadRunner(4).window


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


def sized(*commits: tuple[int, int]) -> int:
    """The window once commits were made, each of so many cheap calls and so many bytes."""
    window = Window(ThreadRunner(4))
    for count, size in commits:
        window.widen([call_of(0.000_001)] * count, size, 0.001)
    return window.batches


def test_rows_that_become_larger_count_at_once_and_not_once_all_before_are_outweighed() -> None:
    small, large = (1_000, 100_000), (10, 10_000_000)
    assert sized(*[small] * 100) == windows.MOST_BATCHES_OUT
    assert sized(*[small] * 100, large) == 16
    assert sized(*[small] * 100, large, small) == windows.MOST_BATCHES_OUT


def test_rows_count_by_what_they_take_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    widest = []
    widen = Window.widen

    def noted(window: Window, *committed: Any) -> None:
        widen(window, *committed)
        widest.append(window.batches)

    monkeypatch.setattr(Window, "widen", noted)
    text = "x" * 1_000_000  # in a file it is next to nothing

    @resumable_task(key="id", batch_size=1, concurrency=4)
    def work(items: list[Any]) -> list[Any]:
        return [{"id": item["id"], "text": text} for item in items]

    assert work.run([{"id": n} for n in range(50)], checkpoint=tmp_path / "c").completed == 50
    assert max(widest) <= 16


def gathered(*outcomes: Outcome, most: int = 100) -> Gathering:
    gathering = Gathering(most)
    for outcome in outcomes:
        gathering.add(outcome)
    return gathering


def test_a_commit_gathers_cheap_calls_as_long_as_others_come() -> None:
    cheap = call_of(OUT_SECONDS / 100)
    gathering = gathered(cheap, cheap)
    assert gathering.goes_on()
    assert not gathering.goes_on()  # nothing came meanwhile
    gathering = gathered(cheap, cheap)
    looks, until = 0, time.monotonic() + 5
    while gathering.goes_on():
        assert time.monotonic() < until
        gathering.add(cheap)
        looks += 1
    assert 1 <= looks <= windows._GATHER_SECONDS / windows._STEP_SECONDS + 1
    assert not gathered(cheap, cheap, cheap, most=3).goes_on()


def test_nothing_that_took_time_waits_for_others() -> None:
    cheap, slow = call_of(0.0), call_of(OUT_SECONDS)
    failed = Failed(cheap.batch, ErrorKind("ValueError"), ())
    assert gathered(cheap, cheap).goes_on()
    assert not gathered(cheap).goes_on()
    assert not gathered(cheap, slow).goes_on()
    assert not gathered(slow, cheap, cheap).goes_on()
    assert not gathered(cheap, failed, cheap).goes_on()
