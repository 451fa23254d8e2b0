"""Whatever a handler raises costs its own items, and a group of errors is what its members are."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import JobFailed, Retry, resumable_task
from resumable_tasks.runners.groups import chains
from resumable_tasks.runners.http_signs import is_throttling, looks_like_an_outage, seconds_told

ITEMS = [{"id": i} for i in range(100)]
BAD = 57


class Panic(BaseException):
    """As PyO3's ``PanicException``."""


class Told(Exception):
    def __init__(self, seconds: float) -> None:
        super().__init__(f"in {seconds:g} s")
        self.retry_after = seconds


class Status(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status_code = status


class PanicsWhenRead:
    """A result whose fields an extension cannot read."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("__arrow"):
            raise Panic("cannot export")
        return object.__getattribute__(self, name)


def raises(error: BaseException) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


KINDS: dict[str, Callable[[], Any]] = {
    "Panic": raises(Panic("not yet implemented")),
    "SystemExit": lambda: sys.exit(3),
    "exit 0": lambda: sys.exit(0),
    "CancelledError": raises(asyncio.CancelledError()),
    "group": raises(ExceptionGroup("unhandled errors in a TaskGroup", [ValueError("bad page")])),
    "base group": raises(BaseExceptionGroup("two", [Panic("a"), ValueError("b")])),
    "result": PanicsWhenRead,
}
NAMES = {"exit 0": "SystemExit", "group": "ValueError", "base group": "BaseExceptionGroup"}


def act_on(rows: list[Any], act: Callable[[], Any]) -> Any:
    return act() if any(row["id"] == BAD for row in rows) else rows


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("coroutine", [False, True], ids=["plain", "coroutine"])
def test_whatever_a_handler_raises_fails_its_item_alone(
    place: Path, kind: str, coroutine: bool
) -> None:
    def plain(rows: list[Any]) -> Any:
        return act_on(rows, KINDS[kind])

    async def awaits(rows: list[Any]) -> Any:
        await asyncio.sleep(0)
        return act_on(rows, KINDS[kind])

    job = resumable_task(awaits if coroutine else plain, name="job", key="id", batch_size=5)
    with pytest.raises(JobFailed) as caught:
        job.run(ITEMS, checkpoint=place)
    result = caught.value.result
    assert result is not None
    assert (result.completed, [failure.key for failure in result.failures]) == (99, [BAD])
    if kind != "result":
        assert result.failures[0].error == NAMES.get(kind, kind)
        assert "exit" not in kind or "sys.exit" in result.failures[0].message


async def cancels_itself() -> None:
    task = asyncio.current_task()
    assert task is not None
    task.cancel()
    await asyncio.sleep(0)


async def awaits_a_cancelled_task() -> None:
    task = asyncio.ensure_future(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task


async def fails_in_a_group() -> None:
    async def fail() -> None:
        raise ConnectionError("page 2")

    async with asyncio.TaskGroup() as group:
        group.create_task(fail())
        group.create_task(asyncio.sleep(60))


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (cancels_itself, "CancelledError"),
        (awaits_a_cancelled_task, "CancelledError"),
        (fails_in_a_group, "ConnectionError"),
    ],
)
@pytest.mark.parametrize("timeout", [None, 30.0])
def test_a_cancel_of_the_handlers_own_is_no_order_to_the_run(
    place: Path, act: Callable[[], Any], error: str, timeout: float | None
) -> None:
    async def handler(rows: list[Any]) -> Any:
        if any(row["id"] == BAD for row in rows):
            await act()
        return rows

    job = resumable_task(handler, name="job", key="id", batch_size=5, timeout=timeout)
    with pytest.raises(JobFailed) as caught:
        job.run(ITEMS, checkpoint=place)
    assert caught.value.result is not None
    assert caught.value.result.completed == 99
    assert caught.value.result.failures[0].error == error


def test_an_interrupt_in_a_handler_ends_the_run_and_keeps_what_is_in_flight(place: Path) -> None:
    inside = threading.Barrier(2)

    def handler(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] < 2:
            inside.wait(30)
        if rows[0]["id"] == 0:
            raise KeyboardInterrupt
        return rows

    job = resumable_task(handler, name="job", key="id", batch_size=1, concurrency=2)
    with pytest.raises(KeyboardInterrupt):
        job.run([*ITEMS], checkpoint=place)
    again = job.run([{"id": 1}], checkpoint=place)
    assert again.skipped == 1


def test_a_group_is_what_its_members_are() -> None:
    group = ExceptionGroup("g", [ValueError(), ExceptionGroup("h", [Told(3), Told(7)])])
    assert seconds_told(group) == 7.0
    assert is_throttling(ExceptionGroup("g", [ValueError(), Status(429)]))
    assert looks_like_an_outage(ExceptionGroup("g", [ValueError(), Status(503)]))
    assert not looks_like_an_outage(ExceptionGroup("g", [ValueError(), KeyError()]))
    wrapped = RuntimeError()
    wrapped.__cause__ = group
    assert seconds_told(wrapped) == 7.0
    assert len(chains(ExceptionGroup("g", [ValueError() for _ in range(100_000)]))) <= 1_000


@pytest.mark.parametrize("on", [ConnectionError, lambda error: isinstance(error, ConnectionError)])
def test_a_group_is_retried_if_a_member_is(place: Path, on: Any) -> None:
    calls = []

    def handler(rows: list[Any]) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ExceptionGroup("g", [ConnectionError()])
        return rows

    job = resumable_task(handler, name="job", key="id", retries=Retry(1, delay=0, on=on))
    assert job.run(ITEMS[:5], checkpoint=place).completed == 5
    assert len(calls) == 2


TWO_RUNS = """
import asyncio, sys
from resumable_tasks import resumable_task

gate = asyncio.Semaphore(1)  # belongs to the loop on which it is first waited for

@resumable_task(key="id", batch_size=1, concurrency=4)
async def ask(rows):
    async with gate:
        await asyncio.sleep(0.001)
    return rows

async def given():
    for number in range(10):
        yield {"id": number}

for part in "abc":
    items = given() if part == "b" else [{"id": number} for number in range(10)]
    ask.run(items, checkpoint=sys.argv[1], partition=part)
"""


def test_what_belongs_to_an_event_loop_serves_every_run_of_a_process(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", TWO_RUNS, tmp_path / "c"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
