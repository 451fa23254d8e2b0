"""Reads ahead, and other calls at once, where each waits for a service far away."""

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
    """What ``read`` returns for each name, in their order; ``width`` of them wait at a time.

    Raises what it raises in the place of that name. Not by an executor, whose threads keep a
    process from ending while the service hangs.
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
            except BaseException as error:  # noqa: BLE001 - raised where it is asked for
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
    """What these calls return, in their order, all of them made at once.

    All have ended when this returns or raises: what the first of them in this order has raised.
    """
    futures: list[Future[Any]] = []
    threads: list[threading.Thread] = []

    def make(call: Callable[[], Any], future: Future[Any]) -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 - raised by the one who asked
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
