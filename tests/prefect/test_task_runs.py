"""Batches as task runs, seen from the outside: what the server knows, and what the checkpoint."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Failing, JobFailed, RunResult, resumable_task
from tests.prefect.api import Api, until
from tests.telemetry import Seen, ids, parent

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    # Prefect's and its dependencies' own are not ours to fix.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


def items(count: int) -> list[dict[str, Any]]:
    return [{"id": n} for n in range(count)]


def flow_run_id() -> str:
    from prefect.runtime import flow_run

    return str(flow_run.id)


def test_a_batch_of_some_length_is_a_task_run_of_its_own(place: Path, api: Api) -> None:
    from prefect import flow

    @resumable_task(key="id", batch_size=50, concurrency=5, tags=["paid"])
    def classify(rows: list[Any]) -> list[Any]:
        time.sleep(1.01)
        return rows

    @flow
    def job() -> tuple[str, RunResult]:
        return flow_run_id(), classify.run(items(220), checkpoint=place)

    run, result = job()
    assert (result.completed, result.table().num_rows) == (220, 220)
    found = until(lambda: len(r := api.task_runs(run)) == 5 and r)
    assert {each["name"] for each in found} == {
        *(f"classify {n:05} (50 items)" for n in range(4)),
        "classify 00004 (20 items)",
    }
    assert all(each["tags"] == ["paid"] for each in found)
    until(lambda: all(each["state_type"] == "COMPLETED" for each in api.task_runs(run)))


def test_small_batches_share_task_runs_and_are_handled_and_committed_as_their_own(
    place: Path, api: Api
) -> None:
    from prefect import flow

    sizes: list[int] = []

    @resumable_task(key="id", batch_size=5)
    def classify(rows: list[Any]) -> list[Any]:
        sizes.append(len(rows))
        return rows

    @flow
    def job() -> tuple[str, RunResult]:
        return flow_run_id(), classify.run(items(2_000), checkpoint=place)

    run, result = job()
    assert result.table().num_rows == 2_000
    assert sizes == [5] * 400
    until(lambda: sum(_batches(each["name"]) for each in api.task_runs(run)) == 400)
    assert len(api.task_runs(run)) <= 20


def _batches(name: str) -> int:
    return int(name.split("(")[1].split(" batches")[0]) if "batches" in name else 1


def test_a_failed_task_run_says_why(place: Path, api: Api) -> None:
    from prefect import flow

    ids: list[str] = []

    @resumable_task(key="id", batch_size=10, concurrency=1, failing=Failing(isolate=False))
    def divide(rows: list[Any]) -> list[Any]:
        return [{"id": row["id"], "x": 1 / (row["id"] - 15)} for row in rows]

    @flow
    def job() -> None:
        ids.append(flow_run_id())
        divide.run(items(30), checkpoint=place)

    with pytest.raises(JobFailed, match="10 of 30 items"):
        job()
    (found,) = until(
        lambda: [each for each in api.task_runs(ids[0]) if each["state_type"] == "FAILED"]
    )
    assert "ZeroDivisionError: division by zero" in found["state"]["message"]
    assert "20 items done" in found["state"]["message"]
    assert "JobFailed" in api.flow_run(ids[0])["state"]["message"]


def test_no_more_than_concurrency_threads_and_calls(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    from resumable_tasks.prefect.task_runs import TaskRuns

    # The pool may take another thread for the next task run before that of the last one is free.
    monkeypatch.setattr(TaskRuns, "seconds_of", lambda runs, number: 600.0)

    busy: list[int] = []
    threads: set[int] = set()
    lock, now = threading.Lock(), [0]

    @resumable_task(key="id", batch_size=1, concurrency=3)
    def classify(rows: list[Any]) -> list[Any]:
        with lock:
            now[0] += 1
            busy.append(now[0])
            threads.add(threading.get_ident())
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return rows

    @flow
    def job() -> RunResult:
        return classify.run(items(60), checkpoint=place)

    assert job().completed == 60
    assert max(busy) == 3
    assert len(threads) == 3


@pytest.mark.parametrize(
    "way", [pytest.param("run in a flow", marks=pytest.mark.long), "arun in an async flow"]
)
def test_coroutines_share_one_event_loop(place: Path, way: str) -> None:
    from prefect import flow

    loops: set[int] = set()
    busy, now = [], [0]

    @resumable_task(key="id", batch_size=1, concurrency=8)
    async def fetch(rows: list[Any]) -> list[Any]:
        loops.add(id(asyncio.get_running_loop()))
        now[0] += 1
        busy.append(now[0])
        await asyncio.sleep(0.05)
        now[0] -= 1
        return rows

    @flow
    def plain() -> RunResult:
        return fetch.run(items(40), checkpoint=place)

    @flow
    async def in_loop() -> tuple[int, RunResult]:
        return id(asyncio.get_running_loop()), await fetch.arun(items(40), checkpoint=place)

    if way == "run in a flow":
        assert plain().completed == 40
    else:
        loop, result = asyncio.run(in_loop())
        assert result.completed == 40
        assert loops == {loop}
    assert len(loops) == 1
    assert 2 < max(busy) <= 8


def test_items_are_read_in_the_callers_thread(place: Path) -> None:
    from prefect import flow

    read_in: set[int] = set()

    @resumable_task(key="id")
    def classify(rows: list[Any]) -> list[Any]:
        return rows

    def source() -> Any:
        for item in items(1_000):
            read_in.add(threading.get_ident())
            yield item

    @flow
    def job() -> RunResult:
        return classify.run(source(), checkpoint=place)

    assert job().completed == 1_000
    assert read_in == {threading.get_ident()}


def test_items_that_are_there_do_not_wait_for_one_that_is_not(place: Path) -> None:
    from prefect import flow

    handled = threading.Event()

    @resumable_task(key="id", batch_size=5)
    def classify(rows: list[Any]) -> list[Any]:
        handled.set()
        return rows

    def source() -> Any:
        yield from items(5)
        # The next page takes as long as it takes.
        yield {"id": 100 if handled.wait(20) else -1}

    @flow
    def job() -> RunResult:
        return classify.run(source(), checkpoint=place)

    assert 100 in list(job().completed_keys())


def test_what_the_items_raise_ends_the_flow_after_what_came_before_is_committed(
    place: Path,
) -> None:
    from prefect import flow

    @resumable_task(key="id", batch_size=10)
    def classify(rows: list[Any]) -> list[Any]:
        return rows

    def source(good: int) -> Any:
        yield from items(good)
        raise OSError("the source has gone")

    @flow
    def job() -> None:
        classify.run(source(100), checkpoint=place)

    with pytest.raises(OSError, match="the source has gone"):
        job()
    assert classify.run(items(100), checkpoint=place).skipped == 100


def test_the_spans_of_a_run_are_in_that_of_its_flow_run(place: Path, seen: Seen) -> None:
    from opentelemetry import trace
    from prefect import flow

    @resumable_task(key="id", batch_size=10)
    def classify(rows: list[Any]) -> list[Any]:
        with trace.get_tracer("mine").start_as_current_span("mine"):
            return rows

    @flow
    def job() -> None:
        classify.run(items(30), checkpoint=place)

    with trace.get_tracer("program").start_as_current_span("program"):
        job()
    [run] = (span for span in seen.of("run") if span.name == "run classify")
    [program] = seen.of("program")
    assert ids(run)[0] == ids(program)[0]
    mine, calls, batches = seen.of("mine"), seen.of("call"), seen.of("batch")
    assert len(mine) == 3
    assert {*map(parent, mine)} == {*map(ids, calls)}
    assert {*map(parent, calls)} == {*map(ids, batches)}
    assert {*map(parent, batches)} == {ids(run)}
    assert seen.sums("item.handled") == {"done": 30}


def test_a_job_in_a_task_run_of_ones_own_starts_no_task_runs(place: Path, api: Api) -> None:
    from prefect import flow, task

    @resumable_task(key="id", batch_size=10)
    def classify(rows: list[Any]) -> list[Any]:
        return rows

    @task
    def step() -> RunResult:
        return classify.run(items(100), checkpoint=place)

    @flow
    def job() -> tuple[str, RunResult]:
        return flow_run_id(), step()

    run, result = job()
    assert result.completed == 100
    until(lambda: len(api.task_runs(run)) == 1)
