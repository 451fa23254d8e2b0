"""Batches on an event loop: for coroutine functions."""

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
    """The caller's event loop, or the one of this process, and what it has been given.

    The loop of this process outlives a run: what a program has made once for all runs, such as the
    client of a service or a semaphore, belongs to the loop that it was first used on.
    """

    def __init__(self, callers: asyncio.AbstractEventLoop | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._callers = callers is not None
        self._loop = callers or long_lived()

    def spawn(self, call: Callable[[], Coroutine[Any, Any, T]], context: Context) -> Future[T]:
        """Start the coroutine that ``call`` gives, in this context; its outcome, as a future.

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
        """Cancel what still runs."""
        if self._callers:
            self._loop.call_soon_threadsafe(self._cancel)
            return
        ended = asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        if not abandon:
            ended.result()
        elif not _answers(self._loop):
            _leave(self._loop)  # to the coroutine that blocks it

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
    """The event loop of this process, in a daemon thread, for as long as the process lives."""
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
    """Have the next run make another loop."""
    global _loop
    with _lock:
        if _loop is loop:
            _loop = None


def _after_fork() -> None:
    """A child has the loop, and not its thread."""
    global _lock, _loop
    _lock, _loop = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


class AsyncRunner(Runner):
    """Coroutine functions, up to ``concurrency`` at once, on one event loop.

    The loop is the caller's where there is one, else that of the process in a thread.
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
        # Not ours: something inside the handler was cancelled, or the handler itself by its own.
        failed = call.raised(error)
        return failed if isinstance(failed, Fatal) else failed_call(call.work, call.batch, failed)
    except BaseException as error:  # noqa: BLE001 - becomes the items' failure
        return call.raised(error)
    return Dropped(call.batch) if value is _NOT_BEGUN else call.returned(value)


_NOT_BEGUN = object()


async def _handled(call: Call, items: Any, stopping: Stopping) -> Any:
    """The value of the handler, in a task of its own: a cancel of that one is no order to us.

    `_NOT_BEGUN` if the run has stopped since the task was made: another coroutine may have blocked
    the loop in between. What the handler raises is given back as a value, since ``SystemExit`` in
    a task ends its loop.
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
            raise  # the handler's own
        raise overdue(timeout) from error


@contextlib.contextmanager
def _ending(limit: asyncio.Timeout, seconds: float) -> Iterator[None]:
    """End ``limit`` after so many seconds.

    Where the loop was held up beyond them, it goes on for as long again, up to twice the seconds:
    what has come meanwhile is read first.
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
    except Exception as broken:  # noqa: BLE001 - a limit that is not there is no item's fault
        return Fatal(batch, broken)


async def _wait(seconds: float, stopping: Stopping) -> bool:
    """Wait; True if the run is stopping, so that there will be no next attempt."""
    until = time.monotonic() + seconds
    while not stopping.is_set():
        left = until - time.monotonic()
        if left <= 0:
            return False
        await asyncio.sleep(min(left, _POLL_SECONDS))
    return True
