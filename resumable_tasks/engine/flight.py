"""State shared by the feeding and the committing thread: batches in flight, the stop, the tally."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import field

from resumable_tasks.base import log
from resumable_tasks.base.frozen import changing
from resumable_tasks.engine.bound import Meter
from resumable_tasks.engine.events import Stopping, Tell
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.outcome import Failure


class Flight:
    """The batches in flight: submitted and not yet committed.

    ``held``: the number of failed batches whose cause is not known yet. ``at_end``: there is no
    item to submit, for now or for good. ``changed`` guards all fields and is notified when they
    change. ``meter`` measures where the time goes.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.batches = 0
        self.items = 0
        self.held = 0
        self.at_end = False
        # The batches in flight that have no outcome yet, by number.
        self.out: dict[int, Batch] = meter.spare.out
        self.changed = threading.Condition()

    def settle(self, batches: int, items: int, held: int) -> None:
        """Add to the numbers in flight (negative to subtract) and set the number held."""
        with self.changed:
            self.batches += batches
            self.items += items
            self.held = held
            self.changed.notify()

    @property
    def divisible(self) -> bool:
        """True if a batch of more than one item is in flight."""
        return self.items > self.batches


class Stop:
    """The early end of a run: its reason, and the deadline for running batches.

    ``event`` is set once no more batches may begin. ``why`` is None while nothing ends the run
    early. ``asked``: the stop was requested. ``by_budget``: a limit of the budget was the first
    reason.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.why: str | None = None
        self.asked = False
        self.by_budget = False
        self._deadline: float | None = None
        self._begun = False

    def ask(self, grace_seconds: float) -> None:
        """Start the grace period; `begin` follows in another thread. Safe in a signal handler."""
        self.asked = True
        self._end_within(grace_seconds)

    def note_budget(self, limit: str) -> str:
        """Record that this limit of the budget ends the run; return the reason as text."""
        self.by_budget = self.by_budget or (self.why is None and not self.asked)
        self.why = self.why or f"budget used up ({limit})"
        return self.why

    def begin(self, why: str, grace_seconds: float) -> bool:
        """Let no more batches begin; return True the first time."""
        self.why = self.why or why
        self._end_within(grace_seconds)
        self.event.set()
        before, self._begun = self._begun, True
        return not before

    def _end_within(self, grace_seconds: float) -> None:
        """Set the deadline; a second request can only make it earlier."""
        deadline = time.monotonic() + grace_seconds
        self._deadline = min(deadline, self._deadline or deadline)

    @property
    def begun(self) -> bool:
        return self.event.is_set()

    @property
    def overdue(self) -> bool:
        """True once running batches are no longer waited for."""
        return self._deadline is not None and time.monotonic() > self._deadline


@changing
class Tally:
    """The counts and failures of a run so far.

    ``parked`` items have a result that does not fit the table. ``left`` batches were not handled.
    ``why_failed``: the failure of the job that ended the run early.
    """

    completed: int = 0
    failures: list[Failure] = field(default_factory=list)
    parked: list[Failure] = field(default_factory=list)
    left: int = 0
    why_failed: str | None = None
    fatal: BaseException | None = None


def begin_to_stop(stop: Stop, reason: str, grace_seconds: float, running: int, tell: Tell) -> None:
    """Let no more batches begin, and report that once; ``running`` batches are in flight."""
    if not stop.begin(reason, grace_seconds):
        return
    limit = f" (up to {grace_seconds:g} s)" if grace_seconds < math.inf else ""
    log.warning("%s: finishing running batches%s; ask again to stop now", reason, limit)
    tell(Stopping, reason=reason, running=running)
