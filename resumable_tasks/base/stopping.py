"""A signal that a run stops, for those who only look at it."""

from __future__ import annotations

import threading
from typing import Protocol


class Stopping(Protocol):
    """Says whether a run stops. A ``threading.Event`` is one."""

    def is_set(self) -> bool:
        """True once the run is to stop."""

    def wait(self, seconds: float, /) -> bool:
        """Wait for so many seconds, or until the run stops; whether it does."""


NEVER: Stopping = threading.Event()
"""For calls that nobody stops."""
