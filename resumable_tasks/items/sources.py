"""Items read where they belong, on an event loop or in the caller's thread, for the engine's."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.signals import ItemsLeft, read

if TYPE_CHECKING:
    import asyncio

_CHUNK = 256
_SECONDS = 0.05


class Pulled:
    """An async iterable, read from the engine's thread."""

    def __init__(self, items: AsyncIterable[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._items = items
        self._loop = loop
        self._stop: Callable[[], bool] = lambda: False

    def stop_when(self, stop: Callable[[], bool]) -> None:
        """End, rather than wait for the source's next item, once this is true."""
        self._stop = stop

    def __iter__(self) -> Iterator[Any]:
        import asyncio

        source = aiter(self._items)
        while True:
            future = asyncio.run_coroutine_threadsafe(self._some(source), self._loop)
            while True:
                try:
                    found, end = future.result(timeout=_SECONDS)
                    break
                except TimeoutError:
                    if self._stop():
                        future.cancel()
                        return
            yield from found
            if isinstance(end, StopAsyncIteration):
                return
            if end is not None:
                raise end

    async def _some(self, source: AsyncIterator[Any]) -> tuple[list[Any], Exception | None]:
        """As many items as come at once, so that each does not cost a change of threads.

        And how the source has ended, if it has: the items before an error are to be handled.
        """
        found: list[Any] = []
        until = time.monotonic() + _SECONDS
        try:
            while len(found) < _CHUNK and time.monotonic() < until:
                found.append(await anext(source))
        except Exception as error:  # noqa: BLE001 - raised after the items before it
            return found, error
        return found, None


class Handed:
    """An iterable that the caller's thread reads, in `serve`, for the engine's thread.

    A generator may hold what belongs to its thread, such as a cursor of SQLite.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = items
        self._source: Iterator[Any] | None = None
        self._wanted: SimpleQueue[None] = SimpleQueue()
        # An item in a tuple; how the source has ended; None: so much for now.
        self._given: SimpleQueue[tuple[Any] | Exception | None] = SimpleQueue()
        self._stop: Callable[[], bool] = lambda: False

    def stop_when(self, stop: Callable[[], bool]) -> None:
        """End, rather than wait for the next item, once this is true."""
        self._stop = stop

    def __iter__(self) -> Iterator[Any]:
        """In the engine's thread."""
        while True:
            self._wanted.put(None)
            while True:
                try:
                    found = self._given.get(timeout=_SECONDS)
                except Empty:
                    if self._stop():
                        return
                    continue
                if found is None:
                    break
                if isinstance(found, StopIteration):
                    return
                if isinstance(found, Exception):
                    raise found
                yield found[0]

    def serve(self, seconds: float) -> None:
        """In the caller's thread: read some items if they are wanted within this time.

        Each is handed over when it is there: the next may take long.
        """
        try:
            self._wanted.get(timeout=seconds)
        except Empty:
            return
        end: Exception | None = None
        until = time.monotonic() + _SECONDS
        try:
            if self._source is None:
                self._source = iter(self._items)
            for _ in range(_CHUNK):
                self._given.put((read(partial(next, self._source)),))
                if time.monotonic() >= until:
                    break
        except ItemsLeft:  # by a signal, which the run has been told of
            end = StopIteration()
        except Exception as error:  # noqa: BLE001 - raised in the other thread, after the items
            end = error
        self._given.put(end)


def in_event_loop() -> bool:
    """True if an event loop is running in this thread."""
    asyncio = sys.modules.get("asyncio")  # where nobody has loaded it no loop is running
    return asyncio is not None and asyncio._get_running_loop() is not None
