"""Failing items, outages, budgets and rates, in flow runs on a real server."""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Budget, JobFailed, Unfinished, UsageError, resumable_task
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store
from tests.engine.test_second_night import BATCH, Nights, plain
from tests.engine.test_second_night import ITEMS as MANY
from tests.prefect.api import Api, until

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]
ITEMS = [{"id": i} for i in range(1_000)]
BAD = {17, 500, 999}


@pytest.mark.long
@pytest.mark.parametrize("kind", ["threads", "coroutines"])
def test_poisoned_items_are_found_in_a_flow_run(kind: str, place: Path) -> None:
    from prefect import flow

    calls: list[int] = []
    bad = set(BAD)

    def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append(len(rows))
        if any(row["id"] in bad for row in rows):
            raise RuntimeError("poison")
        return rows

    async def coroutine(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        await asyncio.sleep(0)
        return plain(rows)

    handler: Any = plain if kind == "threads" else coroutine
    task = resumable_task(handler, name="job", key="id")

    @flow
    def job() -> Any:
        return task.run(ITEMS, checkpoint=place)

    with pytest.raises(JobFailed) as error:
        job()
    assert sorted(failure.key for failure in error.value.result.failures) == sorted(BAD)
    assert len(calls) <= 20 + 3 * 12
    calls.clear()
    bad.clear()
    assert job().completed == 3
    assert calls == [3]


@pytest.mark.parametrize(
    "kind", [pytest.param("generator", marks=pytest.mark.long), "async generator"]
)
def test_what_a_generator_gave_before_it_failed_stands_in_a_flow_run(
    kind: str, place: Path
) -> None:
    from prefect import flow

    asked: list[int] = []

    def plain(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for row in rows:
            asked.append(row["id"])
            if row["id"] in BAD:
                raise RuntimeError("poison")
            yield row

    async def asynchronous(rows: list[dict[str, Any]]) -> AsyncIterator[dict[str, Any]]:
        for row in plain(rows):
            await asyncio.sleep(0)
            yield row

    handler: Any = plain if kind == "generator" else asynchronous
    task = resumable_task(handler, name="job", key="id")
    with pytest.raises(JobFailed) as error:
        flow(lambda: task.run(ITEMS, checkpoint=place), name="job")()
    assert {failure.key for failure in error.value.result.failures} == BAD
    assert error.value.result.completed == 1_000 - len(BAD)
    assert {key for key in asked if asked.count(key) > 1} <= BAD


@pytest.mark.long
def test_a_service_that_is_down_for_a_while_in_a_flow_run(place: Path) -> None:
    from prefect import flow

    began = time.monotonic()

    @resumable_task(key="id", batch_size=20)
    def label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        time.sleep(0.02)
        if 0.2 < time.monotonic() - began < 3:
            raise ConnectionError("down")
        return rows

    @flow
    def job() -> Any:
        return label.run(ITEMS, checkpoint=place)

    assert job().completed == 1_000
    assert read_checkpoint(open_store(place))[1].failures == {}


@pytest.mark.parametrize(
    "budget",
    [Budget(items=600), pytest.param(Budget(cost=6.0), marks=pytest.mark.long)],
    ids=str,
)
def test_all_tries_of_a_flow_run_share_one_budget(budget: Budget, place: Path, api: Api) -> None:
    from prefect import flow
    from prefect.runtime import flow_run

    handled: list[int] = []

    def paid(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        handled.extend(row["id"] for row in rows)
        return [{"id": row["id"], "cost": 0.01} for row in rows]

    task = resumable_task(paid, name="job", key="id", budget=budget)
    runs: list[str] = []

    @flow(retries=2)
    def job() -> Any:
        runs.append(str(flow_run.id))
        if len(runs) == 1:
            task.run(ITEMS[:250], checkpoint=place)
            raise RuntimeError("what comes after the job fails")
        return task.run(ITEMS, checkpoint=place)

    with pytest.raises(Unfinished, match="budget used up ") as error:
        job()
    assert error.value.exit_code == 5
    # The second try had what the first had left, and the third nothing.
    assert (len(runs), len(set(runs)), len(handled)) == (3, 1, 600)
    found = until(lambda: (r := api.flow_run(runs[-1]))["state_type"] == "FAILED" and r)
    # Not Crashed, which automations rerun at once.
    assert "budget used up " in found["state"]["message"]
    assert "remaining: 400 items" in found["state"]["message"]
    # Another flow run has another one.
    assert job().completed == 400


@pytest.mark.long
def test_a_rate_by_a_global_concurrency_limit(place: Path, api: Api) -> None:
    from prefect import flow

    name = f"calls-{uuid.uuid4().hex[:8]}"
    limit = {"name": name, "limit": 4, "active": True, "slot_decay_per_second": 10.0}
    api.call("POST", "v2/concurrency_limits/", limit)
    times: list[float] = []
    lock = threading.Lock()

    @resumable_task(key="id", batch_size=10, concurrency=4, rate_limit=f"prefect:{name}")
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        with lock:
            times.append(time.monotonic())
        return rows

    @flow
    def run() -> Any:
        return job.run(ITEMS[:120], checkpoint=place)

    assert run().completed == 120
    # 4 at once, and then 10 a second.
    assert max(times) - min(times) >= 0.6


def test_a_call_takes_as_many_slots_as_its_items_weigh(place: Path, api: Api) -> None:
    from prefect import flow

    name = f"tokens-{uuid.uuid4().hex[:8]}"
    limit = {"name": name, "limit": 1_000, "active": True, "slot_decay_per_second": 1e-6}
    api.call("POST", "v2/concurrency_limits/", limit)
    task = resumable_task(
        lambda rows: rows, name="job", key="id", batch_size=1, rate_limit=f"prefect:{name}"
    )

    @flow
    def run(weight: int) -> Any:
        limited = task.with_options(weight=lambda item: weight, concurrency=1)
        return limited.run(ITEMS[:2], checkpoint=place)

    with pytest.raises(UsageError, match="a call weighs 1,001 by weight="):
        run(1_001)
    assert run(40).completed == 2
    taken = api.call("GET", f"v2/concurrency_limits/{name}")["active_slots"]
    # A server that answers late has given slots to a request that was made again.
    assert taken >= 80
    assert taken % 40 == 0


def test_a_limit_that_is_not_there_says_the_command_that_makes_it(place: Path, api: Api) -> None:
    from prefect import flow

    task = resumable_task(lambda rows: rows, name="job")
    steady = f"steady-{uuid.uuid4().hex[:8]}"
    api.call("POST", "v2/concurrency_limits/", {"name": steady, "limit": 4})

    @flow
    def run(limit: str) -> Any:
        limited = task.with_options(rate_limit=f"prefect:{limit}")
        return limited.run(range(10), checkpoint=place)

    created = "`prefect gcl create no-such-limit --limit 60 --slot-decay-per-second 1`"
    with pytest.raises(UsageError, match=created):
        run("no-such-limit")
    with pytest.raises(UsageError, match=f"`prefect gcl update {steady} --slot-decay-per-second"):
        run(steady)
    assert len(read_checkpoint(open_store(place))[1].done) == 0


@pytest.mark.parametrize(
    "count", [1, *(pytest.param(each, marks=pytest.mark.long) for each in (39, 100))]
)
def test_every_night_completes_what_is_fixed_in_a_flow_run(
    count: int, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    nights = Nights(tmp_path, place)
    monkeypatch.setenv("BAD", str(nights.bad))
    monkeypatch.setenv("CALLS", str(nights.calls))
    task = resumable_task(plain, name="job", key="id", batch_size=BATCH, concurrency=4)

    @flow
    def job() -> Any:
        return task.run(MANY, checkpoint=place)

    nights.check(job, count)


def test_halved_batches_are_no_failures_of_task_runs(
    place: Path, api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    """The failed counts of all task runs add up to the items that failed; one traceback a cause."""
    from prefect import flow
    from prefect.runtime import flow_run

    ids: list[str] = []
    bad = {17, 60, 133, 199}

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        time.sleep(0.3)  # so that there are several task runs
        for row in rows:
            if row["id"] in bad:
                raise RuntimeError(f"cannot read {row['id']}")
        return rows

    task = resumable_task(handler, name="job", key="id", batch_size=50)

    @flow
    def job() -> Any:
        ids.append(str(flow_run.id))
        return task.run(ITEMS[:200], checkpoint=place)

    caplog.set_level("INFO")
    with pytest.raises(JobFailed, match="4 of 200 items"):
        job()

    def ended() -> Any:
        runs = api.task_runs(ids[0])
        return all(each["state_type"] in ("COMPLETED", "FAILED") for each in runs) and runs

    found = until(ended)
    messages = [each["state"]["message"] for each in found]
    counts = [int(m.split(" failed")[0]) for m in messages if " failed" in m]
    assert sum(counts) == 4
    for each in found:
        failed = each["state"]["message"].split(" failed")[0]
        assert (each["state_type"] == "FAILED") == (failed.isdigit() and int(failed) > 0)
    assert {each["state"]["name"] for each in found} <= {"Failed", "Divided", "Completed"}
    assert len(found) > 1
    said = "\n".join(record.getMessage() for record in caplog.records)
    # The one of the job itself, which carries no traceback of a call, is Prefect's.
    assert said.count("raise RuntimeError(") == 1


def test_what_does_not_fit_the_table_is_told_in_the_task_runs(place: Path, api: Api) -> None:
    from prefect import flow

    def ask(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "n": 2**70 if row["id"] == 7 else row["id"]} for row in rows]

    task = resumable_task(ask, name="asked", key="id")

    @flow(name=f"parks-{uuid.uuid4()}")
    def job() -> Any:
        return task.run(ITEMS[:100], checkpoint=place)

    with pytest.raises(JobFailed, match="are parked") as error:
        job()
    assert (error.value.result.parked, error.value.result.failed) == (1, 0)

    def ended() -> Any:
        where = {"flows": {"name": {"any_": [job.name]}}}
        found = api.call("POST", "task_runs/filter", where)
        return (
            found and all(each["state_type"] in ("COMPLETED", "FAILED") for each in found) and found
        )

    # Batches that are fast share a task run, others have one each.
    found = until(ended)
    assert {each["state_type"] for each in found} == {"COMPLETED"}
    assert sum("1 parked: kept" in each["state"]["message"] for each in found) == 1
