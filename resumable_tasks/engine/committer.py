"""The committer's thread: all waiting outcomes → one unit → events.

Group commit follows from the queue: while one commit is flushed, finished batches queue up, and the
next commit takes them all.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from queue import Empty, SimpleQueue

from resumable_tasks.base import log
from resumable_tasks.base.frozen import frozen
from resumable_tasks.checkpoint.form import Checkpoint, GaveWay, Receipt, Unit
from resumable_tasks.engine.again import until_written
from resumable_tasks.engine.budget import Spending
from resumable_tasks.engine.events import Committed, Stopping, Tell
from resumable_tasks.engine.failing import Decision, FailureHandling
from resumable_tasks.engine.flight import Flight, Stop, Tally, begin_to_stop
from resumable_tasks.engine.refused import Refused
from resumable_tasks.engine.rules import Rules
from resumable_tasks.engine.window import Gathering, Window
from resumable_tasks.engine.withservice import AtRest, Recording, Rests, batches_of
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import join
from resumable_tasks.items.submission import Transition
from resumable_tasks.runners import failures
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Fatal, Outcome

# How often a single batch waits for another writer. The checkpoint's form sets each wait's length.
_TRIES = 6


class _Wake:
    """A message in the queue of outcomes: no item is available now."""


@frozen
class _StopRequest:
    """A request to stop, in the queue of outcomes: its ``put`` is safe in a signal handler."""

    reason: str
    grace_seconds: float


class Committer:
    """Takes outcomes, commits those that are settled, and submits the rest again."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        submit: Callable[[Batch], None],
        work: Work,
        flight: Flight,
        stop: Stop,
        spending: Spending,
        window: Window,
        rules: Rules,
        tell: Tell,
    ) -> None:
        self.tally = Tally()
        self.broken: BaseException | None = None
        self.failing = FailureHandling(
            checkpoint.planner.next_number,
            isolate=rules.isolate,
            pause_after=rules.pause_after,
            give_up_after=rules.give_up_after,
            fail_fast=rules.fail_fast,
            run=checkpoint.found.epoch,
        )
        self._checkpoint = checkpoint
        self._submit = submit
        self._flight = flight
        self._stop = stop
        self._spending = spending
        self._window = window
        self._rules = rules
        self._tell = tell
        self._refused = Refused(checkpoint, work, rules.pause_after)
        self.at_rest = AtRest()
        self._queue: SimpleQueue[Outcome | _StopRequest | _Wake | Recording | Rests | None]
        self._queue = SimpleQueue()
        self._thread = threading.Thread(
            target=copy_context().run,
            args=(self._commit_all,),
            name="resumable-commit",
            daemon=True,
        )

    def start(self) -> None:
        self._thread.start()

    def take(self, outcome: Outcome) -> None:
        """Queue the outcome of a batch. Safe in any thread."""
        if isinstance(outcome, Fatal) or (isinstance(outcome, Dropped) and outcome.why):
            # Stop now: until the committer reads the outcome, more batches would begin.
            self._stop.event.set()
        self._flight.out.pop(outcome.batch.number, None)
        self._queue.put(outcome)

    def record(self, transition: Transition) -> None:
        """Make a change of a submission's state durable. Safe in any thread but the committer's.

        Raises `StoreError` if that fails, with the error as its cause.
        """
        recording = Recording(transition)
        self._queue.put(recording)
        recording.wait(lambda: self.broken)

    def rests(self, batch: Batch, again_at: float, why: str) -> None:
        """Report that the run need not wait for this batch. Safe in any thread."""
        self._queue.put(Rests(batch, again_at, why))

    def wake(self) -> None:
        """Make the committer look at held batches, because no item is available now."""
        self._queue.put(_Wake())

    def request_stop(self, reason: str, grace_seconds: float) -> None:
        """Request a stop. Safe in a signal handler."""
        self._queue.put(_StopRequest(reason, grace_seconds))

    def join(self, timeout: float | None) -> bool:
        """Wait for the last commit; return True if it finished in time."""
        self._queue.put(None)
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _commit_all(self) -> None:
        try:
            while (group := self._next_group()) is not None:
                with self._flight.meter.committing():
                    self._take_in(group)
                self._flight.meter.down(self.failing.down)
            self._settle((), at_end=True)
        except BaseException as error:  # noqa: BLE001 - raised by the engine, in the caller's thread
            self.broken = error
            self._stop.event.set()
            with self._flight.changed:
                self._flight.changed.notify()

    def _take_in(self, group: Sequence[Outcome]) -> None:
        """Commit these outcomes and submit the batches to be handled again."""
        for outcome in group:
            self._flight.meter.took(outcome)
            if not isinstance(outcome, Dropped):
                self.at_rest.remove(outcome.batch.number)
        again = self._commit(group)
        self._leave_at_rest(len(group) - len(again))
        again += self._look_at_held(len(group) - len(again))
        again = self._affordable(again, group)
        self._flight.settle(
            len(again) - len(group),
            sum(map(len, again)) - sum(len(outcome.batch) for outcome in group),
            self.failing.held,
        )
        for batch in again:
            self._flight.out[batch.number] = batch
            self._submit(batch)
        if group and not self._stop.begun:
            self._checkpoint.tidy(self._stop.event.is_set)

    def _next_group(self) -> list[Outcome] | None:
        """Return the waiting outcomes, [] if something else is due, None at the run's end."""
        group: list[Outcome] = []
        gathering = Gathering(self._window.batches // 2)
        while True:
            try:
                found = self._queue.get(not group, None if group else self._seconds_until_due())
            except Empty:
                if group and self._more_come(len(group)) and gathering.goes_on():
                    continue
                return group
            match found:
                case _StopRequest():
                    self._begin_to_stop(found.reason, found.grace_seconds)
                case Recording():
                    found.carry_out(self._checkpoint.record)
                case Rests() | _Wake():
                    if isinstance(found, Rests):
                        self.at_rest.add(found)
                    if not group:
                        return group
                case None:
                    if not group:
                        return None
                    self._queue.put(None)  # put back for the next call
                    return group
                case _:
                    self._window.long_batches.reset()
                    group.append(found)
                    gathering.add(found)

    def _more_come(self, count: int) -> bool:
        """True if more than ``count`` batches are in flight, and nothing else is due."""
        undisturbed = not (self._stop.begun or self.failing.paused or self._window.submits)
        return undisturbed and self._flight.batches > count

    def _begin_to_stop(self, reason: str, grace_seconds: float) -> None:
        begin_to_stop(self._stop, reason, grace_seconds, self._flight.batches, self._tell)

    def _seconds_until_due(self) -> float | None:
        # A batch of one item cannot be smaller, and a pause is not caused by the batch size.
        large = self._flight.divisible and self.failing.wait is None and not self._window.submits
        quiet = self._window.long_batches.quiet_left(self._flight.batches if large else 0)
        due = [self.failing.wait, quiet]
        if not self._stop.begun:
            due.append(self._spending.seconds_left)
        return min((seconds for seconds in due if seconds is not None), default=None)

    def _look_at_held(self, settled: int) -> list[Batch]:
        """End the run if that is due; return the held batches that are to be handled now.

        ``settled``: how many of the batches in flight are about to be settled.
        """
        failing = self.failing
        if not self._stop.begun:
            if self._spending.over is not None:
                # A hanging call must not keep the run alive beyond its time limit.
                late = self._spending.seconds_left == 0.0
                grace_seconds = self._rules.grace_seconds if late else math.inf
                self._begin_to_stop(self._stop.note_budget(self._spending.over), grace_seconds)
            elif failing.give_up is not None:
                self._begin_to_stop(failing.give_up, self._rules.grace_seconds)
        if self._stop.begun:
            self.tally.left += failing.drop_all()
            return []
        nothing_else = self._flight.at_end and self._flight.batches == settled
        decision = Decision() if failing.hopeless else failing.look(nothing_else=nothing_else)
        if failing.hopeless is not None:
            decision.add(failing.settle_all(nothing_else=nothing_else))
            if not nothing_else:
                self._fail(failing.hopeless)
        self._settle(decision.settled)
        return decision.again

    def _leave_at_rest(self, settled: int) -> None:
        """End the run once it need not wait for any batch in flight and can submit no more."""
        out = self._flight.batches - settled
        full = self._flight.at_end or out >= self._window.batches
        if 0 < out == len(self.at_rest) and full and not self._stop.begun:
            self._stop.begin(why := self.at_rest.why, self._rules.grace_seconds)
            log.info("%s: this run does not wait for it", why)
            self._tell(Stopping, reason=why, running=out)

    def _affordable(self, again: list[Batch], group: Sequence[Outcome]) -> list[Batch]:
        """Return the batches that the budget allows; end the run if it does not allow all."""
        out = self._flight.items - sum(len(outcome.batch) for outcome in group)
        with self._flight.changed:  # the feeder spends too
            for at, batch in enumerate(again):
                if not self._spending.affords(batch, out, again=True):
                    self._leave_for_the_budget(len(again) - at)
                    return again[:at]
                self._spending.begins(batch)
                out += len(batch)
        return again

    def _leave_for_the_budget(self, batches: int) -> None:
        # Held batches would wait for tries that will not be made.
        self.tally.left += batches + self.failing.drop_all()
        if not self._stop.begun:
            why = self._stop.note_budget(self._spending.used_up)
            if not self._window.submits:  # else the batches in flight are collected first
                self._begin_to_stop(why, math.inf)

    def _fail(self, why: str) -> None:
        """End the run early because the job has failed."""
        self.tally.why_failed = why
        self._stop.event.set()

    def _commit(self, group: Sequence[Outcome]) -> list[Batch]:
        """Commit the settled outcomes; return the batches to handle again."""
        settled: list[Done] = []
        again: list[Batch] = []
        fatal: BaseException | None = None
        for outcome in group:
            match outcome:
                case Done() | Failed():
                    decision = self.failing.take(self._spending.add(outcome))
                    settled += [each for each in decision.settled if each.tells]
                    again += decision.again
                    if isinstance(outcome, Done) and outcome.batch.submission is not None:
                        self._checkpoint.planner.out.answered(outcome.done)
                    if isinstance(outcome, Done) and outcome.rest is not None:
                        again += batches_of(outcome.rest, self._checkpoint.planner)
                case Dropped():
                    self._spending.add(outcome)
                    self._dropped(outcome)
                case Fatal():
                    fatal = fatal or outcome.error
        self._settle(settled)
        if fatal is not None:
            # The other batches in flight get the grace period and are committed.
            self.tally.fatal = self.tally.fatal or fatal
            self._begin_to_stop(type(fatal).__name__, self._rules.grace_seconds)
        self._check_costs(group)
        if self._stop.begun:  # the next run handles these
            self.tally.left += len(again)
            return []
        return again

    def _dropped(self, outcome: Dropped) -> None:
        self.tally.left += 1
        if outcome.why or not self._stop.begun:
            # Nobody requested a stop, but the batch was not handled, so the run is incomplete.
            self._begin_to_stop(outcome.why or "the orchestrator", self._rules.grace_seconds)

    def _check_costs(self, group: Sequence[Outcome]) -> None:
        for outcome in group:
            if isinstance(outcome, (Done, Failed)) and math.isnan(outcome.cost):
                raise UsageError(
                    "the cost of a batch is unknown (the log says why), so the budget cannot be "
                    "enforced: set cost= to a column of the results, or to a callable that returns "
                    "a number"
                )

    def _settle(self, settled: Sequence[Done], *, at_end: bool = False) -> None:
        """Commit these outcomes; results that do not fit the table are parked in that commit."""
        self._spending.settle(settled)
        owed = self._spending.take_owed(due=bool(settled) or at_end)
        if not settled and owed is None:
            return
        try:
            self._settle_together(settled, owed)
        except GaveWay:
            self._settle_together((), owed)
            self._settle_each(settled)

    def _settle_each(self, settled: Sequence[Done]) -> None:
        """Commit each outcome separately, so that no lock is held while waiting for a writer.

        If that writer does not finish, the results are parked.
        """
        waiting = sorted(settled, key=lambda outcome: outcome.batch.number)
        for _ in range(_TRIES):
            left: list[Done] = []
            for outcome in waiting:
                try:
                    self._settle_together([outcome])
                except GaveWay as other:
                    left.append(outcome)
                    wait = other.wait
            if not left:
                return
            wait()
            waiting = left
        for outcome in waiting:
            log.warning("batch %d: another writer holds its rows; parked", outcome.batch.number)
            try:
                self._settle_together([outcome], add=self._refused.park)
            except GaveWay as other:
                raise StoreError(
                    f"{self._checkpoint.url}: {other} and does not release it. Earlier commits are "
                    "safe. Let that writer end, and run the same command again"
                ) from other

    def _settle_together(
        self,
        settled: Sequence[Done],
        owed: Done | None = None,
        *,
        add: Callable[[Unit, Done], list[Done]] | None = None,
    ) -> None:
        write = partial(self._write, settled, owed, add or self._refused.add)
        # After the grace period, stop waiting for a lost connection.
        receipt, accepted, seconds = until_written(write, lambda: self._stop.overdue)
        if receipt is not None and accepted:
            self._committed(receipt, accepted, seconds)

    def _write(
        self, settled: Sequence[Done], owed: Done | None, add: Callable[[Unit, Done], list[Done]]
    ) -> tuple[Receipt | None, list[Done], float]:
        """Commit these outcomes; return the receipt, the outcomes committed, and the seconds."""
        accepted: list[Done] = []
        with self._checkpoint.begin() as unit:
            if owed is not None:
                unit.add(owed)
            for outcome in settled:
                accepted += add(unit, self._with_items(outcome))
                if outcome.settles:
                    unit.settle(outcome.settles)
            began = time.monotonic()
            receipt = unit.commit() if accepted or owed is not None else None
        return receipt, accepted, time.monotonic() - began

    def _committed(self, receipt: Receipt, accepted: Sequence[Done], seconds: float) -> None:
        """Update the counts and the window after a commit, and tell the listeners."""
        self.tally.completed += receipt.completed
        for failure in receipt.failures:
            (self.tally.parked if failure.parked else self.tally.failures).append(failure)
        self._window.widen(accepted, receipt.size, seconds)
        if self._refused.hopeless or (receipt.failures and self._rules.fail_fast):
            self._fail(self._refused.hopeless or "fail_fast=True")
        self._tell(
            Committed,
            number=receipt.number,
            completed=receipt.completed,
            rows=receipt.rows,
            bytes=receipt.bytes,
            failures=receipt.failures,
            canonical=join(outcome.done for outcome in accepted if outcome.completed),
            seconds=seconds,
        )

    def _with_items(self, outcome: Done) -> Done:
        """Return the outcome with its failed items attached, if the job keeps them."""
        unknown = outcome.batch.submission is not None  # the items were an earlier run's
        if not outcome.failures or not self._rules.keep_items or unknown:
            return outcome
        kept = failures.with_items(outcome.failures, outcome.batch)
        return replace(outcome, failures=kept)
