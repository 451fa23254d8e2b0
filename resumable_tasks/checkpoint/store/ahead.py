"""Reading ahead and concurrent calls, for services far away where each call waits."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any, TypeVar

from resumable_tasks.base.hanging import heeded

T = TypeVar("T")


def in_order(read: Callable[[str], T], names: Iterable[str], width: int) -> Iterator[T]:
    """Yield ``read(name)`` for each name, in order, with up to ``width`` calls at a time.

    Raises what a call raises, when it comes to that name. Uses no executor, because its threads
    would keep the process from ending while the service hangs.
    """
    jobs: SimpleQueue[tuple[Future[T], str] | None] = SimpleQueue()
    waiting: deque[Future[T]] = deque()
    threads = 0

    def work() -> None:
        while (job := jobs.get()) is not None:
            future, name = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(read(name))
            except BaseException as error:  # noqa: BLE001 - raised by `result`
                future.set_exception(error)

    try:
        for name in names:
            if threads < width:
                threading.Thread(target=work, name="resumable-read", daemon=True).start()
                threads += 1
            future: Future[T] = Future()
            waiting.append(future)
            jobs.put((future, name))
            if len(waiting) >= width:
                yield _heeded(waiting.popleft())
        while waiting:
            yield _heeded(waiting.popleft())
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(threads):
            jobs.put(None)


def _heeded(future: Future[T]) -> T:
    with heeded():
        return future.result()


def at_once(calls: Iterable[Callable[[], Any]]) -> list[Any]:
    """Make all these calls concurrently. Returns their results in order.

    Raises the error of the first call, in this order, that failed. All calls have ended when this
    returns or raises.
    """
    futures: list[Future[Any]] = []
    threads: list[threading.Thread] = []

    def make(call: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by `result`
            future.set_exception(error)

    for call in calls:
        future: Future[Any] = Future()
        futures.append(future)
        target, args = copy_context().run, (make, call, future)
        thread = threading.Thread(target=target, args=args, name="resumable-ask", daemon=True)
        threads.append(thread)
        thread.start()
    with heeded():
        for thread in threads:
            thread.join()
    return [future.result() for future in futures]
