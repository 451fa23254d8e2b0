"""The flows that the tests kill, cancel, suspend, edit and run twice.

As a script, ``python flow.py '{"place": …}' job``, it is one flow run; deployments load its flows
by name. Needs nothing of the tests' package, so that a copy of it can be edited.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from prefect import flow
from prefect.flow_runs import suspend_flow_run
from prefect.runtime import flow_run

from resumable_tasks import ResumableTask, resumable_task

VERSION = "1"
WRITTEN = "first"


def note(place: str, what: str, **more: Any) -> None:
    """One write to the end of a file, which no other process's can come into."""
    line = json.dumps({"what": what, "pid": os.getpid(), "at": time.time(), **more}) + "\n"
    handle = os.open(os.path.join(place, "notes"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, line.encode())
    os.close(handle)


def rows(keys: list[int]) -> list[dict[str, int]]:
    return [{"id": key, "value": key * key + 7} for key in keys]


def made(
    place: str, seconds: float, slow: dict[str, float], awaited: bool, options: dict[str, Any]
) -> ResumableTask[Any]:
    """The job. A batch takes ``seconds``, but for those with a key that ``slow`` names.

    None takes any time once there is a file named ``hurry``.
    """

    def begin(items: list[dict[str, int]]) -> tuple[list[int], float]:
        keys = [item["id"] for item in items]
        note(place, "began", keys=keys, written=WRITTEN)
        if os.path.exists(os.path.join(place, "hurry")):
            return keys, 0
        return keys, max((slow[str(key)] for key in keys if str(key) in slow), default=seconds)

    def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
        keys, pause = begin(items)
        time.sleep(pause)
        note(place, "ended", keys=keys)
        return rows(keys)

    async def ahandle(items: list[dict[str, int]]) -> list[dict[str, int]]:
        keys, pause = begin(items)
        await asyncio.sleep(pause)
        note(place, "ended", keys=keys)
        return rows(keys)

    handler: Callable[..., Any] = ahandle if awaited else handle
    options = {"batch_size": 5, "concurrency": 2, **options}
    return resumable_task(handler, name="recovered", key="id", version=VERSION, **options)


def begun(place: str) -> None:
    note(place, "flow", id=str(flow_run.id), cwd=os.getcwd())


def source(items: int) -> Iterator[dict[str, int]]:
    for key in range(items):
        yield {"id": key}


@flow
def job(
    place: str,
    items: int = 100,
    seconds: float = 0.2,
    slow: dict[str, float] = {},  # noqa: B006 - Prefect takes it from the parameters
    checkpoint: str = "",
    awaited: bool = False,
    options: dict[str, Any] = {},  # noqa: B006
) -> None:
    """One job over ``items`` items; generated, so that the main thread has them to read."""
    begun(place)
    task = made(place, seconds, slow, awaited, options)
    task.run(source(items), checkpoint=checkpoint or os.path.join(place, "checkpoint"))


@flow
async def ajob(
    place: str,
    items: int = 100,
    seconds: float = 0.2,
    slow: dict[str, float] = {},  # noqa: B006
    awaited: bool = True,
    options: dict[str, Any] = {},  # noqa: B006
) -> None:
    """The same, awaited."""
    begun(place)
    task = made(place, seconds, slow, awaited, options)
    try:
        await task.arun(source(items), checkpoint=os.path.join(place, "checkpoint"))
    finally:
        note(place, "left")


@flow
def two_jobs(place: str, items: int = 20, seconds: float = 0.05) -> None:
    """Suspends itself between two jobs; the second continues where the first has ended."""
    begun(place)
    task = made(place, seconds, {}, False, {})
    task.run(source(items), checkpoint=os.path.join(place, "checkpoint"))
    suspend_flow_run(key="approval", timeout=600)
    task.run(source(2 * items), checkpoint=os.path.join(place, "checkpoint"))


@flow
def many(place: str, batches: int = 20_000, seconds: float = 0.001) -> None:
    """Very many short batches of large items, of which only the memory is noted."""

    def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
        time.sleep(seconds)
        return rows([item["id"] for item in items])

    begun(place)
    for name, count in ("first", 100), ("many", batches):
        task = resumable_task(handle, name=name, key="id", batch_size=1)
        large = ({**item, "text": str(item["id"]) * 2_000} for item in source(count))
        task.run(large, checkpoint=os.path.join(place, name))
        with open("/proc/self/statm") as file:
            pages = int(file.read().split()[1])
        note(place, "memory", bytes=pages * os.sysconf("SC_PAGE_SIZE"))


if __name__ == "__main__":
    {"job": job, "many": many}[sys.argv[2]](**json.loads(sys.argv[1]))
