"""A database that is away for a while: it is told once, and waited for, since results are in hand.

A server restarts or fails over, and firewalls end connections. What was in a transaction is gone
then, but not the results in memory, and not the claims.
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
# So much later than the others' signs of life rows are claimed again.
_OTHERS_FIRST_SECONDS = 3.0


class Absence:
    """Whether the database is away, as any thread of a run has found. Safe in each of them.

    ``url`` is the checkpoint's. Claims may have run out after ``claim_seconds``.
    """

    def __init__(self, url: str, claim_seconds: float) -> None:
        self._url = url
        # A sign of life is as old as that when an absence begins.
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
            "%s does not answer: %s. What is in hand is kept, and tried again for up to %d minutes",
            *(self._url, first_line(error.__cause__ or error), PATIENCE_SECONDS / 60),
        )

    def end(self) -> None:
        """Log that it is over, if it was away."""
        with self._lock:
            if self._began is None:
                return
            now = time.monotonic()
            if now - self._began > self._long:
                self._others_until = now + _OTHERS_FIRST_SECONDS
            self._began = None
        log.info("%s answers again", self._url)

    @property
    def seconds_for_others(self) -> float:
        """How long other runs are given to tell that they are alive, before rows are claimed.

        None could while the database was away: what they are handling would be taken from them.
        """
        return max(0.0, self._others_until - time.monotonic())


class Patience:
    """How long one thread waits for the database, since it last got something done."""

    def __init__(self, absence: Absence) -> None:
        self.absence = absence
        self._since: float | None = None
        self._tries = 0

    def through(self, work: Callable[[], T], stop: Callable[[], bool]) -> T:
        """What ``work`` returns, which may be done twice. Raises as `wait` does."""
        while True:
            try:
                found = work()
            except StoreError as error:
                self.wait(error, stop)
            else:
                self.over()
                return found

    def wait(self, error: StoreError, stop: Callable[[], bool]) -> None:
        """Wait a moment, each time longer, since the connection was lost by this error.

        Raises the error itself if it is another one, if ``stop`` is true, or it has been too long.
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
        """Something was done."""
        self._since, self._tries = None, 0
        self.absence.end()


def sleep(seconds: float, stop: Callable[[], bool]) -> bool:
    """Sleep so long; False if ``stop`` has become true before."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if stop():
            return False
        time.sleep(min(left, _LOOK_SECONDS))
    return True
