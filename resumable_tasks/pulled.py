"""Async items as plain ones: read on their own event loop, handed to the engine's thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import Any


class Pulled:
    """An async iterable, read from the engine's thread."""

    _CHUNK = 256
    _SECONDS = 0.05

    def __init__(self, items: AsyncIterable[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._items = items
        self._loop = loop
        self._stop: Callable[[], bool] = lambda: False

    def stop_when(self, stop: Callable[[], bool]) -> None:
        """End, rather than wait for the source's next item, once this is true."""
        self._stop = stop

    def __iter__(self) -> Iterator[Any]:
        source = aiter(self._items)
        while True:
            future = asyncio.run_coroutine_threadsafe(self._some(source), self._loop)
            while True:
                try:
                    found, end = future.result(timeout=self._SECONDS)
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
        until = time.monotonic() + self._SECONDS
        try:
            while len(found) < self._CHUNK and time.monotonic() < until:
                found.append(await anext(source))
        except Exception as error:  # noqa: BLE001 - raised after the items before it
            return found, error
        return found, None


def in_event_loop() -> bool:
    """Whether an event loop is running in this thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
