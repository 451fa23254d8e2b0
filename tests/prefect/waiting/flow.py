"""Flows whose job is submitted to a service, and which leave until it has done its work."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.runtime import flow_run

from resumable_tasks import resumable_task, scheduled_date, scheduled_time
from resumable_tasks.runners.submitted.protocol import Ended, Pending
from tests.submitted.service import FileService, items


class Slow(FileService):
    """Says when to look again."""

    look = 1.0

    def poll(self, handle: Any) -> Pending | Ended:
        found = super().poll(handle)
        return Pending(found.progress, self.look) if isinstance(found, Pending) else found


def note(place: str, what: str, **more: Any) -> None:
    with open(os.path.join(place, "notes"), "a") as notes:
        notes.write(json.dumps({"what": what, "pid": os.getpid(), **more}) + "\n")


def began(place: str) -> None:
    day, time = str(scheduled_date("Asia/Tokyo")), str(scheduled_time())
    note(place, "flow", id=str(flow_run.id), day=day, time=time)


def made(place: str, look: float) -> Any:
    service = Slow(Path(place) / "service", takes=None)
    service.look = look
    return resumable_task(service, name="waits", key="id", batch_size=10, concurrency=2)


def run(place: str, count: int, look: float, **more: Any) -> None:
    job = made(place, look)
    result = job.run(items(count), checkpoint=os.path.join(place, "checkpoint"), **more)
    note(place, "done", completed=result.completed)


@flow
def waits(place: str, count: int = 20, look: float = 1.0) -> None:
    began(place)
    run(place, count, look)


@flow
async def awaits(place: str, count: int = 20, look: float = 1.0) -> None:
    began(place)
    where = os.path.join(place, "checkpoint")
    result = await made(place, look).arun(items(count), checkpoint=where)
    note(place, "done", completed=result.completed)


@flow(retries=1, retry_delay_seconds=1)
def fails_once(place: str, look: float = 1.0) -> None:
    """Comes back some times, and fails after that, the first time."""
    began(place)
    run(place, 20, look)
    failed = Path(place) / "failed"
    if not failed.exists():
        failed.touch()
        raise RuntimeError("the first time")


@flow
def inner(place: str, look: float, wait: Any) -> None:
    run(place, 10, look, wait=wait)


@task
def inside(place: str, look: float, wait: Any) -> None:
    run(place, 10, look, wait=wait)


@flow
def elsewhere(place: str, how: str, wait: Any = None) -> None:
    """In a subflow or a task."""
    began(place)
    {"subflow": inner, "task": inside}[how](place, 1.0, wait)


if __name__ == "__main__":
    asyncio.run(awaits(os.environ["PLACE"]))
