"""Waiting for a database that is unavailable for a while, since a run has results to store.

Servers restart or fail over, and firewalls end connections. Then the open transaction is lost, but
not the results in memory, nor the claims. The log tells of each absence once.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from resumable_tasks.base import log
from resumable_tasks.checkpoint.sql.database import first_line
from resumable_tasks.checkpoint.sql.refusals import is_lost
from resumable_tasks.errors import StoreError

T = TypeVar("T")

PATIENCE_SECONDS = 900.0  # as long as for a bucket
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 30.0
_LOOK_SECONDS = 0.1
# Seconds that a run waits for other runs' heartbeats before it claims rows again: machines may be
# busy just then.
_OTHERS_FIRST_SECONDS = 10.0


class Absence:
    """Whether the database is away, as found by any thread of a run. Thread-safe.

    ``url`` is the checkpoint's. Claims may have expired after ``claim_seconds``.
    """

    def __init__(self, url: str, claim_seconds: float) -> None:
        self._url = url
        # The age that a heartbeat can have when an absence begins.
        self._long = claim_seconds / 2
        self._began: float | None = None
        self._others_until = 0.0
        self._lock = threading.Lock()

    def begin(self, error: StoreError) -> None:
        """Log a warning, unless it was away already."""
        with self._lock:
            if self._began is not None:
                return
            self._began = time.monotonic()
        log.warning(
            "%s does not respond: %s. Finished results are kept; retrying for up to %d minutes",
            *(self._url, first_line(error.__cause__ or error), PATIENCE_SECONDS / 60),
        )

    def end(self) -> None:
        """Log that the database is back, if it was away."""
        with self._lock:
            if self._began is None:
                return
            now = time.monotonic()
            if now - self._began > self._long:
                self._others_until = now + _OTHERS_FIRST_SECONDS
            self._began = None
        log.info("%s responds again", self._url)

    @property
    def seconds_for_others(self) -> float:
        """Seconds to wait for other runs' heartbeats before claiming rows.

        No run could write one while the database was away. Without the wait, this run would take
        the rows that others are handling.
        """
        return max(0.0, self._others_until - time.monotonic())


class Patience:
    """One thread's patience with the database, counted since its last success."""

    def __init__(self, absence: Absence) -> None:
        self.absence = absence
        self._since: float | None = None
        self._tries = 0

    def through(self, work: Callable[[], T], stop: Callable[[], bool]) -> T:
        """Call ``work`` until the database answers, and return its result. Raises as `wait` does.

        ``work`` must be safe to repeat.
        """
        while True:
            try:
                found = work()
            except StoreError as error:
                self.wait(error, stop)
            else:
                self.over()
                return found

    def wait(self, error: StoreError, stop: Callable[[], bool]) -> None:
        """Wait a moment after this error of a lost connection, longer each time.

        Raises the error itself if it is of another kind, if ``stop`` returns true, or after too
        long a time.
        """
        if not is_lost(error):
            raise error
        self.absence.begin(error)
        now = time.monotonic()
        self._since = self._since or now
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**self._tries) * random.uniform(0.5, 1)
        self._tries += 1
        if stop() or now + pause > self._since + PATIENCE_SECONDS or not sleep(pause, stop):
            raise error

    def over(self) -> None:
        """Note a success, which restarts the patience."""
        self._since, self._tries = None, 0
        self.absence.end()


def sleep(seconds: float, stop: Callable[[], bool]) -> bool:
    """Sleep for this long; returns False as soon as ``stop`` is true."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop():
            return False
        time.sleep(min(left, _LOOK_SECONDS))
    return True
