"""Measures task runs in other processes, and sizes the next ones."""

from __future__ import annotations

MOST_BATCHES = 256
# The most bytes to send through a scheduler in one message; a single batch may be larger.
MOST_BYTES = 10_000_000
POLL_SECONDS = 0.1
MOST_POLL_SECONDS = 2.0


class Pace:
    """The number of batches per task run, and the pause between looks into the outbox.

    ``size``: batches per task run, as last decided. ``pause``: seconds between two looks.
    """

    def __init__(self) -> None:
        self.size = 1
        self.pause = POLL_SECONDS
        self._handled = 0
        self._seconds = 0.0
        self._bytes = 0.0

    def add_size(self, length: int) -> None:
        """Add the size of one more batch to the average."""
        self._bytes += (length - self._bytes) / 8

    def add_seconds(self, seconds: float) -> None:
        """Add the duration of a batch that has come back."""
        self._handled += 1
        self._seconds += seconds

    def add_look(self, seconds: float) -> None:
        """Adapt the pause to the duration of a look: longer for a slow or full store."""
        self.pause = min(max(POLL_SECONDS, 10 * seconds), MOST_POLL_SECONDS)

    def group_size(self, seconds: float) -> int:
        """The number of batches that fill these seconds, by the durations so far."""
        if self._handled:
            each = max(self._seconds / self._handled, 1e-3)
            wanted = int(seconds / each)
            most = int(MOST_BYTES / max(self._bytes, 1.0))
            # Limited, because an estimate from few batches is unreliable.
            self.size = max(1, min(wanted, most, MOST_BATCHES, 4 * self._handled))
        return self.size
