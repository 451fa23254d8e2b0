"""Rates, adaptive concurrency and timeouts, with real calls at real times."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Adaptive,
    Budget,
    Failing,
    JobFailed,
    Retry,
    UsageError,
    current_batch,
    resumable_task,
)
from resumable_tasks.runners.limits import AdditiveIncrease, Entry, Limits
from tests.engine.service import Answer, Service

ITEMS = [{"id": i} for i in range(200)]
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


# Windows count in milliseconds.
A_SECOND = 0.998


def most_in(seconds: float, times: list[float], weights: list[int]) -> int:
    """The most that any window of this length holds."""
    events = sorted(zip(times, weights, strict=True))
    return max(
        sum(weight for at, weight in events if start <= at < start + seconds) for start, _ in events
    )


def none_came_early(times: list[float], let_through: list[float]) -> bool:
    """True if each call came after one that was let through, and none without."""
    return all(came >= let for came, let in zip(times, let_through, strict=True))


def noting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with open(os.environ["CALLS"], "a") as file:
        file.write(f"{time.monotonic()} {len(rows)} {current_batch().attempt}\n")
    return rows


async def anoting(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    await asyncio.sleep(0)
    return noting(rows)


_put = Limits._put


def noting_put(limits: Limits, call: Entry, now: float) -> float:
    """Note when a call is let through: on a busy machine its handler begins any time later."""
    wait = _put(limits, call, now)
    if wait == 0:
        with open(os.environ["LET_THROUGH"], "a") as file:
            file.write(f"{now}\n")
    return wait


if "LET_THROUGH" in os.environ:  # in a worker process, which imports its handler from here
    Limits._put = noting_put  # type: ignore[method-assign]


@dataclass
class Calls:
    """The calls of `noting`, as its handler has noted them and as they were let through."""

    place: Path

    @property
    def times(self) -> list[float]:
        return sorted(float(line.split()[0]) for line in self._lines("calls"))

    @property
    def sizes(self) -> list[int]:
        return [int(line.split()[1]) for line in self._lines("calls")]

    @property
    def let_through(self) -> list[float]:
        return sorted(map(float, self._lines("let through")))

    def _lines(self, name: str) -> list[str]:
        return (self.place / name).read_text().splitlines()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("LET_THROUGH", str(tmp_path / "let through"))
    monkeypatch.setattr(Limits, "_put", noting_put)
    return Calls(tmp_path)


@pytest.mark.parametrize(
    ("handler", "runner"),
    [(noting, "local"), (anoting, "local"), (noting, "processes")],
    ids=["threads", "asyncio", "processes"],
)
@pytest.mark.parametrize("rate", ["10/second", "50 items/second"])
@pytest.mark.sample
def test_no_window_holds_more_than_the_rate(
    handler: Any, runner: Any, rate: str, place: Path, calls: Calls
) -> None:
    task = resumable_task(
        handler,
        name="job",
        key="id",
        batch_size=5,
        runner=runner,
        concurrency=4 if runner == "local" else 2,
        rate_limit=rate,
    )
    assert task.run(ITEMS[:150], checkpoint=place).completed == 150
    assert calls.sizes == [5] * 30
    assert most_in(A_SECOND, calls.let_through, [1] * 30) <= 10
    assert none_came_early(calls.times, calls.let_through)


def test_two_rates_hold_both(place: Path, calls: Calls) -> None:
    task = resumable_task(
        noting, name="job", key="id", batch_size=5, rate_limit=["20/second", "40 items/second"]
    )
    task.run(ITEMS[:120], checkpoint=place)
    assert most_in(A_SECOND, calls.let_through, calls.sizes) <= 40
    assert none_came_early(calls.times, calls.let_through)


def test_a_retry_counts_as_a_call(place: Path, calls: Calls) -> None:
    times: list[float] = []

    @resumable_task(key="id", batch_size=1, retries=Retry(5, delay=0.0), rate_limit="5/second")
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        times.append(time.monotonic())
        if current_batch().attempt < 4:
            raise ConnectionError
        return rows

    assert job.run(ITEMS[:3], checkpoint=place).completed == 3
    assert len(times) == 12
    assert most_in(A_SECOND, calls.let_through, [1] * 12) <= 5
    assert none_came_early(sorted(times), calls.let_through)


def test_a_rate_limit_can_be_interrupted(place: Path) -> None:
    from resumable_tasks import Interrupted

    task = resumable_task(lambda rows: rows, name="job", key="id", rate_limit="1/hour")
    began = time.monotonic()
    with pytest.raises(Interrupted):
        task.run(ITEMS, checkpoint=place, budget=Budget(seconds=0.5))
    assert time.monotonic() - began < 60  # and not an hour


def test_a_rate_of_prefects_needs_a_flow_run(place: Path) -> None:
    task = resumable_task(lambda rows: rows, name="job", key="id", rate_limit="prefect:openai")
    with pytest.raises(UsageError, match="no flow run is active"):
        task.run(ITEMS, checkpoint=place)


# --- adaptive concurrency


class Throttling:
    """Answers at most so many at once; more are told that there are too many."""

    def __init__(self, capacity: int) -> None:
        self.service = Service()
        self.capacity = capacity
        self.running = self.most = self.refused = 0
        self.lock = threading.Lock()

    async def label(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
            refused = self.running > self.capacity
            self.refused += refused
        try:
            await asyncio.sleep(0.02)
            if refused:
                raise TooMany
            return rows
        finally:
            with self.lock:
                self.running -= 1


class TooMany(Exception):
    status_code = 429


@pytest.mark.timing
def test_adaptive_concurrency_finds_what_the_service_bears(place: Path) -> None:
    service = Throttling(capacity=8)
    task = resumable_task(
        service.label,
        name="job",
        key="id",
        batch_size=1,
        concurrency="adaptive",
        retries=Retry(delay=0.01),
    )
    result = task.run([{"id": i} for i in range(1_500)], checkpoint=place)
    assert (result.completed, result.failed) == (1_500, 0)
    assert 8 <= service.most <= 18
    # It would be more than half of the calls if the limit did not fall.
    assert service.refused < 300


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
@pytest.mark.timing
def test_adaptive_concurrency_stays_in_bounds(kind: str, place: Path) -> None:
    running = most = 0
    lock = threading.Lock()

    def begin() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)

    def end() -> None:
        nonlocal running
        with lock:
            running -= 1

    def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        begin()
        time.sleep(0.01)
        end()
        return rows

    async def coroutine(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        begin()
        await asyncio.sleep(0.01)
        end()
        return rows

    task: Any = resumable_task(
        plain if kind == "threads" else coroutine,
        name="job",
        key="id",
        batch_size=1,
        concurrency=Adaptive(2, 5),
    )
    assert task.run(ITEMS, checkpoint=place).completed == 200
    assert most == 5


def test_the_limit_itself_stays_in_bounds() -> None:
    control = AdditiveIncrease(Adaptive(2, 5))
    for _ in range(100):
        control.went_well(time.monotonic(), running=5)
    assert control.limit == 5
    for _ in range(10):
        control.was_throttled(time.monotonic(), TooMany())
    assert control.limit == 2


def test_adaptive_concurrency_is_for_one_process(place: Path) -> None:
    task = resumable_task(noting, name="job", key="id", concurrency="adaptive", runner="processes")
    with pytest.raises(UsageError, match="adaptive"):
        task.run(ITEMS, checkpoint=place)
    with pytest.raises(UsageError, match="lowest"):
        Adaptive(3, 2)


# --- timeouts


def slow_at_first(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    noting(rows)
    if rows[0]["id"] == 20 and current_batch().attempt == 1:
        time.sleep(60)
    return [{"id": row["id"], "pid": os.getpid()} for row in rows]


@pytest.mark.timing
def test_a_process_that_is_overdue_is_killed_and_replaced(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    task = resumable_task(
        slow_at_first,
        name="job",
        key="id",
        batch_size=10,
        runner="processes",
        concurrency=2,
        timeout=3.0,
        retries=Retry(1, delay=0.0),
    )
    result = task.run(ITEMS, checkpoint=place)
    assert (result.completed, result.failed) == (200, 0)
    assert len(set(result.table()["pid"].to_pylist())) == 3
    lines = (tmp_path / "calls").read_text().splitlines()
    assert len(lines) == 21
    assert [line.split()[2] for line in lines].count("2") == 1


class Slow:
    """A row that takes its time to be read."""

    def __init__(self, number: int) -> None:
        self.number = number

    def model_dump(self) -> dict[str, Any]:
        time.sleep(2.5)
        return {"id": self.number}


def quick_with_slow_rows(rows: list[dict[str, Any]]) -> list[Slow]:
    noting(rows)
    return [Slow(row["id"]) for row in rows]


def test_what_a_call_has_returned_in_time_is_kept_however_long_it_takes_to_be_stored(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    task = resumable_task(
        quick_with_slow_rows,
        name="job",
        key="id",
        batch_size=1,
        runner="processes",
        concurrency=1,
        timeout=2.0,
    )
    result = task.run(ITEMS[:1], checkpoint=place)
    assert result.completed == 1
    assert len((tmp_path / "calls").read_text().splitlines()) == 1


def always_slow(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if any(row["id"] == 23 for row in rows):
        time.sleep(60)
    return rows


@pytest.mark.timing
def test_the_item_that_takes_too_long_is_found(place: Path) -> None:
    task = resumable_task(
        always_slow,
        name="job",
        key="id",
        batch_size=4,
        runner="processes",
        concurrency=2,
        timeout=1.0,
    )
    with pytest.raises(JobFailed, match="took longer than timeout=1 s") as error:
        task.run(ITEMS[:40], checkpoint=place)
    assert [failure.key for failure in error.value.result.failures] == [23]
    assert error.value.result.completed == 39


@pytest.mark.timing
def test_a_coroutine_that_is_overdue_is_cancelled(place: Path) -> None:
    ended: list[str] = []

    @resumable_task(key="id", batch_size=10, timeout=0.2, failing=Failing(isolate=False))
    async def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if rows[0]["id"] == 20:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                raise
        return rows

    with pytest.raises(JobFailed, match="TimeoutError"):
        job.run(ITEMS, checkpoint=place)
    assert ended == ["cancelled"]


@pytest.mark.timing
def test_a_thread_that_is_overdue_is_said_while_it_runs_and_counts(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    said_in_time: list[bool] = []

    @resumable_task(key="id", batch_size=100, timeout=0.1)
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if rows[0]["id"] == 0:
            time.sleep(0.4)
            said_in_time.append("batch 0 is overdue" in caplog.text)
        return rows

    assert job.run(ITEMS, checkpoint=place).completed == 200
    assert said_in_time == [True]


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    found.start()
    yield found
    found.stop()


def test_adaptive_concurrency_with_a_service_that_says_when(service: Service, place: Path) -> None:
    def answer(number: int, ids: list[int]) -> Answer:
        return (429, {"Retry-After": "0.3"}) if number % 7 == 6 else (200, {})

    service.answer = answer
    service.seconds = 0.01
    task = resumable_task(
        service.label, name="job", key="id", batch_size=2, concurrency=Adaptive(1, 8)
    )
    assert task.run(ITEMS[:80], checkpoint=place).completed == 80
    assert set(service.paid().values()) == {1}
