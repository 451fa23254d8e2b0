"""An event loop that other threads give coroutines to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextvars import Context
from typing import Any, TypeVar

T = TypeVar("T")
_CANCEL_SECONDS = 5


class EventLoop:
    """The caller's event loop, or one of its own in a daemon thread, and what it has been given."""

    def __init__(self, callers: asyncio.AbstractEventLoop | None = None) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._thread: threading.Thread | None = None
        self._loop = callers or asyncio.new_event_loop()
        if callers is None:
            self._thread = threading.Thread(target=self._run, name="resumable-loop", daemon=True)
            self._thread.start()

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

    @property
    def closed(self) -> bool:
        return self._loop.is_closed()

    def close(self, *, abandon: bool) -> None:
        """Cancel what still runs, and end the loop if it is our own."""
        if self._thread is None:
            self._loop.call_soon_threadsafe(self._cancel)
            return
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop)
        if not abandon:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _shut_down(self) -> None:
        self._cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_CANCEL_SECONDS)
        # Asynchronous clients may have left generators open on our loop.
        await self._loop.shutdown_asyncgens()
        self._loop.stop()
