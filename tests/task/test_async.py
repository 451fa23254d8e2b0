"""Coroutine handlers, `arun`, async items, cancellation."""

from __future__ import annotations

import asyncio
import contextvars
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import JobFailed, UsageError, current_batch, resumable_task

ITEMS = [{"id": i} for i in range(200)]


async def items(count: int = 200, pause: float = 0) -> AsyncIterator[dict[str, Any]]:
    for i in range(count):
        if pause:
            await asyncio.sleep(pause)
        yield {"id": i}


@resumable_task(key="id", batch_size=10, concurrency=8)
async def echo(rows: list[Any]) -> list[Any]:
    await asyncio.sleep(0.001)
    assert current_batch().keys == tuple(row["id"] for row in rows)
    return rows


def test_a_coroutine_handler_runs_many_at_once_on_one_loop(place: Path) -> None:
    running = most = 0
    loops: set[Any] = set()

    @resumable_task(key="id", batch_size=5, concurrency=16)
    async def job(rows: list[Any]) -> list[Any]:
        nonlocal running, most
        running += 1
        most = max(most, running)
        loops.add(asyncio.get_running_loop())
        await asyncio.sleep(0.01)
        running -= 1
        return rows

    assert job.run(ITEMS, checkpoint=place).completed == 200
    assert most == 16
    assert len(loops) == 1


def test_arun_uses_the_callers_loop_and_leaves_it_free(place: Path) -> None:
    async def main() -> None:
        loop, ticks = asyncio.get_running_loop(), 0

        @resumable_task(key="id", batch_size=10, concurrency=2)
        async def job(rows: list[Any]) -> list[Any]:
            assert asyncio.get_running_loop() is loop
            await asyncio.sleep(0.005)
            return rows

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.001)
                ticks += 1

        ticker = asyncio.create_task(tick())
        assert (await job.arun(ITEMS, checkpoint=place)).completed == 200
        ticker.cancel()
        assert ticks > 5

    asyncio.run(main())


@pytest.mark.parametrize("pause", [0, 0.0005])
def test_items_may_be_an_async_iterable(place: Path, pause: float) -> None:
    assert asyncio.run(echo.arun(items(pause=pause), checkpoint=place)).completed == 200
    assert echo.run(items(), checkpoint=place).skipped == 200


def test_an_error_of_async_items_is_raised_and_keeps_what_was_done(place: Path) -> None:
    async def broken() -> AsyncIterator[dict[str, Any]]:
        async for item in items(25):
            yield item
        raise TimeoutError("the source broke")

    with pytest.raises(TimeoutError, match="the source broke"):
        asyncio.run(echo.arun(broken(), checkpoint=place))
    assert echo.run(ITEMS, checkpoint=place).skipped == 20


def test_a_plain_handler_runs_in_arun(place: Path) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id")
    assert asyncio.run(job.arun(ITEMS, checkpoint=place)).completed == 200


def test_run_inside_a_running_loop_works_for_a_list(place: Path) -> None:
    async def main() -> int:
        return echo.run(ITEMS, checkpoint=place).completed

    assert asyncio.run(main()) == 200


def test_run_of_async_items_inside_a_running_loop_says_what_to_do(place: Path) -> None:
    async def main() -> None:
        echo.run(items(), checkpoint=place)

    with pytest.raises(UsageError, match="await"):
        asyncio.run(main())


def test_a_cancel_commits_what_finishes_and_the_next_run_resumes(place: Path) -> None:
    called: list[int] = []

    @resumable_task(key="id", batch_size=1, concurrency=4)
    async def slow(rows: list[Any]) -> list[Any]:
        called.append(rows[0]["id"])
        await asyncio.sleep(0.05)
        return rows

    async def main() -> None:
        task = asyncio.create_task(slow.arun(ITEMS, checkpoint=place))
        while len(called) < 20:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    finished = len(called)
    assert finished < 200
    result = slow.with_options(concurrency=100).run(ITEMS, checkpoint=place)
    assert result.skipped == finished
    assert sorted(result.table().column("id").to_pylist()) == list(range(200))


def test_a_second_cancel_does_not_wait_for_handlers(place: Path) -> None:
    @resumable_task(key="id", batch_size=1)
    async def hangs(rows: list[Any]) -> list[Any]:
        await asyncio.sleep(3_600)
        return rows

    async def main() -> None:
        task = asyncio.create_task(hangs.arun(ITEMS, checkpoint=place))
        await asyncio.sleep(0.3)
        task.cancel()
        await asyncio.sleep(0.2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 20  # far from the grace of 25 s and the hour


def test_a_timeout_around_a_run_is_a_timeout(place: Path) -> None:
    @resumable_task(key="id", batch_size=1, concurrency=2, grace_seconds=5)
    async def slow(rows: list[Any]) -> list[Any]:
        await asyncio.sleep(0.2)
        return rows

    async def main() -> None:
        async with asyncio.timeout(0.3):
            await slow.arun(ITEMS, checkpoint=place)

    with pytest.raises(TimeoutError):
        asyncio.run(main())


def test_a_cancel_inside_the_handler_is_a_failure_and_not_a_silence(place: Path) -> None:
    @resumable_task(key="id", batch_size=10)
    async def job(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] == 50:
            raise asyncio.CancelledError
        return rows

    with pytest.raises(JobFailed, match="1 × CancelledError"):
        job.run(ITEMS, checkpoint=place)


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.mark.parametrize("kind", ["threads", "loop"])
def test_handlers_see_the_callers_context(kind: str, place: Path) -> None:
    seen: set[str] = set()

    async def coroutine(rows: list[Any]) -> list[Any]:
        seen.add(VARIABLE.get())
        VARIABLE.set("changed by a batch")
        return rows

    def function(rows: list[Any]) -> list[Any]:
        seen.add(VARIABLE.get())
        VARIABLE.set("changed by a batch")
        return rows

    token = VARIABLE.set("the caller's")
    handler = function if kind == "threads" else coroutine
    resumable_task(handler, key="id").run(ITEMS, checkpoint=place)
    VARIABLE.reset(token)
    assert seen == {"the caller's"}


def test_ctrl_c_that_is_switched_off_stays_so_in_an_event_loop(tmp_path: Path) -> None:
    @resumable_task(name="job", results="none", batch_size=1)
    async def job(items: list[int]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        run = asyncio.run(job.arun([1, 2, 3], checkpoint=tmp_path / "c"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert run.completed == 3
