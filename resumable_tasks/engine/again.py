"""A unit that is written again, since its connection was lost before the commit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from resumable_tasks.checkpoint.form import ConnectionLost

T = TypeVar("T")


def until_written(write: Callable[[], T], stop: Callable[[], bool]) -> T:
    """What ``write`` returns, which makes a unit and commits it.

    Raises `StoreError` if the place is away for too long, or still is once ``stop`` is true.
    """
    while True:
        try:
            return write()
        except ConnectionLost as lost:
            wait = lost.wait
        wait(stop)
