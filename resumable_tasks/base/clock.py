"""The time: the UTC time for records, and a monotonic clock for waiting."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The source of time for code that measures or waits. A test passes in its own."""

    def monotonic(self) -> float:
        """Return the seconds since some moment; they never decrease."""


class _SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM: Clock = _SystemClock()


# A wait that ends later than this was held up; a busy machine wakes a process up less late.
_HELD_UP_SECONDS = 0.05


def held_up(late: float) -> float:
    """Return how long this process was held up if a wait ended ``late`` seconds late; 0.0 if not.

    A process may be stopped (Ctrl-Z), or its container or machine paused. Timeouts then expire
    although the awaited answer may have arrived and is only unread.
    """
    return late if late > _HELD_UP_SECONDS else 0.0


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
