"""Calls a service's methods, plain functions or coroutines, on any thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any

from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.handle import current
from resumable_tasks.runners.submitted.protocol import Submitted, takes_one_more

_NOTHING = object()


class Calls:
    """The methods of one service. Coroutines run on one event loop, in its own thread."""

    def __init__(self, service: Submitted) -> None:
        self.service: Any = service
        self._context: Context = copy_context()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def has(self, name: str) -> bool:
        """True if the service has this optional method."""
        return callable(getattr(self.service, name, None))

    def seconds(self, name: str, default: float) -> float:
        """Return an optional attribute of the service, in seconds."""
        found = getattr(self.service, name, None)
        return default if found is None else float(found)

    @property
    def idempotent_for(self) -> float:
        """The seconds for which a repeated `submit` with the same token starts nothing new."""
        return self.seconds("idempotent_for", 0.0)

    def call(
        self, name: str, *given: Any, maybe: Any = _NOTHING, batch: Batch | None = None
    ) -> Any:
        """Call a method; pass ``maybe`` too if the method has a parameter for it.

        ``batch``: returned by `current_batch` inside the method.
        """
        method: Callable[..., Any] = getattr(self.service, name)
        if maybe is not _NOTHING and takes_one_more(method, len(given)):
            given = (*given, maybe)
        context = self._context.copy()
        if batch is not None:
            context.run(current.set, (batch, 1, None))
        returned = context.run(method, *given)
        return self._awaited(returned) if inspect.isawaitable(returned) else returned

    def _awaited(self, awaitable: Any) -> Any:
        async def whole() -> Any:
            return await awaitable

        return asyncio.run_coroutine_threadsafe(whole(), self._running_loop()).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=self._loop.run_forever, name="resumable-service", daemon=True
                )
                self._thread.start()
            return self._loop

    def close(self) -> None:
        """End the event loop, if there is one."""
        with self._lock:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()
                self._loop = None
