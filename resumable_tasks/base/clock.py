"""The time: as records have it, and as those who wait see it."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """What those ask who have to know how long something takes. A test hands in another."""

    def monotonic(self) -> float:
        """Seconds that only ever grow, from some moment on."""


class _SystemClock:
    def monotonic(self) -> float:
        return time.monotonic()


SYSTEM: Clock = _SystemClock()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
