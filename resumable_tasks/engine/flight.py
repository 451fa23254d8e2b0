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
    """The batches in flight: submitted, and not yet committed.

    ``held`` batches have failed and wait for what is known of others. ``at_end``: there is no item
    to submit, for now or for good. ``changed`` guards all of it, and is notified. ``meter`` is told
    what the time goes into.
    """

    def __init__(self, meter: Meter) -> None:
        self.meter = meter
        self.batches = 0
        self.items = 0
        self.held = 0
        self.at_end = False
        # Those of them that have not come back, by their numbers.
        self.out: dict[int, Batch] = meter.spare.out
        self.changed = threading.Condition()

    def settle(self, batches: int, items: int, held: int) -> None:
        """Adjust the number in flight (fewer, if negative) and the number held."""
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
    """The end of a run before its items: why, and until when what runs is waited for.

    ``event`` is set once no batch may begin any more. ``why`` is None while nothing but the end of
    the items ends the run. ``asked``: whether somebody has asked for it. ``by_budget``: whether a
    limit of the budget was the first to end it.
    """

    def __init__(self) -> None:
        self.event = threading.Event()
        self.why: str | None = None
        self.asked = False
        self.by_budget = False
        self._deadline: float | None = None
        self._begun = False

    def ask(self, grace_seconds: float) -> None:
        """Let the grace begin; `begin` follows in another thread. Safe in a signal handler."""
        self.asked = True
        self._end_within(grace_seconds)

    def note_budget(self, limit: str) -> str:
        """Note that this limit of the budget ends the run; why, in words."""
        self.by_budget = self.by_budget or (self.why is None and not self.asked)
        self.why = self.why or f"its budget: {limit}"
        return self.why

    def begin(self, why: str, grace_seconds: float) -> bool:
        """Let no batch begin any more; whether that is news."""
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
    """What a run has come to. ``left`` batches were not handled. ``parked`` items have a result
    that does not fit the table. ``why_failed`` is what ended the run before its items, where that
    is a failure of the job.
    """

    completed: int = 0
    failures: list[Failure] = field(default_factory=list)
    parked: list[Failure] = field(default_factory=list)
    left: int = 0
    why_failed: str | None = None
    fatal: BaseException | None = None


def begin_to_stop(stop: Stop, reason: str, grace_seconds: float, running: int, tell: Tell) -> None:
    """Let no batch begin any more while so many are running, and say so, once."""
    if not stop.begin(reason, grace_seconds):
        return
    limit = f" (up to {grace_seconds:g} s)" if grace_seconds < math.inf else ""
    log.warning("%s: finishing running batches%s; ask again to stop now", reason, limit)
    tell(Stopping, reason=reason, running=running)
