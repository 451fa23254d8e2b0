"""Something to do once a minute while a run goes on, also while nothing else happens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context

SECONDS = 60.0


@contextmanager
def each_minute(call: Callable[[], None]) -> Iterator[None]:
    """While entered, call this once a minute, in a thread; never after the end."""
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
