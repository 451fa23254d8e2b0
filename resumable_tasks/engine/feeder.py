"""The caller's thread: submits batches to the runner as long as there is room in the window."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

from resumable_tasks.base import log
from resumable_tasks.engine.budget import Spending
from resumable_tasks.engine.flight import Flight, Stop
from resumable_tasks.engine.window import Window
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.plan import Planner, Waiting
from resumable_tasks.runners.base import Runner

POLL_SECONDS = 0.05
# More time than this between two checks means that the process or its machine was suspended.
_STOOD_STILL_SECONDS = 1.0


class Feeder:
    """Submits the batches of a run.

    ``may_begin`` says whether one more batch may begin. ``wake`` tells the committer that no item
    is available now. A call that cannot be cancelled counts as hanging after ``hang_after``
    seconds.
    """

    def __init__(
        self,
        planner: Planner,
        runner: Runner,
        flight: Flight,
        stop: Stop,
        spending: Spending,
        window: Window,
        may_begin: Callable[[], bool],
        wake: Callable[[], None],
        hang_after: float | None = None,
    ) -> None:
        self._planner = planner
        self._runner = runner
        self._flight = flight
        self._stop = stop
        self._spending = spending
        self._window = window
        self._may_begin = may_begin
        self._wake = wake
        self._hang_after = hang_after
        self._looked = self._judges_from = time.monotonic()

    def feed(self, batches: Iterable[Batch | Waiting]) -> bool:
        """Submit these batches; return True if all items were submitted."""
        self._flight.meter.begin()
        for batch in batches:
            # Held batches must not wait for the next item.
            self._flight.at_end = isinstance(batch, Waiting)
            if isinstance(batch, Waiting):
                self._wake()
                if self._spending.allows_nothing(self._flight.items):
                    self._end_by_budget()
                    return False
            elif not self._submit(batch):
                return False
        return not self._planner.cut_short

    def resume(self, batches: Iterable[Batch]) -> None:
        """Submit batches that are already with a service, even if the window is full."""
        for batch in batches:
            with self._flight.changed:
                self._flight.batches += 1
                self._flight.items += len(batch)
            self._spending.begins(batch)
            self._flight.out[batch.number] = batch
            self._runner.submit(batch)

    def _submit(self, batch: Batch) -> bool:
        """Submit as much of this batch as the budget allows; return True if that was all of it."""
        allowed = self._spending.take(len(batch))
        left = _first(batch, allowed) if allowed else None
        while left is not None and (part := self._wait_for_room(left)) is not None:
            self._flight.out[part.number] = part
            self._runner.submit(part)
            # The real cost of a part may show that the budget allows more.
            left = None if part is left else _behind(left, len(part), self._planner.next_number())
        whole = left is None and allowed == len(batch)
        if not whole and not (self._stop.begun or self._stop.overdue):
            self._end_by_budget()
        return whole

    def _end_by_budget(self) -> None:
        """Record that the budget ends the run. Batches in flight are within it and continue."""
        log.info("%s: no further batch starts", self._stop.note_budget(self._spending.used_up))

    def _wait_for_room(self, batch: Batch) -> Batch | None:
        """Wait for room in the window; return as much of this batch as may begin, or None."""
        flight = self._flight
        with flight.changed:
            while not (self._stop.begun or self._stop.overdue):
                affordable = self._spending.affords(batch, flight.items)
                if not affordable and not flight.batches:
                    items = self._spending.affordable(batch)
                    if not items:
                        return None
                    batch = _first(batch, items)
                    continue
                if affordable and flight.batches < self._window.batches and self._may_begin():
                    if not flight.batches:
                        self._window.long_batches.reset()
                    flight.batches += 1
                    flight.items += len(batch)
                    self._spending.begins(batch)
                    return batch
                if not affordable and self._window.submits and not flight.at_end:
                    # Nothing more is submitted until a result is collected, perhaps tomorrow.
                    flight.at_end = True
                    self._wake()
                flight.changed.wait(POLL_SECONDS)
                self._stop_if_all_hang()
        return None

    def _stop_if_all_hang(self) -> None:
        """End the run if all batches in flight hang, or hanging calls occupy all workers."""
        if self._hang_after is None:
            return
        now = time.monotonic()
        looked, self._looked = self._looked, now
        if now - looked > _STOOD_STILL_SECONDS:
            # Calls may have been suspended too, or their answers are still unread: start anew.
            self._judges_from = now + self._hang_after
        if now < self._judges_from:
            return
        before = now - self._hang_after
        hanging = sum(began < before for began in list(self._runner.calls.values()))
        if hanging and hanging >= min(self._runner.concurrency, len(self._flight.out)):
            why = f"hanging calls: {hanging} did not end within timeout plus grace_seconds"
            if self._stop.begin(why, 0.0):
                log.warning("%s; the run ends without them", why)

    def drain(self, broken: Callable[[], bool]) -> bool:
        """Wait until no batch is in flight or held.

        Returns False if the grace period ended first or commits have failed.
        """
        flight = self._flight
        flight.at_end = True
        self._wake()
        with flight.changed:
            while (flight.batches or flight.held) and not (broken() or self._stop.overdue):
                flight.changed.wait(POLL_SECONDS)
                self._stop_if_all_hang()
            flight.meter.end()
            return not (flight.batches or flight.held or broken())


def _first(batch: Batch, items: int) -> Batch:
    """Return the first ``items`` items of a batch."""
    return batch if items == len(batch) else batch.slice(0, items, batch.number, None)


def _behind(batch: Batch, items: int, number: int) -> Batch:
    """Return the rest of a batch, after the first ``items`` items, as a separate batch."""
    return batch.slice(items, len(batch), number, None)
