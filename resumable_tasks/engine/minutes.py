"""A call once a minute during a run, even while nothing else happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context

SECONDS = 60.0


@contextmanager
def each_minute(call: Callable[[], None]) -> Iterator[None]:
    """Call this once a minute, in its own thread, while the context is active; never after."""
    ended = threading.Event()

    def tick() -> None:
        while not ended.wait(SECONDS):
            call()

    thread = threading.Thread(
        target=copy_context().run, args=(tick,), name="resumable-minutes", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
