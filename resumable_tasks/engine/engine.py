"""The only loop: batches out to the runner, outcomes in, one committer.

::

    caller's thread    plan → wait for room → submit
    runner's threads   handler → rows matched to keys → outcome
    committer thread   all outcomes that wait → one shard, one record → events

Group commit comes by itself: while one commit is flushed, finished batches queue, and the next
commit takes them all. How many batches may be out at once (submitted and not yet committed) is
bounded, which bounds both memory and what a crash costs. What becomes of a batch that failed is
decided by `triage`; its parts go out again from the committer's thread.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterable
from contextvars import copy_context
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.checkpoint.form import CheckpointForm
from resumable_tasks.engine.budget import Budget
from resumable_tasks.engine.events import Committed, Listeners, Progress, Stopping
from resumable_tasks.engine.refused import Conflicts
from resumable_tasks.engine.triage import Decision, Triage
from resumable_tasks.engine.window import Window
from resumable_tasks.errors import CommitStateUnknown, ResultConflict, UsageError
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.plan import Planner
from resumable_tasks.runners import failures
from resumable_tasks.runners.base import Runner, Work, failed_whole
from resumable_tasks.runners.outcome import Failure, Outcome
from resumable_tasks.task.options import JobOptions

_POLL_SECONDS = 0.05
_ABANDON_SECONDS = 5.0


class _Wake:
    """In the queue of outcomes: the items are at their end."""


@dataclass(frozen=True, slots=True)
class _StopRequest:
    """In the queue of outcomes, whose ``put`` may be called in a signal handler."""

    reason: str
    grace_seconds: float


class Engine:
    """One run: counts, the window, the committer. ``run`` is called once."""

    def __init__(
        self,
        checkpoint: CheckpointForm,
        planner: Planner,
        runner: Runner,
        work: Work,
        listeners: Listeners,
        *,
        expected: int | None,
        options: JobOptions,
        budget: Budget,
    ) -> None:
        self._checkpoint = checkpoint
        self._planner = planner
        self._runner = runner
        self._work = work
        self._listeners = listeners
        self._expected = expected
        self._options = options
        self.budget = budget
        self._triage = Triage(
            planner.next_number,
            isolate=options.isolate,
            pause_after=options.pause_after,
            give_up_after=options.give_up_after,
        )
        self._queue: SimpleQueue[Outcome | _StopRequest | _Wake | None] = SimpleQueue()
        self._stopping = threading.Event()
        self._room = threading.Condition()
        self._out = 0
        self._out_items = 0
        self._held = 0
        self._at_end = False
        self._exhausted = False
        self._left = 0
        self._window = Window(runner)
        self._conflicts = Conflicts(checkpoint, work.scheme, options.pause_after)
        self._began = time.monotonic()
        self._deadline: float | None = None
        self._broken: BaseException | None = None
        self.found = checkpoint.found
        self.completed = 0
        self.failures: list[Failure] = []
        self.interrupted: str | None = None
        self.asked_to_stop = False
        self.ended_early: str | None = None
        self.abandoned = 0

    def run(self, items: Iterable[Any]) -> None:
        """Handle and commit all batches of these items, or as many as there is time for.

        Raises what the items raise, what a commit raises, and what is fatal in a handler; all
        that had finished by then is committed first, as far as it can be.
        """
        self._began = time.monotonic()
        committer = threading.Thread(
            target=copy_context().run,
            args=(self._commit_all,),
            name="resumable-commit",
            daemon=True,
        )
        self._runner.start(self._work, self._queue.put, self._stopping)
        committer.start()
        drained = False
        try:
            self._hand_out(items)
            drained = self._drain()
        except Exception:  # the items' own, or what is wrong with them
            drained = self._drain()
            raise
        finally:
            self.abandoned = 0 if drained else self._out
            self._stopping.set()
            self._runner.close(abandon=not drained)
            self._queue.put(None)
            committer.join(None if drained else _ABANDON_SECONDS)
        if committer.is_alive():
            raise CommitStateUnknown(
                f"the place of {self._checkpoint.url} does not answer; whether the last "
                "commit has landed, the next run finds out. Run the same command again"
            )
        if self._broken is not None:
            raise self._broken
        if self._exhausted and not self._left and not self.abandoned and not self.asked_to_stop:
            self.interrupted = None  # its budget is used up, but nothing is left

    @property
    def stopping(self) -> bool:
        """Whether the run takes no more items."""
        return self._stopping.is_set()

    def request_stop(self, reason: str, at_once: bool = False) -> None:
        """Ask the run to stop: soon, or at once, which leaves running batches alone.

        Safe in a signal handler and in any thread.
        """
        self.asked_to_stop = True
        grace_seconds = 0.0 if at_once else self._options.grace_seconds
        # Here too: a commit that waits for others, such as for a lock, keeps the queue waiting.
        self._deadline = time.monotonic() + grace_seconds
        self._queue.put(_StopRequest(reason, grace_seconds))

    @property
    def _overdue(self) -> bool:
        """Whether what still runs is not waited for any more."""
        return self._deadline is not None and time.monotonic() > self._deadline

    def progress(self) -> Progress:
        """How far the run is."""
        return Progress(
            self.completed,
            len(self.failures),
            self._planner.skipped,
            self._expected,
            time.monotonic() - self._began,
        )

    def _hand_out(self, items: Iterable[Any]) -> None:
        for batch in self._planner.batches(items):
            # An empty one: there is no item for now. What is held must not wait for the next.
            self._at_end = not len(batch)
            if self._at_end:
                self._queue.put(_Wake())
                continue
            allowed = self.budget.hand_out(len(batch))
            if allowed:
                allowed = self._wait_for_room(allowed)
            if allowed < len(batch) and not (self._stopping.is_set() or self._overdue):
                # What is out is within the budget, and is handled.
                self.interrupted = self.interrupted or f"its budget: {self.budget.used_up}"
                log.info("%s: no further batch begins", self.interrupted)
            if not allowed:
                return
            if allowed < len(batch):
                self._runner.submit(batch.slice(0, allowed, batch.number, None))
                return
            self._runner.submit(batch)
        self._exhausted = not self._planner.cut_short

    def _wait_for_room(self, items: int) -> int:
        """Wait until one more batch may be out; of how many of these items, 0 if of none."""
        with self._room:
            while not (self._stopping.is_set() or self._overdue):
                affordable = self.budget.affords(items, self._out_items)
                if not affordable and not self._out:
                    items = self.budget.affordable(items)
                    if not items:
                        return 0
                    continue
                if affordable and self._out < self._window.batches and self._triage.may_begin():
                    if not self._out:
                        self._window.heard()
                    self._out += 1
                    self._out_items += items
                    return items
                self._room.wait(_POLL_SECONDS)
        return 0

    def _drain(self) -> bool:
        """Wait until nothing is out; False if the grace is over before, or commits have failed."""
        self._at_end = True
        self._queue.put(_Wake())
        with self._room:
            while (self._out or self._held) and self._broken is None:
                if self._overdue:
                    return False
                self._room.wait(_POLL_SECONDS)
        return self._broken is None

    def _commit_all(self) -> None:
        """The committer's thread."""
        try:
            while (group := self._next_group()) is not None:
                again = self._commit(group)
                again += self._look_at_held(len(group) - len(again))
                with self._room:
                    self._out += len(again) - len(group)
                    self._out_items += sum(map(len, again)) - sum(len(o.batch) for o in group)
                    self._held = self._triage.held
                    self._room.notify()
                for batch in again:
                    self._runner.submit(batch)
        except BaseException as error:  # noqa: BLE001 - raised by run(), in the caller's thread
            self._broken = error
            self._stopping.set()
            with self._room:
                self._room.notify()

    def _next_group(self) -> list[Outcome] | None:
        """The outcomes that wait; none, if something else is due; None at the end of the run."""
        group: list[Outcome] = []
        while True:
            try:
                found = self._queue.get(not group, self._seconds_until_due())
            except Empty:
                return group
            if isinstance(found, Outcome):
                self._window.heard()
                group.append(found)
            elif isinstance(found, _StopRequest):
                self._stop(found.reason, found.grace_seconds)
            elif isinstance(found, _Wake):
                if not group:
                    return group
            elif group:
                self._queue.put(None)  # again, for the next call
                return group
            else:
                return None

    def _stop(self, reason: str, grace_seconds: float) -> None:
        self.interrupted = self.interrupted or reason
        self._deadline = time.monotonic() + grace_seconds
        self._stopping.set()
        limit = f", or after {grace_seconds:g} s" if grace_seconds < math.inf else ""
        log.warning("%s: stopping once what runs has ended%s (again: at once)", reason, limit)
        self.tell(Stopping, reason=reason, running=self._out)

    def _seconds_until_due(self) -> float | None:
        # A batch of one item has nothing to divide; in a pause nothing is wrong with the batches.
        large = self._out_items > self._out and self._triage.wait is None
        due = [self._triage.wait, self._window.quiet_left(self._out if large else 0)]
        if not self._stopping.is_set():
            due.append(self.budget.seconds_left)
        return min((seconds for seconds in due if seconds is not None), default=None)

    def _look_at_held(self, settled: int) -> list[Batch]:
        """The batches to be handled again that no outcome is needed for, and what ends the run.

        ``settled``: how many of those that are out will not be, once this is done.
        """
        triage = self._triage
        if not self._stopping.is_set():
            if self.budget.over is not None:
                self._stop(f"its budget: {self.budget.over}", math.inf)
            elif triage.give_up is not None:
                self._stop(triage.give_up, self._options.grace_seconds)
        if self._stopping.is_set():
            self._left += triage.drop_all()
            return []
        nothing_else = self._at_end and self._out == settled
        decision = Decision() if triage.hopeless else triage.look(nothing_else=nothing_else)
        if triage.hopeless is not None:
            decision.add(triage.settle_all())
            if not nothing_else:
                self.ended_early = triage.hopeless
                self._stopping.set()
        return decision.again + self._settle(decision.settled)

    def _commit(self, group: list[Outcome]) -> list[Batch]:
        """Commit what is settled; the batches that are to be handled again."""
        settled: list[Outcome] = []
        again: list[Batch] = []
        fatal: BaseException | None = None
        for outcome in group:
            self.budget.add(outcome)
            fatal = fatal or outcome.fatal
            self._left += outcome.dropped
            if outcome.why_dropped or (outcome.dropped and not self._stopping.is_set()):
                # Nobody here has asked for it; but a batch that was not handled is not done.
                self._stop(outcome.why_dropped or "the orchestrator", self._options.grace_seconds)
            if not outcome.dropped and outcome.fatal is None:
                decision = self._decide(outcome)
                settled += decision.settled
                again += decision.again
        again += self._settle(settled)
        if fatal is not None:
            raise fatal
        if any(outcome.cost != outcome.cost for outcome in group):  # NaN
            raise UsageError(
                "what a batch has cost is not known (the log says why), so that no budget can be "
                "kept: let cost= name a column of the results, or be a callable that gives a number"
            )
        if self._stopping.is_set():  # the items of a run that ends are left to the next
            self._left += len(again)
            return []
        return again

    def _decide(self, outcome: Outcome) -> Decision:
        if self._options.fail_fast:
            return Decision(settled=[outcome])
        return self._triage.take(outcome)

    def _settle(self, settled: list[Outcome]) -> list[Batch]:
        """Commit these outcomes; the parts of those that cannot be, to be handled again."""
        schema = None
        accepted: list[Outcome] = []
        again: list[Batch] = []
        for outcome in settled:
            try:
                found, schema = self._conflicts.accept(outcome, schema, accepted)
            except ResultConflict as error:  # a worker's rows
                failed_one = failed_whole(self._work, outcome.batch, error, 1)
                decision = self._decide(
                    replace(failed_one, began=outcome.began, ended=outcome.ended)
                )
                again += decision.again
                found = decision.settled
            accepted += map(self._recorded, found)
        if accepted:
            commit = self._checkpoint.commit(accepted, schema, self._planner.fingerprints)
            # Not all that is in the record: items done anew bring others with them.
            completed = commit.key_count - commit.info.get("copied", 0)
            failed = commit.failures[: sum(len(outcome.failures) for outcome in accepted)]
            self._planner.forget(outcome.done for outcome in accepted)
            self.completed += completed
            self.failures.extend(failed)
            size = commit.info.get("read", sum(shard.bytes for shard in commit.shards))
            self._window.widen(accepted, size)
            if self._conflicts.hopeless or (failed and self._options.fail_fast):
                self.ended_early = self._conflicts.hopeless or "fail_fast=True"
                self._stopping.set()
            self.tell(
                Committed,
                number=commit.number,
                completed=completed,
                rows=commit.info.get("rows", sum(shard.rows for shard in commit.shards)),
                bytes=sum(shard.bytes for shard in commit.shards),
                failures=failed,
                progress=self.progress(),
            )
        return again

    def _recorded(self, outcome: Outcome) -> Outcome:
        """The outcome with its failures as the journal is to have them."""
        if not outcome.failures:
            return outcome
        found = failures.add_earlier_attempts(outcome.failures, self._checkpoint.state.failures)
        if self._options.keep_failed_items:
            found = failures.with_items(found, outcome.batch)
        return replace(outcome, failures=found)

    def tell(self, kind: Any, **fields: Any) -> None:
        """Tell the listeners an event of this run."""
        checkpoint = self._checkpoint
        self._listeners.tell(
            kind(
                job=checkpoint.job,
                checkpoint=checkpoint.url,
                run=checkpoint.run,
                **fields,
            )
        )
