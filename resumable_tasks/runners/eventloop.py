"""Runs batches on an event loop, for coroutine functions."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from contextvars import Context, copy_context
from typing import Any, TypeVar

from resumable_tasks.base.clock import held_up
from resumable_tasks.base.steps import adrive
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.handle import (
    Answer,
    Call,
    Enter,
    Noted,
    Pause,
    Raised,
    Step,
    Work,
    calls,
    failed_call,
)
from resumable_tasks.runners.limits import Entry
from resumable_tasks.runners.outcome import Dropped, Fatal, Outcome
from resumable_tasks.runners.retries import overdue
from resumable_tasks.runners.usage import Load

_POLL_SECONDS = 0.5
T = TypeVar("T")
_CANCEL_SECONDS = 5
_ANSWER_SECONDS = 0.5


class EventLoop:
    """The caller's event loop, or the one of this process, with the tasks started on it.

    The loop of this process outlives a run, because objects that a program makes once for all runs
    (the client of a service, a semaphore) are bound to the loop on which they were first used.
    """

    def __init__(self, callers: asyncio.AbstractEventLoop | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._callers = callers is not None
        self._loop = callers or long_lived()

    def spawn(self, call: Callable[[], Coroutine[Any, Any, T]], context: Context) -> Future[T]:
        """Start the coroutine that ``call`` returns, in this context; return a future of it.

        Raises ``RuntimeError`` if the loop is closed.
        """
        found: Future[T] = Future()

        def begin() -> None:
            task = self._loop.create_task(call(), context=context)
            self._tasks.add(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            if task.cancelled():
                found.cancel()
            elif (error := task.exception()) is not None:
                found.set_exception(error)
            else:
                found.set_result(task.result())

        self._loop.call_soon_threadsafe(begin)
        return found

    def close(self, *, abandon: bool) -> None:
        """Cancel the tasks that still run."""
        if self._callers:
            self._loop.call_soon_threadsafe(self._cancel)
            return
        ended = asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        if not abandon:
            ended.result()
        elif not _answers(self._loop):
            _leave(self._loop)  # a coroutine blocks it

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _shut_down(self) -> None:
        self._cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCEL_SECONDS)


_lock = threading.Lock()
_loop: asyncio.AbstractEventLoop | None = None


def long_lived() -> asyncio.AbstractEventLoop:
    """Return the event loop of this process, which runs in a daemon thread until the end."""
    global _loop
    with _lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="resumable-loop", daemon=True).start()
        return _loop


def _answers(loop: asyncio.AbstractEventLoop) -> bool:
    answered = threading.Event()
    loop.call_soon_threadsafe(answered.set)
    return answered.wait(_ANSWER_SECONDS)


def _leave(loop: asyncio.AbstractEventLoop) -> None:
    """Give up this loop: the next run makes another one."""
    global _loop
    with _lock:
        if _loop is loop:
            _loop = None


def _after_fork() -> None:
    """Forget the loop in a forked child, which does not have its thread."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


class AsyncRunner(Runner):
    """Runs coroutine functions, up to ``concurrency`` at once, on one event loop.

    It uses the caller's loop if there is one, else the loop of this process.
    """

    def __init__(self, concurrency: int, loop: asyncio.AbstractEventLoop | None = None) -> None:
        super().__init__(concurrency)
        self._callers_loop = loop

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        self._work, self._done, self._stopping = work, done, stopping
        self._loop = EventLoop(self._callers_loop)
        self._slots = asyncio.Semaphore(self.concurrency)
        self._context = copy_context()

    def submit(self, batch: Batch) -> None:
        self._loop.spawn(functools.partial(self._handle, batch), self._context.copy())

    def close(self, *, abandon: bool) -> None:
        self._loop.close(abandon=abandon)

    async def _handle(self, batch: Batch) -> None:
        outcome: Outcome = Dropped(batch)
        try:
            async with self._slots:
                if not self._stopping.is_set():
                    outcome = await aexecute(self._work, batch, self._stopping, self.calls)
        finally:
            self._done(outcome)


async def aexecute(
    work: Work, batch: Batch, stopping: Stopping, running: dict[int, float] | None = None
) -> Outcome:
    """`execute` for a coroutine handler."""

    async def do(step: Step) -> Answer:
        match step:
            case Call():
                with Noted(running, batch):
                    return await _call(step, stopping)
            case Pause():
                return Dropped(batch) if await _wait(step.seconds, stopping) else None
            case Enter():
                return await _enter(work, step, stopping)

    return await adrive(calls(work, batch), do)


async def _call(call: Call, stopping: Stopping) -> Outcome | Raised:
    items = call.begin()
    try:
        value = await _within_timeout(call, items, stopping)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            return Dropped(call.batch)
        # This task was not cancelled: the handler cancelled itself or something it awaited.
        failed = call.raised(error)
        return failed if isinstance(failed, Fatal) else failed_call(call.work, call.batch, failed)
    except BaseException as error:  # noqa: BLE001 - becomes the items' failure
        return call.raised(error)
    return Dropped(call.batch) if value is _NOT_BEGUN else call.returned(value)


_NOT_BEGUN = object()


async def _handled(call: Call, items: Any, stopping: Stopping) -> Any:
    """Await the handler in its own task, so that cancelling that task does not cancel this one.

    Returns `_NOT_BEGUN` if the run has stopped since the task was made, because another coroutine
    blocked the loop in between. Inside the task, errors are returned as values, because a
    ``SystemExit`` in a task would end its loop.
    """

    async def contained() -> tuple[Any, BaseException | None]:
        if stopping.is_set():
            return _NOT_BEGUN, None
        try:
            return await call.aread(call.work.handler(items), stopping), None
        except GeneratorExit:
            raise
        except BaseException as error:  # noqa: BLE001 - raised below
            return None, error

    value, error = await asyncio.create_task(contained())
    if error is not None:
        raise error
    return value


async def _within_timeout(call: Call, items: Any, stopping: Stopping) -> Any:
    timeout = call.work.timeout
    if timeout is None:
        return await _handled(call, items, stopping)
    try:
        async with asyncio.timeout(None) as limit:
            with _ending(limit, timeout):
                return await _handled(call, items, stopping)
    except TimeoutError as error:
        if not limit.expired():
            raise  # raised by the handler itself
        raise overdue(timeout) from error


@contextlib.contextmanager
def _ending(limit: asyncio.Timeout, seconds: float) -> Iterator[None]:
    """End ``limit`` after ``seconds``.

    If the loop was held up past that time, the limit is extended by the delay, up to twice the
    seconds, so that answers that arrived meanwhile are read first.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def wait(at: float, left: float) -> None:
        nonlocal timer
        timer = loop.call_at(at, look, at, left)

    def look(at: float, left: float) -> None:
        if more := min(held_up(loop.time() - at), left):
            wait(loop.time() + more, left - more)
        else:
            limit.reschedule(at)

    wait(loop.time() + seconds, seconds)
    try:
        yield
    finally:
        timer.cancel()


async def _enter(work: Work, step: Enter, stopping: Stopping) -> Entry | Dropped | Fatal:
    assert work.limits is not None
    batch = step.batch
    try:
        return await work.limits.aenter(Load.of(step.left), stopping, step.waits) or Dropped(batch)
    except Exception as broken:  # noqa: BLE001 - a broken limit is not an item's fault
        return Fatal(batch, broken)


async def _wait(seconds: float, stopping: Stopping) -> bool:
    """Wait for ``seconds`` or until the run stops; return True if it stops."""
    until = time.monotonic() + seconds
    while not stopping.is_set():
        left = until - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(left, _POLL_SECONDS))
    return True
