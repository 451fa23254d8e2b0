"""Reads items on their event loop or in the caller's thread, and hands them to the engine's."""

from __future__ import annotations

import math
import sys
import threading
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextvars import copy_context
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from resumable_tasks.base.signals import ItemsLeft, read

if TYPE_CHECKING:
    import asyncio
    from concurrent.futures import Future

T = TypeVar("T")

_CHUNK = 256
_SECONDS = 0.05
_POLL_SECONDS = 0.2


class Fed:
    """Items that another thread reads and hands over one by one as they arrive."""

    def __init__(self) -> None:
        # An item in a tuple; an exception: the source has ended; None: no more for now.
        self._given: SimpleQueue[tuple[Any] | Exception | None] = SimpleQueue()
        self._asked = False
        self._end: Exception | None = None
        self._since = 0.0
        self._stop: Callable[[], bool] = lambda: False

    def stop_when(self, stop: Callable[[], bool]) -> None:
        """End the items, instead of waiting for the next one, once ``stop`` returns true."""
        self._stop = stop

    def _ask(self) -> None:
        """Request some more items, followed by None."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Any]:
        while found := self.take(1):
            yield found[0]

    def take(
        self, most: int, linger: float | None = None, holding: bool = False
    ) -> list[Any] | None:
        """Read ``most`` items, or fewer at the end or once the first has waited ``linger`` seconds.

        Returns None if that time is over and there is no item. ``holding``: the caller still has
        items from the call before; their waiting time counts. An error of the source is raised
        after its items.
        """
        found: list[Any] = []
        while len(found) < most and self._end is None:
            waits = linger is not None and (found or holding)
            until = self._since + linger if waits and linger is not None else None
            given = self._next(until)
            if given is None:
                return found or None
            if isinstance(given, Exception):
                self._end = given
            else:
                if not found and not holding:
                    self._since = time.monotonic()
                found.append(given[0])
        if not found and self._end is not None and not isinstance(self._end, StopIteration):
            raise self._end
        return found

    def _next(self, until: float | None) -> tuple[Any] | Exception | None:
        """Return an item, the end of the source, or None when the time ``until`` is over."""
        while True:
            if not self._asked:
                self._asked = True
                self._ask()
            left = math.inf if until is None else until - time.monotonic()
            try:
                given = self._given.get(timeout=max(0.0, min(left, _SECONDS)))
            except Empty:
                if self._stop():
                    return StopIteration()
                if left <= 0:
                    return None
                continue
            if given is not None:
                return given
            self._asked = False


class Pulled(Fed):
    """An async iterable that its event loop reads for the engine's thread."""

    def __init__(self, items: AsyncIterable[Any], loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._items = items
        self._loop = loop
        self._source: AsyncIterator[Any] | None = None
        self._reading: Future[None] | None = None

    def stop_when(self, stop: Callable[[], bool]) -> None:
        def stopped() -> bool:
            if not stop():
                return False
            if self._reading is not None:
                self._reading.cancel()
            return True

        super().stop_when(stopped)

    def _ask(self) -> None:
        import asyncio

        self._reading = asyncio.run_coroutine_threadsafe(self._some(), self._loop)

    async def _some(self) -> None:
        """Hand over all items that arrive within a moment, to switch threads less often."""
        end: Exception | None = None
        until = time.monotonic() + _SECONDS
        try:
            if self._source is None:
                self._source = aiter(self._items)
            for _ in range(_CHUNK):
                self._given.put((await anext(self._source),))
                if time.monotonic() >= until:
                    break
        except StopAsyncIteration:
            end = StopIteration()
        except Exception as error:  # noqa: BLE001 - raised in the other thread, after the items
            end = error
        self._given.put(end)


class Handed(Fed):
    """An iterable that the caller's thread reads, in `serve`, for the engine's thread.

    A generator may use objects that are bound to its thread, such as an SQLite cursor.
    """

    def __init__(self, items: Iterable[Any]) -> None:
        super().__init__()
        self._items = items
        self._source: Iterator[Any] | None = None
        self._wanted: SimpleQueue[None] = SimpleQueue()

    def _ask(self) -> None:
        self._wanted.put(None)

    def serve(self, seconds: float) -> None:
        """Read some items if they are requested within this time. Call it in the caller's thread.

        Each item is handed over at once, because the next may take long.
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
        except ItemsLeft:  # because of a signal, which has already requested the stop
            end = StopIteration()
        except Exception as error:  # noqa: BLE001 - raised in the other thread, after the items
            end = error
        self._given.put(end)


def accompany(
    work: Callable[[], T],
    items: Handed | None,
    request_stop: Callable[[str, bool], None],
    look: Callable[[], None] = lambda: None,
) -> tuple[T | None, BaseException | None, BaseException | None]:
    """Do the work in its own thread, while this thread reads items for it and receives signals.

    A host may end a program by an exception, raised wherever the main thread is. Here the main
    thread only waits, so the exception cannot interrupt the work: the work is asked to stop and has
    its grace period. ``look`` is called now and then, and may raise such an exception. Returns the
    work's value, its error, and that exception.
    """
    outcome: list[tuple[T | None, BaseException | None]] = []
    ended = threading.Event()

    def carry_out() -> None:
        try:
            outcome.append((work(), None))
        except BaseException as error:  # noqa: BLE001 - returned below, in the caller's thread
            outcome.append((None, error))
        finally:
            ended.set()

    threading.Thread(
        target=copy_context().run, args=(carry_out,), name="resumable-engine", daemon=True
    ).start()
    signal: BaseException | None = None
    while not outcome:
        try:
            while not ended.is_set():
                if items is None or signal is not None:
                    ended.wait(_POLL_SECONDS)
                else:
                    items.serve(_POLL_SECONDS)
                if signal is None:
                    look()
        except BaseException as error:  # noqa: BLE001 - returned below, once the work has ended
            request_stop(type(error).__name__, signal is not None)
            signal = signal or error
    return (*outcome[0], signal)


def in_event_loop() -> bool:
    """True if an event loop is running in this thread."""
    asyncio = sys.modules.get("asyncio")  # if it is not imported, no loop is running
    return asyncio is not None and asyncio._get_running_loop() is not None
