"""A service that is down, that refuses, that asks to wait: no item's attempts are used up by it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Budget,
    Failing,
    Interrupted,
    ItemFailure,
    JobFailed,
    Retry,
    resumable_task,
)
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.engine import breaker
from resumable_tasks.runners.limits import Entry, Limits
from tests.engine.service import Service

# An ``HTTPError`` of urllib holds its socket until it is collected.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ITEMS = [{"id": i} for i in range(1_000)]


@pytest.fixture
def service() -> Iterator[Service]:
    found = Service()
    found.start()
    yield found
    found.stop()


def state(place: Path) -> Any:
    return read_checkpoint(open_store(place))[1]


@pytest.mark.parametrize(("batch_size", "retries"), [(20, 0)])
def test_a_service_that_is_down_for_a_while_uses_no_attempt_up(
    service: Service, place: Path, retries: int, batch_size: int
) -> None:
    service.seconds = 0.02 if batch_size > 1 else 0.001
    task = resumable_task(
        service.label, name="job", key="id", batch_size=batch_size, retries=retries
    )
    down = service.down(after=0.1, seconds=3)
    result = task.run(ITEMS, checkpoint=place)
    down.join()
    assert (result.completed, result.failed) == (1_000, 0)
    assert set(service.paid()) == set(range(1_000))
    # What was under way when it went down may have been answered into the void.
    assert max(service.paid().values()) <= 2
    assert result.table().num_rows == 1_000
    assert state(place).failures == {}


def test_a_service_that_stays_down_ends_the_run_as_interrupted(
    service: Service, place: Path
) -> None:
    def goes_down(number: int, ids: list[int]) -> tuple[int, dict[str, str]]:
        if number == 25:  # most of those before have been answered, and half are still to come
            service.stop()
        return 200, {}

    service.answer = goes_down
    task = resumable_task(
        service.label,
        name="job",
        key="id",
        batch_size=20,
        concurrency=8,
        failing=Failing(give_up_after=2.0),
        grace_seconds=1.0,
    )
    with pytest.raises(Interrupted, match=r"without a success .*URLError") as error:
        task.run(ITEMS, checkpoint=place)
    done = state(place)
    assert 0 < len(done.done) < 1_000
    assert done.failures == {}
    assert error.value.result.failed == 0
    assert error.value.result.remaining.items == 1_000 - len(done.done)
    service.start()
    assert task.run(ITEMS, checkpoint=place).completed == 1_000 - len(done.done)


@pytest.mark.timing
def test_a_key_that_is_revoked_burns_no_attempts(service: Service, place: Path) -> None:
    service.answer = lambda n, ids: (401, {}) if n >= 10 else (200, {})
    task = resumable_task(
        service.label, name="job", key="id", batch_size=20, failing=Failing(give_up_after=2.0)
    )
    with pytest.raises(Interrupted, match="HTTP Error 401"):
        task.run(ITEMS, checkpoint=place)
    assert len(state(place).done) == 200
    assert state(place).failures == {}
    # Those on their way, and a probe now and then.
    assert len(service.calls) < 10 + 5 + 12 + 5


def test_a_handler_that_is_wrong_is_found_out_early(place: Path) -> None:
    calls: list[int] = []

    @resumable_task(key="id", batch_size=1, concurrency=2)
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append(1)
        return [{"id": row["id"], "label": row["nonsense"]} for row in rows]

    with pytest.raises(
        JobFailed, match="ended before all items were handled: nothing has succeeded"
    ):
        job.run(ITEMS, checkpoint=place)
    assert len(calls) < 30
    # Nobody is to wait for what no waiting fixes, and the fixed handler does all.
    fixed = job.fn, resumable_task(lambda rows: rows, name="job", key="id")
    assert fixed[1].run(ITEMS, checkpoint=place).completed == 1_000


def test_pause_after_none_handles_everything_whatever_fails(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[int] = []

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append(len(rows))
        raise ConnectionError("never there")

    task = resumable_task(
        handler, name="job", key="id", batch_size=4, failing=Failing(pause_after=None)
    )
    with pytest.raises(JobFailed) as error:
        task.run(ITEMS[:80], checkpoint=place)
    assert error.value.result.failed == 80
    assert sum(calls) == 80 * 3, "a batch of 4, its halves, and its items"
    alone = task.with_options(failing=Failing(isolate=False, pause_after=None))
    calls.clear()
    with pytest.raises(JobFailed):
        alone.run(ITEMS[:80], checkpoint=place)
    assert calls == [4] * 20
    assert "next try in" not in caplog.text


def test_ctrl_c_ends_a_pause(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 120.0)
    monkeypatch.setattr(breaker, "LONGEST_PAUSE", 120.0)

    @resumable_task(key="id", batch_size=10)
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise ConnectionError

    began = time.monotonic()

    class Stop:
        def __call__(self, event: Any) -> None:
            if type(event).__name__ == "RunStarted":
                threading.Timer(0.5, lambda: signal_to_self()).start()

    with pytest.raises(Interrupted, match="SIGINT"):
        job.run(ITEMS, checkpoint=place, listeners=[Stop()])
    assert time.monotonic() - began < 60
    assert state(place).failures == {}


def signal_to_self() -> None:
    import os
    import signal

    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_a_third_of_calls_is_told_to_wait_and_no_item_fails(
    service: Service, place: Path, form: str
) -> None:
    """Told to wait is not failed: no retries are needed, and no call comes too early."""

    def answer(number: int, ids: list[int]) -> tuple[int, dict[str, str]]:
        if number % 3:
            return 200, {}
        # A date has whole seconds.
        told = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)
        return 429, {"Retry-After": told}

    service.answer = answer
    task = resumable_task(service.label, name="job", key="id", batch_size=100, concurrency=4)
    result = task.run(ITEMS, checkpoint=place)
    assert (result.completed, result.failed) == (1_000, 0)
    least = 1.0
    told: dict[int, float] = {}
    for at, ids, status in service.calls:
        assert at >= told.pop(ids[0], 0.0), "a call came earlier than it was told"
        if status == 429:
            told[ids[0]] = at + least
    assert set(service.paid().values()) == {1}


def test_with_a_rate_limit_one_that_is_told_to_wait_holds_all_back(
    service: Service, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put, let_through, held = Limits._put, [], set()

    def noting(limits: Limits, call: Entry, now: float) -> float:
        wait = put(limits, call, now)
        held.add(limits._held_until)
        if wait == 0:
            let_through.append(now)
        return wait

    monkeypatch.setattr(Limits, "_put", noting)
    service.answer = lambda n, ids: (429, {"Retry-After": "1"}) if n == 3 else (200, {})
    task = resumable_task(
        service.label, name="job", key="id", batch_size=5, concurrency=4, rate_limit="1000/second"
    )
    assert task.run(ITEMS, checkpoint=place).completed == 1_000
    never, until = sorted(held)
    assert never == 0.0
    # What came to the service later was on its way.
    assert not [at for at in let_through if until - 1 < at < until]
    assert len([at for at in let_through if at >= until]) > 100


@pytest.mark.parametrize("told", ["0.4", "3600"])
def test_who_is_told_to_wait_too_long_ends_the_run_and_calls_no_more(
    service: Service, place: Path, told: str
) -> None:
    service.answer = lambda n, ids: (429, {"Retry-After": told}) if n > 5 else (200, {})
    task = resumable_task(
        service.label,
        name="job",
        key="id",
        batch_size=10,
        failing=Failing(give_up_after=1.0),
        concurrency=2,
    )
    with pytest.raises(Interrupted, match=r"told to wait.*HTTP Error 429") as error:
        task.run(ITEMS, checkpoint=place)
    assert error.value.result.completed == 60
    assert state(place).failures == {}
    assert len(service.calls) <= (6 + 2 if told == "3600" else 6 + 2 * 4)


@pytest.mark.parametrize("options", [{"retries": Retry(1, delay=60)}, {"rate_limit": "1/hour"}])
def test_a_process_that_waits_is_not_waited_for(place: Path, options: dict[str, Any]) -> None:
    """Neither for the end of a pause, nor for what a rate allows; and it calls no more."""
    task = resumable_task(
        refusing, name="job", key="id", runner="processes", concurrency=2, **options
    )
    began = time.monotonic()
    with pytest.raises(Interrupted):
        task.run(ITEMS, checkpoint=place, budget=Budget(seconds=3.0))
    assert time.monotonic() - began < 50  # and not 60, or an hour
    assert state(place).failures == {}


def refusing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    raise ConnectionError("refused")


def test_successes_that_were_on_their_way_say_nothing_of_what_came_after(place: Path) -> None:
    """A slow call that ends well after the service went down must not make items the culprits."""
    down = threading.Event()

    @resumable_task(
        key="id", batch_size=1, concurrency=4, failing=Failing(give_up_after=1.0, pause_after=100)
    )
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if rows[0]["id"] == 0:
            down.set()
            time.sleep(0.5)
            return rows
        down.wait()
        time.sleep(0.03)
        raise ConnectionError("down")

    with pytest.raises(Interrupted):
        job.run(ITEMS, checkpoint=place)
    assert len(state(place).done) == 1
    assert state(place).failures == {}


def test_an_answer_without_what_was_asked_for_does_not_cost_all_the_rest(place: Path) -> None:
    """Such as the quota being used up: said with status 200, and found out by a ``KeyError``."""
    calls: list[int] = []

    @resumable_task(key="id", batch_size=10)
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append(1)
        time.sleep(0.01)
        answer: dict[str, Any] = {"choices": rows} if len(calls) <= 10 else {"error": "quota"}
        return answer["choices"]  # type: ignore[no-any-return]

    with pytest.raises(JobFailed, match="ended before all items were handled"):
        job.run([{"id": i} for i in range(10_000)], checkpoint=place)
    assert len(calls) < 100


def test_a_probe_that_returns_a_failure_ends_a_pause(place: Path) -> None:
    calls: list[int] = []

    @resumable_task(
        key="id",
        batch_size=1,
        concurrency=1,
        failing=Failing(pause_after=1),
        tolerated_failures=1,
        budget=Budget(seconds=20),
    )
    def job(rows: list[dict[str, Any]]) -> list[Any]:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionError("once")
        return [ItemFailure(0, "no") if row["id"] == 0 else row for row in rows]

    result = job.run(ITEMS[:20], checkpoint=place)
    assert (result.completed, result.failed) == (19, 1)
