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


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
