"""The read-only view of a run's stop signal."""

from __future__ import annotations

import threading
from typing import Protocol


class Stopping(Protocol):
    """Tells whether a run stops. A ``threading.Event`` implements it."""

    def is_set(self) -> bool:
        """True once the run is to stop."""

    def wait(self, seconds: float, /) -> bool:
        """Wait for ``seconds`` or until the run stops; return True if it stops."""


NEVER: Stopping = threading.Event()
"""For calls that are never stopped."""
