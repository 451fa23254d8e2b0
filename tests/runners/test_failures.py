"""Errors in the handler: recorded for their items, the rest goes on, the next run takes them up."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Failing, JobFailed, Retry, UsageError, current_batch, resumable_task
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store

ITEMS = [{"id": i} for i in range(100)]


def failing(*bad: int, error: type[Exception] = RuntimeError) -> Any:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            if row["id"] in bad:
                raise error(f"no luck with {row['id']}")
        return rows

    # Isolation has its own tests, in tests/engine.
    return resumable_task(
        handler, name="job", key="id", batch_size=10, failing=Failing(isolate=False)
    )


def test_a_batch_that_raises_fails_alone_and_is_taken_up_by_the_next_run(place: Path) -> None:
    with pytest.raises(
        JobFailed, match=r"(?s)20 of 100 items of job failed; 80 are done"
    ) as caught:
        failing(15, 99).run(ITEMS, checkpoint=place)
    result = caught.value.result
    assert result is not None
    assert {f.key for f in result.failures} == {*range(10, 20), *range(90, 100)}
    with pytest.raises(JobFailed):
        result.raise_for_failures()
    handled: list[int] = []

    def fixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        handled.extend(row["id"] for row in rows)
        return rows

    again = resumable_task(fixed, name="job", key="id", batch_size=7)
    assert again.run(ITEMS, checkpoint=place).completed == 20
    assert sorted(handled) == [*range(10, 20), *range(90, 100)]
    assert read_checkpoint(open_store(place))[1].failures == {}


def test_a_failure_is_a_record_whose_attempts_count_over_runs(place: Path) -> None:
    for attempts in (1, 2, 3):
        with pytest.raises(JobFailed):
            failing(15).run(ITEMS, checkpoint=place)
        failures = read_checkpoint(open_store(place))[1].failures
        assert len(failures) == 10
        failure = failures[b"15"]
        assert failure.attempts == attempts
        assert (failure.key, failure.error, failure.message) == (
            15,
            "RuntimeError",
            "no luck with 15",
        )
        assert "raise error" in failure.traceback
        assert failure.time
        assert len(failure.batch) == 32


def test_nothing_in_an_exception_can_break_the_journal(place: Path) -> None:
    class Nasty(Exception):
        def __str__(self) -> str:
            return "\ud800\n\x00" + "x" * 10_000_000

    class Broken(Exception):
        def __str__(self) -> str:
            raise ValueError("even this")

    def handler(rows: list[Any]) -> Any:
        raise Nasty if rows[0] == "a" else Broken

    job = resumable_task(handler, name="job", batch_size=1)
    with pytest.raises(JobFailed, match="cannot be read: ValueError"):
        job.run(["a", "b"], checkpoint=place)
    failures = read_checkpoint(open_store(place))[1].failures
    assert len(failures[b'"a"'].message) < 2_000
    assert failures[b'"b"'].error == "Broken"


def test_retries_call_again_with_the_next_attempt(place: Path) -> None:
    attempts: list[int] = []

    @resumable_task(key="id", batch_size=100, retries=Retry(2, delay=0.001))
    def job(rows: list[Any]) -> list[Any]:
        attempts.append(current_batch().attempt)
        if len(attempts) < 3:
            raise ConnectionError("later")
        return rows

    assert job.run(ITEMS, checkpoint=place).completed == 100
    assert attempts == [1, 2, 3]


def test_an_error_of_programming_is_not_retried(place: Path) -> None:
    calls: list[int] = []

    @resumable_task(key="id", batch_size=100, retries=5, failing=Failing(isolate=False))
    def job(rows: list[Any]) -> list[Any]:
        calls.append(1)
        return rows[0]["nonsense"]

    with pytest.raises(JobFailed, match="KeyError"):
        job.run(ITEMS, checkpoint=place)
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("tolerated", "fails"), [(9, True), (10, False), (0.09, True), (0.1, False)]
)
def test_tolerated_failures_are_a_count_or_a_share(
    tolerated: float, fails: bool, place: Path
) -> None:
    job = failing(15).with_options(tolerated_failures=tolerated)
    if fails:
        with pytest.raises(JobFailed):
            job.run(ITEMS, checkpoint=place)
    else:
        result = job.run(ITEMS, checkpoint=place)
        assert (result.completed, result.failed) == (90, 10)


def test_fail_fast_stops_early_and_keeps_what_is_done(place: Path) -> None:
    items = ({"id": i} for i in range(100_000))
    job = failing(15).with_options(fail_fast=True, concurrency=1)
    with pytest.raises(JobFailed) as caught:
        job.run(items, checkpoint=place)
    assert caught.value.result is not None
    assert caught.value.result.total < 50_000
    assert caught.value.result.completed >= 10


def test_the_current_batch_is_known_inside_a_handler_only(place: Path) -> None:
    seen: list[Any] = []
    job = resumable_task(
        lambda rows: (seen.append(current_batch()), rows)[1], name="job", key="id", batch_size=50
    )
    job.run(ITEMS, checkpoint=place)
    assert sorted(batch.keys[0] for batch in seen) == [0, 50]
    assert len({batch.id for batch in seen}) == 2
    with pytest.raises(UsageError, match="inside a handler"):
        current_batch()


def test_a_batch_of_the_same_items_has_the_same_id_in_every_run(tmp_path: Path) -> None:
    ids: list[set[str]] = []
    for run in range(2):
        seen: set[str] = set()
        job = resumable_task(
            lambda rows, seen=seen: (seen.add(current_batch().id), rows)[1], name="j", key="id"
        )
        job.run(ITEMS, checkpoint=tmp_path / str(run))
        ids.append(seen)
    assert ids[0] == ids[1]


def test_never_more_handlers_at_once_than_asked_for(place: Path) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def handler(rows: list[Any]) -> list[Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.01)
        with lock:
            running -= 1
        return rows

    resumable_task(handler, name="job", key="id", batch_size=5, concurrency=3).run(
        ITEMS, checkpoint=place
    )
    assert most == 3
