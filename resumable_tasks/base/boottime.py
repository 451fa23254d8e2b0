"""A clock that keeps running while the machine sleeps, if the system has one."""

from __future__ import annotations

import time

# Linux has the first. macOS has the second; its `monotonic` stops while the machine sleeps.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC_RAW", None)


def boottime() -> float:
    """Return the seconds since some fixed moment, including those in which the machine slept."""
    return time.time() if _CLOCK is None else time.clock_gettime(_CLOCK)
