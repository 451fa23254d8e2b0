"""Calls that may hang, such as those of a service: made so that whoever waits can give up."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import copy_context
from typing import Generic, TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.05
# What cleans up after Ctrl-C begins at once, has so long for all that it asks, and each a moment.
_CLEANING_SECONDS, _AT_LEAST, _BEGINS_WITHIN = 1.0, 0.5, 3.0
_interrupted_at = -math.inf


class GaveUp(Exception):
    """The call has not ended in time. What comes of it, if anything does, is for nobody."""


class Call(Generic[T]):
    """A call in a thread of its own, which does not keep the process from ending.

    ``late`` is called there with what the call has returned after it was given up.
    """

    def __init__(self, call: Callable[[], T], late: Callable[[T], object] = lambda _: None) -> None:
        self._call = call
        self._late = late
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._value: T
        self._error: BaseException | None = None
        self.given_up = False

    def wait(self, patience: Callable[[], float | None]) -> T:
        """What the call returns, or raises.

        ``patience`` is asked every few moments for how many seconds to wait on, from then on; None:
        for as long as it takes. Raises `GaveUp`.
        """
        thread = threading.Thread(
            target=copy_context().run, args=(self._make,), name="resumable-call", daemon=True
        )
        thread.start()
        left: float | None = None  # from when there was a limit first
        try:
            while not self._over.wait(_POLL_SECONDS):
                seconds = patience()
                if seconds is not None:
                    left = seconds if left is None else min(left, seconds)
                if left is not None:
                    left -= _POLL_SECONDS
                    if left <= 0:
                        raise GaveUp
        except BaseException as error:
            with self._lock:
                self.given_up = True
                ended = self._over.is_set()
            if not ended:
                raise
            if not isinstance(error, GaveUp):
                self._end_late()
                raise
        thread.join()
        if self._error is not None:
            raise self._error
        return self._value

    def _make(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:  # noqa: BLE001 - raised by the one who waits
            self._error = error
        with self._lock:
            self._over.set()
            given_up = self.given_up
        if given_up:
            self._end_late()

    def _end_late(self) -> None:
        if self._error is None:
            self._late(self._value)


def interruptible(call: Callable[[], T]) -> T:
    """What a call into an extension returns, or raises; Ctrl-C in the main thread does not wait.

    What comes of a call that was interrupted is not known. Raises ``TimeoutError`` for one that
    cleans up after Ctrl-C and takes longer than `seconds_left`.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    left = seconds_left()
    with heeded():
        try:
            return Call(call).wait(lambda: left)
        except GaveUp:
            raise TimeoutError("no answer soon after Ctrl-C") from None


@contextmanager
def heeded() -> Iterator[None]:
    """Have it known to `seconds_left` that Ctrl-C has ended what is waited for in here."""
    global _interrupted_at
    try:
        yield
    except KeyboardInterrupt:
        _interrupted_at = time.monotonic()
        raise


def seconds_left() -> float | None:
    """How long the main thread may wait for what cleans up after Ctrl-C; None without one."""
    since = time.monotonic() - _interrupted_at
    if since > _BEGINS_WITHIN or threading.current_thread() is not threading.main_thread():
        return None
    return max(_CLEANING_SECONDS - since, _AT_LEAST)
