"""Calls that may hang, such as requests to a service, made so that the caller can give up."""

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
# Cleaning up after Ctrl-C: the seconds for all calls together, the least for each call, and the
# time after Ctrl-C within which a call counts as cleaning up.
_CLEANING_SECONDS, _AT_LEAST, _BEGINS_WITHIN = 1.0, 0.5, 3.0
_interrupted_at = -math.inf


class GaveUp(Exception):
    """The call has not ended in time; its result will be ignored."""


class Call(Generic[T]):
    """A call in its own daemon thread.

    If the call returns after it was given up, ``late`` is called there with its result.
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
        """Return or raise the result of the call. Raises `GaveUp` if it takes too long.

        ``patience`` is called repeatedly and returns how many more seconds to wait; None: no limit.
        """
        thread = threading.Thread(
            target=copy_context().run, args=(self._make,), name="resumable-call", daemon=True
        )
        thread.start()
        left: float | None = None  # seconds left, once there is a limit
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
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
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
    """Make a call into an extension that Ctrl-C in the main thread can interrupt.

    Returns or raises the result of the call; the result of an interrupted call is unknown. Raises
    ``TimeoutError`` if the call cleans up after Ctrl-C and takes longer than `seconds_left`.
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
    """Record for `seconds_left` that Ctrl-C ended the code in this context."""
    global _interrupted_at
    try:
        yield
    except KeyboardInterrupt:
        _interrupted_at = time.monotonic()
        raise


def seconds_left() -> float | None:
    """Return how long the main thread may wait while it cleans up after Ctrl-C; else None."""
    since = time.monotonic() - _interrupted_at
    if since > _BEGINS_WITHIN or threading.current_thread() is not threading.main_thread():
        return None
    return max(_CLEANING_SECONDS - since, _AT_LEAST)
