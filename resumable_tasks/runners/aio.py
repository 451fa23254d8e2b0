"""Batches on an event loop: for coroutine functions."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.base import Handling, Runner, Work, ended_by
from resumable_tasks.runners.loop import EventLoop
from resumable_tasks.runners.outcome import Outcome
from resumable_tasks.runners.retries import GiveUp, overdue

_POLL_SECONDS = 0.5


class AsyncRunner(Runner):
    """Coroutine functions, up to ``concurrency`` at once, on one event loop.

    The loop is the caller's where there is one, else a loop of the runner's own in a thread.
    """

    def __init__(self, concurrency: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(concurrency)
        self._callers_loop = loop

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: threading.Event) -> None:
        self._work, self._done, self._stopping = work, done, stopping
        self._loop = EventLoop(self._callers_loop)
        self._slots = asyncio.Semaphore(self.concurrency)
        self._context = copy_context()

    def submit(self, batch: Batch) -> None:
        self._loop.spawn(functools.partial(self._handle, batch), self._context.copy())

    def close(self, *, abandon: bool) -> None:
        self._loop.close(abandon=abandon)

    async def _handle(self, batch: Batch) -> None:
        outcome = Outcome(batch, dropped=True)
        try:
            async with self._slots:
                if not self._stopping.is_set():
                    outcome = await aexecute(self._work, batch, self._stopping)
        finally:
            self._done(outcome)


async def aexecute(work: Work, batch: Batch, stopping: threading.Event) -> Outcome:
    """`execute` for a coroutine handler."""
    handling = Handling(work, batch)
    while True:
        call = error = None
        try:
            if work.limits is not None:
                call = await work.limits.aenter(len(batch), stopping)
                if call is None:
                    return Outcome(batch, dropped=True)
        except Exception as broken:  # noqa: BLE001 - a limit that is not there is no item's fault
            return Outcome(batch, fatal=broken)
        try:
            handling.begin()
            try:
                returned = await _call(work, batch)
            finally:
                handling.end()
            return handling.outcome(returned)
        except Exception as raised:  # noqa: BLE001 - becomes the items' failure
            error = raised
        except asyncio.CancelledError as raised:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return Outcome(batch, dropped=True)
            # Not ours: something inside the handler was cancelled.
            return handling.failed(raised)
        except BaseException as raised:  # noqa: BLE001 - ends the run, by the engine
            return ended_by(batch, raised)
        finally:
            if call is not None and work.limits is not None:
                work.limits.leave(call, error)
        try:
            pause = handling.pause_after(error)
        except GiveUp as why:
            stopping.set()  # now, and not when the engine sees it: others are on their way
            return Outcome(batch, dropped=True, why_dropped=str(why))
        except Exception as broken:  # noqa: BLE001 - retry_delay= is anybody's code
            return Outcome(batch, fatal=broken)
        if pause is None:
            return handling.failed(error)
        handling.count_failed_call(error)
        if await _wait(pause, stopping):
            return Outcome(batch, dropped=True)


async def _wait(seconds: float, stopping: threading.Event) -> bool:
    """Wait; True if the run is stopping, so that there will be no next attempt."""
    until = time.monotonic() + seconds
    while not stopping.is_set():
        left = until - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(left, _POLL_SECONDS))
    return True


async def _call(work: Work, batch: Batch) -> Any:
    if work.timeout is None:
        return await work.handler(batch.items)
    try:
        async with asyncio.timeout(work.timeout) as limit:
            return await work.handler(batch.items)
    except TimeoutError as error:
        if not limit.expired():
            raise  # the handler's own
        raise overdue(work.timeout) from error
