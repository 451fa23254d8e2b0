"""Writes a unit again if the connection was lost before its commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from resumable_tasks.checkpoint.form import ConnectionLost

T = TypeVar("T")


def until_written(write: Callable[[], T], stop: Callable[[], bool]) -> T:
    """Call ``write``, which makes and commits a unit, until it succeeds; return its result.

    Raises `StoreError` if the place is unreachable for too long, or when ``stop`` returns true.
    """
    while True:
        try:
            return write()
        except ConnectionLost as lost:
            wait = lost.wait
        wait(stop)
