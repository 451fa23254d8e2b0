"""Batches on an event loop: for coroutine functions."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import Any

from resumable_tasks import failures, rows
from resumable_tasks.model import Batch, Outcome
from resumable_tasks.runners.base import Runner, Work, current, outcome_of
from resumable_tasks.runners.loop import EventLoop


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
    began = time.perf_counter()
    for attempt in range(1, work.retry.retries + 2):
        try:
            current.set((batch, attempt))
            returned = await _call(work, batch)
            seconds = time.perf_counter() - began
            matched = rows.match(returned, batch, work.scheme, work.results)
        except Exception as error:  # noqa: BLE001 - becomes the items' failure
            pause = work.retry.pause(attempt, error)
            if pause is None or stopping.is_set():
                return Outcome(batch, failures=failures.whole_batch(batch, error, attempt))
            await asyncio.sleep(pause)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                return Outcome(batch, dropped=True)
            # Not ours: something inside the handler was cancelled.
            return Outcome(batch, failures=failures.whole_batch(batch, error, attempt))
        except BaseException as error:  # noqa: BLE001 - ends the run, by the engine
            return Outcome(batch, fatal=error)
        else:
            return outcome_of(work, batch, matched, attempt, seconds)
    raise AssertionError("the last attempt has no pause after it")


async def _call(work: Work, batch: Batch) -> Any:
    if work.timeout is None:
        return await work.handler(batch.items)
    try:
        async with asyncio.timeout(work.timeout) as limit:
            return await work.handler(batch.items)
    except TimeoutError as error:
        if not limit.expired():
            raise  # the handler's own
        raise TimeoutError(f"the handler took longer than timeout={work.timeout:g} s") from error
