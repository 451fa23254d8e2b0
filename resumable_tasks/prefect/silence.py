"""Watches for signs of life of the workers: warns after some silence, and gives up after more.

Signs of life are the beginning of a task run, an outcome, and a worker's heartbeat. Only these can
be relied on: if all workers are lost for good, Dask and Ray silently wait for new ones.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress

from resumable_tasks.base import log
from resumable_tasks.checkpoint.directory.outbox import Outbox
from resumable_tasks.errors import StoreError

BEAT_SECONDS = 10.0
# Tolerates two late heartbeats, and warns within a minute.
PATIENCE_SECONDS = 45.0


@contextmanager
def beating(outbox: Outbox, task_run: int) -> Iterator[None]:
    """In a worker: while entered, write heartbeats."""
    ended = threading.Event()

    def beat() -> None:
        for number in itertools.count(1):
            if ended.wait(BEAT_SECONDS) or not outbox.expects(task_run):
                return
            with suppress(StoreError):  # the next outcome reports a place that is gone
                outbox.beat(task_run, number)

    thread = threading.Thread(target=beat, name="resumable-alive", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Silence:
    """Measures the silence, for the driver.

    The run gives up after ``patience`` seconds of silence, but not before the first sign of life,
    because a cluster may still be starting. ``over`` is then the reason.
    """

    def __init__(
        self, outbox: Outbox, patience: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._outbox = outbox
        self._patience = patience
        self._clock = clock
        self._last = self._said = self._looked = clock()
        self._signs: dict[int, tuple[bool, bytes | None]] = {}
        self._ever = False
        self.over = ""

    def begin(self) -> None:
        """Restart the silence: a task run is submitted, and none was active before."""
        self._last = self._said = self._clock()

    def hear(self) -> None:
        """Note a sign of life."""
        self._last = self._said = self._clock()
        self._ever = True

    def listen(self, task_runs: Iterable[int]) -> bool:
        """Look for heartbeats of these task runs. Returns whether to give up (`over`)."""
        now = self._clock()
        if now - max(self._last, self._looked) < min(BEAT_SECONDS, PATIENCE_SECONDS) / 2:
            return False
        self._looked = now
        signs = {
            number: (self._outbox.has_begun(number), self._outbox.last_beat(number))
            for number in task_runs
        }
        if any(sign != self._signs.get(number, (False, None)) for number, sign in signs.items()):
            self.hear()
        self._signs = signs
        silent = now - self._last
        if self._ever and silent > self._patience:
            self.over = f"silence: no sign of life from any worker for {silent:.0f} s"
        elif now - max(self._last, self._said) > PATIENCE_SECONDS:
            self._said = now
            self._say(silent, sum(begun for begun, _ in signs.values()))
        return bool(self.over)

    def _say(self, silent: float, begun: int) -> None:
        if not begun:
            log.warning(
                "no worker has started any of the %d waiting task runs: check that workers are "
                "running and free",
                len(self._signs),
            )
            return
        log.warning(
            "no sign of life from any worker for %.0f s, and %d of %d task runs have started: all "
            "workers may be lost. The run ends after give_up_after=%g s of silence; completed work "
            "is safe",
            *(silent, begun, len(self._signs), self._patience),
        )
