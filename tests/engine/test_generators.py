"""Handlers that are generators: a row counts once it was given, whatever comes after it."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pytest

from resumable_tasks import (
    Budget,
    BudgetUsedUp,
    Failing,
    Interrupted,
    JobFailed,
    Retry,
    resumable_task,
)

Rows = list[dict[str, Any]]
ITEMS = [{"id": at} for at in range(40)]


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the keys that were worked on, each as often as it was."""
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


def work_on(row: dict[str, Any]) -> dict[str, Any]:
    with open(os.environ["CALLS"], "a") as file:
        file.write(f"{row['id']}\n")
    return {"id": row["id"], "cost": 1.0}


def counted(calls: Path) -> Counter[int]:
    return Counter(map(int, calls.read_text().split()))


def one_is_bad(rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows:
        found = work_on(row)
        if row["id"] == 17:
            raise ValueError("a bad item")
        yield found


async def acoroutine(rows: Rows) -> Iterator[dict[str, Any]]:
    await asyncio.sleep(0)
    return one_is_bad(rows)


async def asynchronous(rows: Rows) -> AsyncIterator[dict[str, Any]]:
    for row in one_is_bad(rows):
        await asyncio.sleep(0)
        yield row


HANDLERS = {
    "threads": one_is_bad,
    "processes": one_is_bad,
    "coroutine": acoroutine,
    "async generator": asynchronous,
}


def test_tables_before_an_error_are_kept_too(place: Path, calls: Path) -> None:
    made: list[Any] = [pa.Table, pa.RecordBatch, polars.DataFrame]

    @resumable_task(key="id", batch_size=10, cost="cost")
    def job(rows: Rows) -> Iterator[Any]:
        for row in one_is_bad(rows):
            kind = made[row["id"] % 3]
            yield kind([row]) if kind is polars.DataFrame else kind.from_pylist([row])

    with pytest.raises(JobFailed) as caught:
        job.run(ITEMS, checkpoint=place)
    result = caught.value.result
    assert (result.completed, result.failed) == (39, 1)
    assert sorted(result.table()["id"].to_pylist()) == [n for n in range(40) if n != 17]
    assert max(counted(calls)[at] for at in range(40) if at != 17) == 1
    assert result.cost == 39.0


@pytest.mark.parametrize("kind", HANDLERS)
@pytest.mark.parametrize("isolate", [True, False])
def test_rows_before_an_error_are_kept_and_only_the_others_are_handled_again(
    kind: str, isolate: bool, place: Path, calls: Path
) -> None:
    task = resumable_task(
        HANDLERS[kind],
        name="job",
        key="id",
        batch_size=10,
        concurrency=1,
        cost="cost",
        failing=Failing(isolate=isolate),
        runner="processes" if kind == "processes" else "auto",
    )
    with pytest.raises(JobFailed) as error:
        task.run(ITEMS, checkpoint=place)
    result, times = error.value.result, counted(calls)
    assert max(times[at] for at in range(40) if at != 17) <= 1
    if isolate:
        assert [each.key for each in result.failures] == [17]
        assert result.failures[0].error_of == "item"
        assert (result.completed, result.cost) == (39, 39.0)
        assert 2 <= times[17] <= 3
    else:
        assert [each.key for each in result.failures] == [17, 18, 19]
        assert {each.error_of for each in result.failures} == {"batch"}
        assert (result.completed, result.cost) == (37, 37.0)


def third_fails_once(rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows:
        if row["id"] % 10 == 3 and counted(Path(os.environ["CALLS"]))[row["id"]] == 0:
            work_on(row)
            raise ConnectionError("the service hung up")
        yield work_on(row)


@pytest.mark.parametrize("runner", ["auto", "processes"])
def test_a_retry_is_of_the_items_that_are_left(runner: str, place: Path, calls: Path) -> None:
    task = resumable_task(
        third_fails_once,
        name="job",
        key="id",
        batch_size=10,
        concurrency=1,
        cost="cost",
        retries=Retry(2, delay=0.0),
        runner=runner,
    )
    result = task.run(ITEMS, checkpoint=place)
    assert (result.completed, result.failed, result.cost) == (40, 0, 40.0)
    assert result.table()["id"].to_pylist() == list(range(40))
    assert counted(calls) == {at: 2 if at % 10 == 3 else 1 for at in range(40)}


def test_a_run_that_stops_before_the_retry_keeps_what_was_given(place: Path, calls: Path) -> None:
    def make(delay: float) -> Any:
        return resumable_task(
            third_fails_once,
            name="job",
            key="id",
            batch_size=10,
            concurrency=1,
            cost="cost",
            retries=Retry(2, delay=delay),
        )

    with pytest.raises(BudgetUsedUp) as error:
        make(60.0).run(ITEMS[:10], checkpoint=place, budget=Budget(seconds=1.0))
    assert (error.value.result.completed, error.value.result.cost) == (3, 3.0)
    assert error.value.result.failures == ()
    result = make(0.0).run(ITEMS[:10], checkpoint=place)
    assert (result.skipped, result.completed) == (3, 7)
    assert counted(calls) == {at: 2 if at == 3 else 1 for at in range(10)}


def slow(rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows:
        time.sleep(0.1)
        yield work_on(row)


async def aslow(rows: Rows) -> AsyncIterator[dict[str, Any]]:
    for row in rows:
        await asyncio.sleep(0.1)
        yield work_on(row)


@pytest.mark.parametrize("handler", [slow, aslow])
@pytest.mark.parametrize("fail_fast", [False, True])
def test_a_run_that_stops_ends_a_generator_at_its_next_row_and_keeps_what_it_gave(
    handler: Any, fail_fast: bool, place: Path, calls: Path
) -> None:
    task = resumable_task(
        handler,
        name="job",
        key="id",
        batch_size=40,
        cost="cost",
        fail_fast=fail_fast,
    )
    with pytest.raises(BudgetUsedUp) as error:
        task.run(ITEMS, checkpoint=place, budget=Budget(seconds=1.0))
    result = error.value.result
    assert 0 < result.completed < 40
    assert (result.cost, result.failed) == (result.completed, 0)
    assert task.run(ITEMS, checkpoint=place).skipped == result.completed
    assert counted(calls) == dict.fromkeys(range(40), 1)


def test_a_generator_whose_rows_could_not_be_kept_is_finished(place: Path, calls: Path) -> None:
    task = resumable_task(slow, name="job", key="id", batch_size=20, concurrency=1, results="many")
    with pytest.raises(BudgetUsedUp) as error:
        task.run(ITEMS, checkpoint=place, budget=Budget(seconds=1.0))
    assert error.value.result.completed == 20


def waits_for_long(rows: Rows) -> Iterator[dict[str, Any]]:
    class Refused(Exception):
        retry_after = 3_600.0

    for row in rows:
        found = work_on(row)
        if row["id"] == 3:
            raise Refused
        yield found


def test_a_run_that_gives_up_waiting_keeps_what_was_given(place: Path, calls: Path) -> None:
    task = resumable_task(
        waits_for_long,
        name="job",
        key="id",
        batch_size=10,
        concurrency=1,
        failing=Failing(give_up_after=1.0),
    )
    with pytest.raises(Interrupted) as error:
        task.run(ITEMS[:10], checkpoint=place)
    assert error.value.result.completed == 3
    assert {at: times for at, times in counted(calls).items() if at != 3} == {0: 1, 1: 1, 2: 1}


def test_an_error_after_the_last_row_takes_none_away(
    place: Path, calls: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(rows: Rows) -> Iterator[dict[str, Any]]:
        yield from map(work_on, rows)
        raise RuntimeError("the client cannot be closed")

    task = resumable_task(handle, name="job", key="id", batch_size=10, cost="cost")
    result = task.run(ITEMS, checkpoint=place)
    assert (result.completed, result.failed, result.cost) == (40, 0, 40.0)
    assert set(counted(calls).values()) == {1}
    assert "gave all rows, which count, and then failed with RuntimeError" in caplog.text


def test_rows_that_do_not_say_whose_they_are_are_not_kept(place: Path, calls: Path) -> None:
    """Some of several rows of an item, and rows in the order of the items."""

    def handle(rows: Rows) -> Iterator[dict[str, Any]]:
        for found in one_is_bad(rows):
            yield {"cost": found["cost"]}

    for name, fn, how in (("order", handle, "one"), ("many", one_is_bad, "many")):
        task = resumable_task(fn, name=name, key="id", batch_size=10, results=how)  # type: ignore[arg-type]
        with pytest.raises(JobFailed) as error:
            task.run(ITEMS, checkpoint=place / name)
        assert [each.key for each in error.value.result.failures] == [17]
        assert error.value.result.completed == 39


def takes_time(rows: Rows) -> Iterator[dict[str, Any]]:
    for row in rows:
        time.sleep(60 if row["id"] == 2 else 0.1)
        yield work_on(row)


def test_the_time_of_a_generator_is_that_of_its_rows(place: Path, calls: Path) -> None:
    seconds: list[float] = []

    def cost(call: Any) -> float:
        seconds.append(call.seconds)
        return 0.0

    task = resumable_task(takes_time, name="job", key="id", batch_size=2, cost=cost)
    task.run(ITEMS[:2], checkpoint=place)
    assert seconds[0] >= 0.2


def test_a_generator_in_a_process_is_ended_at_its_timeout(place: Path, calls: Path) -> None:
    task = resumable_task(
        takes_time,
        name="job",
        key="id",
        batch_size=1,
        concurrency=1,
        runner="processes",
        timeout=5.0,
    )
    with pytest.raises(JobFailed, match="took longer than timeout=5 s"):
        task.run(ITEMS[:4], checkpoint=place)


def test_an_async_generator_keeps_at_its_timeout_what_it_has_given(
    place: Path, calls: Path
) -> None:
    @resumable_task(key="id", batch_size=10, concurrency=1, timeout=0.5)
    async def job(rows: Rows) -> AsyncIterator[dict[str, Any]]:
        for row in rows:
            found = work_on(row)
            if row["id"] == 3:
                await asyncio.sleep(60)
            yield found

    with pytest.raises(JobFailed, match=r"took longer than timeout=0.5 s") as error:
        job.run(ITEMS[:10], checkpoint=place)
    assert [each.key for each in error.value.result.failures] == [3]
    assert error.value.result.completed == 9
    assert {at for at, times in counted(calls).items() if times > 1} == {3}
