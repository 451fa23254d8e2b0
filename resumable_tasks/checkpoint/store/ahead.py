"""Reads ahead, where each read waits for a service far away."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from queue import SimpleQueue
from typing import TypeVar

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
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
        for _ in range(threads):
            jobs.put(None)
