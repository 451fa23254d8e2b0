"""A clock that goes on while the machine sleeps, where the system has one."""

from __future__ import annotations

import time

# Linux; macOS has it by another name, and there `monotonic` stands still in a sleeping machine.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", None) or getattr(time, "CLOCK_MONOTONIC_RAW", None)


def boottime() -> float:
    """Seconds since some moment, also those in which the machine slept."""
    return time.time() if _CLOCK is None else time.clock_gettime(_CLOCK)
