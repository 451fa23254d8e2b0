"""One bad item must not cost its neighbours: it is found, named, and the others are done."""

from __future__ import annotations

import asyncio
import math
import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import (
    Changes,
    Failing,
    ItemFailure,
    JobFailed,
    ResumableTask,
    Retry,
    resumable_task,
)
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store

ITEMS = [{"id": i} for i in range(1_000)]
BAD = (17, 500, 999)
# Halving finds one bad item of 50 in so many calls.
BISECTION = 2 * math.ceil(math.log2(50))


class Poison(Exception):
    pass


def note(place: str, rows: list[dict[str, Any]]) -> None:
    with open(place, "a") as file:
        file.write(",".join(str(row["id"]) for row in rows) + "\n")


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    note(os.environ["CALLS"], rows)
    fixed = os.path.exists(os.environ["CALLS"] + ".fixed")
    for row in rows:
        if row["id"] in BAD and not fixed:
            raise Poison(f"cannot read {row['id']}")
    return [{"id": row["id"], "value": -row["id"]} for row in rows]


async def coroutine(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    await asyncio.sleep(0)
    return plain(rows)


class Calls:
    def __init__(self, path: Path) -> None:
        self.path = path

    def all(self) -> list[list[int]]:
        text = self.path.read_text() if self.path.exists() else ""
        return [[int(i) for i in line.split(",")] for line in text.splitlines()]

    def fix(self) -> None:
        Path(f"{self.path}.fixed").touch()
        self.path.unlink()


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Calls:
    found = Calls(tmp_path / "calls")
    monkeypatch.setenv("CALLS", str(found.path))
    return found


def ids_of(error: pytest.ExceptionInfo[JobFailed]) -> list[Any]:
    assert error.value.result is not None
    return sorted(failure.key for failure in error.value.result.failures)


RUNNERS: list[tuple[Callable[..., Any], str]] = [
    (plain, "local"),
    (coroutine, "local"),
    (plain, "processes"),
]


@pytest.mark.parametrize(("handler", "runner"), RUNNERS, ids=["threads", "asyncio", "processes"])
def test_three_poisoned_items_of_a_thousand_fail_alone(
    handler: Any, runner: Any, place: Path, calls: Calls
) -> None:
    task = resumable_task(handler, name="job", key="id", runner=runner, concurrency=3)
    with pytest.raises(JobFailed, match=r"3 of 1,000 items of job failed; 997 are done") as error:
        task.run(ITEMS, checkpoint=place)
    assert ids_of(error) == sorted(BAD)
    assert {f.message for f in error.value.result.failures} == {f"cannot read {i}" for i in BAD}
    assert len(calls.all()) <= 20 + 3 * BISECTION
    assert sorted(error.value.result.table()["id"].to_pylist()) == [
        row["id"] for row in ITEMS if row["id"] not in BAD
    ]

    calls.fix()
    result = task.run(ITEMS, checkpoint=place)
    assert (result.completed, result.skipped, result.failed) == (3, 997, 0)
    assert calls.all() == [sorted(BAD)]
    assert sorted(result.table()["value"].to_pylist()) == sorted(-i for i in range(1_000))


def test_only_calls_with_the_item_alone_count_as_its_attempts(place: Path, calls: Calls) -> None:
    task = resumable_task(plain, name="job", key="id", retries=Retry(1, delay=0.0))
    for attempts in (1, 2):
        with pytest.raises(JobFailed) as error:
            task.run(ITEMS, checkpoint=place)
        failures = read_checkpoint(open_store(place))[1].failures
        assert {failure.key: failure.attempts for failure in failures.values()} == dict.fromkeys(
            BAD, attempts
        )
        assert {failure.error_of for failure in failures.values()} == {"item"}
        # The batch is retried; its parts, which fail for the same reason, are not.
        assert error.value.result.retried == (3 if attempts == 1 else 1)
    assert len(calls.all()) <= 20 + 3 + 3 * BISECTION + 2 + 2 * 3


def test_a_part_that_fails_for_another_reason_is_retried(place: Path) -> None:
    alone: list[int] = []

    @resumable_task(key="id", batch_size=8, retries=Retry(1, delay=0.0), concurrency=1)
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(rows) > 1 and any(row["id"] == 3 for row in rows):
            raise Poison("too much at once")
        if rows[0]["id"] == 3:
            alone.append(1)
            if len(alone) == 1:
                raise ConnectionError("a blip")
        return rows

    assert job.run(ITEMS[:16], checkpoint=place).completed == 16
    assert len(alone) == 2


def test_isolate_false_costs_no_further_call(place: Path, calls: Calls) -> None:
    task = resumable_task(plain, name="job", key="id", failing=Failing(isolate=False))
    with pytest.raises(JobFailed) as error:
        task.run(ITEMS, checkpoint=place)
    assert len(ids_of(error)) == 150
    assert len(calls.all()) == 20


def test_arrow_items_are_halved_too(place: Path) -> None:
    def handler(batch: pa.RecordBatch) -> pa.RecordBatch:
        if 17 in batch.column("id").to_pylist():
            raise Poison
        return batch

    task = resumable_task(handler, name="job", key="id", batch_size=100)
    with pytest.raises(JobFailed) as error:
        task.run(pa.table({"id": range(500)}), checkpoint=place)
    assert ids_of(error) == [17]
    assert error.value.result.table().num_rows == 499


def test_composite_keys_are_halved_too(place: Path) -> None:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any((row["a"], row["b"]) == ("x", 3) for row in rows):
            raise Poison
        return rows

    items = [{"a": a, "b": b} for a in "xy" for b in range(10)]
    task = resumable_task(handler, name="job", key=("a", "b"))
    with pytest.raises(JobFailed) as error:
        task.run(items, checkpoint=place)
    assert ids_of(error) == [("x", 3)]


def test_the_item_that_kills_its_process_is_found(place: Path, calls: Calls) -> None:
    task = resumable_task(killing, name="job", key="id", runner="processes", concurrency=2)
    with pytest.raises(JobFailed) as error:
        task.with_options(batch_size=10).run(ITEMS[:60], checkpoint=place)
    assert ids_of(error) == [17]
    assert error.value.result.failures[0].error == "WorkerLost"
    handled = Counter(i for call in calls.all() for i in call)
    # Neighbours in other batches are handled once: a process that dies takes its own batch only.
    assert {handled[i] for i in range(60) if not 10 <= i < 20} == {1}


def killing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    note(os.environ["CALLS"], rows)
    if any(row["id"] == 17 for row in rows):
        os.kill(os.getpid(), signal.SIGKILL)
    return rows


@pytest.mark.parametrize(
    "wrong",
    [
        lambda row: {**row, "value": [1, "two"]},  # no type of Arrow's
        lambda row: {**row, "value": "a string"},  # conflicts with the rows before
        lambda row: {**row, "id": "foreign"},
    ],
    ids=["bad value", "conflict", "foreign key"],
)
def test_a_row_that_cannot_be_stored_costs_its_own_item(
    wrong: Callable[[dict[str, Any]], dict[str, Any]], place: Path
) -> None:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        # The neighbours of the wrong one have no value, so that theirs fits any type.
        found = [
            {"id": row["id"], "value": None if 50 <= row["id"] < 100 else row["id"]} for row in rows
        ]
        return [wrong(row) if row["id"] == 77 else row for row in found]

    task = resumable_task(handler, name="job", key="id", concurrency=1)
    with pytest.raises(JobFailed) as error:
        task.run(ITEMS[:200], checkpoint=place)
    result = error.value.result
    assert [each.key for each in (*result.failures, *result.parked_items)] == [77]
    assert error.value.result.table().num_rows == 199


def test_items_left_out_are_asked_for_once_more(place: Path) -> None:
    seen: list[list[int]] = []

    @resumable_task(key="id", batch_size=50, concurrency=1)
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        seen.append([row["id"] for row in rows])
        left_out = {3, 4} if len(rows) > 2 else {4}
        return [row for row in rows if row["id"] not in left_out]

    with pytest.raises(JobFailed) as error:
        job.run(ITEMS[:100], checkpoint=place)
    assert ids_of(error) == [4]
    assert error.value.result.failures[0].error == "MissingResult"
    assert seen.count([3, 4]) == 1
    assert len(seen) == 3


def test_an_item_failure_fails_its_item_without_another_call(place: Path) -> None:
    seen: list[int] = []

    @resumable_task(key="id")
    def job(rows: list[dict[str, Any]]) -> list[Any]:
        seen.append(len(rows))
        return [ItemFailure(7, "no") if row["id"] == 7 else row for row in rows]

    with pytest.raises(JobFailed) as error:
        job.run(ITEMS[:100], checkpoint=place)
    assert ids_of(error) == [7]
    assert seen == [50, 50]


def test_with_many_bad_items_the_rest_is_done_all_the_same(place: Path) -> None:
    """As many bad items as make nearly every batch fail are no service that is down."""

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(row["id"] % 10 == 3 for row in rows):
            raise Poison
        return rows

    task: ResumableTask[Any] = resumable_task(handler, name="job", key="id")
    with pytest.raises(JobFailed) as error:
        task.run(ITEMS, checkpoint=place)
    assert ids_of(error) == list(range(3, 1_000, 10))
    assert error.value.result.completed == 900


def test_so_it_is_where_the_error_is_one_of_programming(place: Path) -> None:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], "value": row["text"]} for row in rows]

    items = [{"id": i, **({} if i % 10 == 3 else {"text": "x"})} for i in range(1_000)]
    with pytest.raises(JobFailed) as error:
        resumable_task(handler, name="job", key="id").run(items, checkpoint=place)
    assert ids_of(error) == list(range(3, 1_000, 10))


@pytest.mark.parametrize("error", [KeyError, ValueError, Poison])
@pytest.mark.parametrize("first", [0, 100])
@pytest.mark.parametrize("batch_size", [1, 4])
def test_many_bad_items_in_a_row_do_not_keep_the_rest_from_being_done(
    error: type[Exception], first: int, batch_size: int, place: Path
) -> None:
    """A broken file's worth of them, at the beginning or in the middle."""
    bad = range(first, first + 8)

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(row["id"] in bad for row in rows):
            raise error("broken")
        return rows

    task = resumable_task(handler, name="job", key="id", batch_size=batch_size, concurrency=2)
    with pytest.raises(JobFailed) as failed:
        task.run(ITEMS[:200], checkpoint=place)
    assert ids_of(failed) == list(bad)
    assert failed.value.result.completed == 192


def test_a_bad_item_among_changed_ones_keeps_its_old_row(place: Path) -> None:
    version = 1

    @resumable_task(key="id", changes=Changes("etag"), batch_size=50)
    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if version == 2 and any(row["id"] == 23 for row in rows):
            raise Poison
        return [{"id": row["id"], "version": version} for row in rows]

    def items(changed: range) -> list[dict[str, Any]]:
        return [{"id": i, "etag": "new" if i in changed else "old"} for i in range(200)]

    job.run(items(range(0)), checkpoint=place)
    version = 2
    would = job.run(items(range(20, 30)), checkpoint=place, dry_run=True)
    assert (would.changed, would.remaining.items, would.skipped) == (10, 10, 190)
    with pytest.raises(JobFailed) as error:
        job.run(items(range(20, 30)), checkpoint=place)
    assert ids_of(error) == [23]
    rows = error.value.result.table().to_pylist()
    assert len(rows) == 200
    assert {row["id"] for row in rows if row["version"] == 2} == {*range(20, 30)} - {23}
    version = 3
    assert job.run(items(range(20, 30)), checkpoint=place).completed == 1


def test_bad_items_at_the_very_end_are_not_waited_for(place: Path) -> None:
    """As many as would pause a run, and nothing comes after them that could succeed."""

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(row["id"] >= 90 for row in rows):
            raise Poison
        return rows

    began = time.monotonic()
    task = resumable_task(handler, name="job", key="id", batch_size=1, concurrency=1)
    with pytest.raises(JobFailed) as error:
        task.run(ITEMS[:100], checkpoint=place)
    assert ids_of(error) == list(range(90, 100))
    assert time.monotonic() - began < 60
