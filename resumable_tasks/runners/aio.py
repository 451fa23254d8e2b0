"""Batches on an event loop: for coroutine functions."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from contextvars import copy_context

from resumable_tasks import failures, rows
from resumable_tasks.model import Batch, Outcome
from resumable_tasks.runners.base import Runner, Work, current, outcome_of


class AsyncRunner(Runner):
    """Coroutine functions, up to ``concurrency`` at once, on one event loop.

    The loop is the caller's where there is one, else a loop of the runner's own in a thread.
    """

    def __init__(self, concurrency: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(concurrency)
        self._callers_loop = loop

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: threading.Event) -> None:
        self._work, self._done, self._stopping = work, done, stopping
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread: threading.Thread | None = None
        self._loop = self._callers_loop or asyncio.new_event_loop()
        if self._callers_loop is None:
            self._thread = threading.Thread(
                target=self._run_loop, name="resumable-loop", daemon=True
            )
            self._thread.start()
        self._slots = asyncio.Semaphore(self.concurrency)
        self._context = copy_context()

    def submit(self, batch: Batch) -> None:
        self._loop.call_soon_threadsafe(self._spawn, batch)

    def close(self, *, abandon: bool) -> None:
        if self._thread is None:
            self._loop.call_soon_threadsafe(self._cancel)
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        if not abandon:
            self._thread.join()

    def _run_loop(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _spawn(self, batch: Batch) -> None:
        task = self._loop.create_task(self._handle(batch), context=self._context.copy())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, batch: Batch) -> None:
        outcome = Outcome(batch, dropped=True)
        try:
            async with self._slots:
                if not self._stopping.is_set():
                    outcome = await aexecute(self._work, batch, self._stopping)
        finally:
            self._done(outcome)

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _shut_down(self) -> None:
        self._cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        # Asynchronous clients may have left generators open on our loop.
        await self._loop.shutdown_asyncgens()
        self._loop.stop()


async def aexecute(work: Work, batch: Batch, stopping: threading.Event) -> Outcome:
    """`execute` for a coroutine handler."""
    began = time.perf_counter()
    for attempt in range(1, work.retry.retries + 2):
        try:
            current.set((batch, attempt))
            returned = await work.handler(batch.items)
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
