"""Measurements of task runs in other processes, and the size of the next ones."""

from __future__ import annotations

MOST_BATCHES = 256
# A scheduler's messages are not the place for more; one batch is sent however large it is.
MOST_BYTES = 10_000_000
POLL_SECONDS = 0.1
MOST_POLL_SECONDS = 2.0


class Pace:
    """The number of batches in a task run, and the pause between looks into the outbox.

    ``size``: batches a task run, as last decided. ``pause``: seconds between two looks.
    """

    def __init__(self) -> None:
        self.size = 1
        self.pause = POLL_SECONDS
        self._handled = 0
        self._seconds = 0.0
        self._bytes = 0.0

    def add_size(self, length: int) -> None:
        """Take the bytes of one more batch into their average."""
        self._bytes += (length - self._bytes) / 8

    def add_seconds(self, seconds: float) -> None:
        """Take in how long a batch took that has come back."""
        self._handled += 1
        self._seconds += seconds

    def add_look(self, seconds: float) -> None:
        """Look less often where the store is slow, or full."""
        self.pause = min(max(POLL_SECONDS, 10 * seconds), MOST_POLL_SECONDS)

    def group_size(self, seconds: float) -> int:
        """The number of batches that fill these seconds, by what batches have taken so far."""
        if self._handled:
            each = max(self._seconds / self._handled, 1e-3)
            wanted = int(seconds / each)
            most = int(MOST_BYTES / max(self._bytes, 1.0))
            # A guess from few batches is not to be trusted with very many.
            self.size = max(1, min(wanted, most, MOST_BATCHES, 4 * self._handled))
        return self.size
