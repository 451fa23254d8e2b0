"""Calls on daemon threads, which do not keep the process from ending."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class Daemons:
    """A pool of daemon threads, as many as there are concurrent calls.

    Threads are reused, so that thread-local state lasts. The standard library's executor has no
    daemons: at its end, a program would wait for a call that hangs.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._calls: set[Future[Any]] = set()
        self._ended = False

    def submit(self, call: Callable[[], T]) -> Future[T]:
        """Start a call in the caller's context; return its future, cancelled after `end`."""
        future: Future[T] = Future()
        context = copy_context()
        with self._lock:
            if self._ended:
                future.cancel()
                return future
            self._calls.add(future)
            if len(self._calls) > self._threads:
                self._threads += 1
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
            self._queue.put(lambda: self._make(future, lambda: context.run(call)))
        return future

    def end(self) -> None:
        """Cancel the futures of all calls, so that nobody waits; running calls go on."""
        with self._lock:
            self._ended = True
            calls = list(self._calls)
        for future in calls:
            future.cancel()
        for _ in range(self._threads):
            self._queue.put(None)

    def _run(self) -> None:
        while (make := self._queue.get()) is not None:
            make()
            del make  # frees what it refers to, while this thread waits for the next

    def _make(self, future: Future[Any], call: Callable[[], Any]) -> None:
        value = error = None
        try:
            value = call()
        except BaseException as raised:  # noqa: BLE001 - raised in the thread that waits
            error = raised
        with self._lock:
            self._calls.discard(future)
        if not future.set_running_or_notify_cancel():
            return  # nobody waits
        if error is None:
            future.set_result(value)
        else:
            future.set_exception(error)
