"""The time: as records have it, and as those who wait see it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """The source of time for code that measures or waits. A test passes in its own."""

    def monotonic(self) -> float:
        """Seconds that only ever grow, from some moment on."""


class _SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM: Clock = _SystemClock()


# A wait that ends later than this is not one that a busy machine has woken up a little late.
_HELD_UP_SECONDS = 0.05


def held_up(late: float) -> float:
    """Seconds for which this process was held up, where a wait has ended so late; 0.0 for none.

    A process may be stopped (Ctrl-Z), and its container or its machine paused. Then the time of all
    that it waits for has passed without a look at it: the answer may be there, unread.
    """
    return late if late > _HELD_UP_SECONDS else 0.0


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
