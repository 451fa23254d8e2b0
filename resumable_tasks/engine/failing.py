"""Decides why a batch failed: a bad item, a wrong handler, or a service that is down.

A failed batch is *held* until the cause is known. Meanwhile nothing is recorded, and no attempt of
its items is counted.

* **A call that began later has succeeded**: the service and the handler work, so the batch contains
  a bad item. The batch is halved and the halves are handled, and so on, until each bad item is
  isolated (`isolation`); the good items are committed.
* **``pause_after`` batches in a row have failed with the same transient error**: the run pauses.
  Each try calls one held item and one new batch (`breaker`). If the first try succeeds, there are
  just many bad items. If a later one succeeds, the service is back, and the held batches are
  handled again unchanged. After ``give_up_after`` seconds the run ends as interrupted.
* **The errors are programming errors**: a few more calls are tried without waiting. If all of them
  fail, the run ends as failed (`doubt`). If results have a shape that cannot be matched to any
  batch, the first few calls show it.
* **Nothing else is left to handle**: if any call of this run has succeeded, held batches are halved
  as after a success. For what looks like an outage, the run first waits a short time.

A batch of *suspects* (items that failed alone in an earlier run) is halved at once. Its failure is
no evidence about the handler, and about the service only if it looks like an outage.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from resumable_tasks.base import log
from resumable_tasks.base.clock import SYSTEM, Clock
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import clean
from resumable_tasks.engine import breaker, doubt, isolation
from resumable_tasks.engine.breaker import Evidence
from resumable_tasks.engine.isolation import Number
from resumable_tasks.items.batch import Batch, Cause
from resumable_tasks.runners.outcome import Done, Failed

_MOST_HELD = 64
_ITEMS_TO_TRY = 5
_MORE_BATCHES = 10
_MORE_BATCHES_AFTER_SUCCESS = 30
_MOST_PATIENT = 8
# The number of batches that show a wrong shape; if there are fewer batches, the number of halves.
_SHAPE_BATCHES, _SHAPE_HALVES = 3, 2
_SMALLEST_TO_HALVE = 4


@dataclass(slots=True)
class Decision:
    """The ``settled`` outcomes are to be committed, the ``again`` batches to be handled."""

    settled: list[Done] = field(default_factory=list)
    again: list[Batch] = field(default_factory=list)

    def add(self, other: Decision) -> None:
        self.settled += other.settled
        self.again += other.again


@frozen
class Row:
    """The batches that failed in a row, by their planned numbers.

    ``same``: the latest of them that share one class of error. ``alarms``: how many rows since the
    last outage were false alarms; each doubles the length that counts as an outage, up to 8 times.
    """

    error: str = ""
    same: frozenset[int] = frozenset()
    all: frozenset[int] = frozenset()
    alarms: int = 0

    def and_then(self, root: int, error: str) -> Row:
        same = self.same | {root} if error == self.error else frozenset({root})
        return replace(self, error=error, same=same, all=self.all | {root})

    def is_long(self, pause_after: int) -> bool:
        enough = pause_after * min(1 << self.alarms, _MOST_PATIENT)
        # An outage may cause several kinds of errors: twice as many of any kind are enough too.
        return len(self.same) >= enough or len(self.all) >= 2 * enough


class FailureHandling:
    """Takes outcomes in the committer's thread and decides which are settled.

    ``number`` returns the number of the next new batch. ``pause_after``: None never pauses.
    ``fail_fast``: failures are settled at once. ``run``: the number of this run, so that each run
    tries different items. The engine ends the run once `give_up` or `hopeless` returns a reason.
    ``retried``: the batches that were called again with the same items.
    """

    def __init__(
        self,
        number: Number,
        *,
        isolate: bool,
        pause_after: int | None,
        give_up_after: float,
        fail_fast: bool = False,
        run: int = 0,
        clock: Clock = SYSTEM,
    ) -> None:
        self._number = number
        self._isolate = isolate
        self._pause_after = pause_after
        self._fail_fast = fail_fast
        self._clock = clock
        self._breaker: breaker.State = breaker.Closed(give_up_after)
        self._doubt: doubt.State = doubt.Trusted()
        self._row = Row()
        self._held: list[Failed] = []
        self._tries = isolation.Tries(run * _ITEMS_TO_TRY)
        self._has_worked = False
        self._admit = False
        # Calls that began before this time may have failed because of an outage.
        self._service_back_at = -math.inf
        self._why = ""
        self.retried: set[int] = set()

    @property
    def give_up(self) -> str | None:
        """The reason to end the run as interrupted, or None."""
        return self._why if isinstance(self._breaker, breaker.Open) else None

    @property
    def hopeless(self) -> str | None:
        """The reason to end the run as failed, or None."""
        return self._why if isinstance(self._doubt, doubt.Broken) else None

    @property
    def held(self) -> int:
        """The number of batches that are held."""
        return len(self._held)

    @property
    def paused(self) -> bool:
        """True while batches begin only if they are admitted one by one."""
        return self._pausing or not isinstance(self._doubt, doubt.Trusted)

    @property
    def down(self) -> bool:
        """True while the run pauses, since the service seems to be down."""
        return self._pausing

    @property
    def _pausing(self) -> bool:
        return not isinstance(self._breaker, breaker.Closed)

    def may_begin(self) -> bool:
        """True if a new batch may begin; in a pause, one for each try. In the caller's thread."""
        if not self.paused:
            return True
        admitted, self._admit = self._admit, False
        return admitted

    @property
    def wait(self) -> float | None:
        """Seconds until `look` has something to do; None if it must wait for an outcome."""
        if not isinstance(self._breaker, breaker.Paused):
            return None
        return max(0.0, self._breaker.until - self._clock.monotonic())

    def take(self, outcome: Done | Failed) -> Decision:
        """Decide what follows from an outcome: what to commit and what to handle again."""
        first, *failed = isolation.as_two(outcome)
        decision = self._take(first)
        for each in failed:
            assert isinstance(each, Failed)
            decision.add(self._take_failed(each, tried=False))
        return decision

    def _take(self, outcome: Done | Failed) -> Decision:
        batch = outcome.batch
        tried = batch.number in self._tries.out
        self._tries.out.discard(batch.number)
        if outcome.times.calls > 1:
            self.retried.add(isolation.root_of(batch))
        if isinstance(outcome, Failed):
            return self._take_failed(outcome, tried)
        if outcome.completed and not (outcome.failures or self._held or tried or self.paused):
            self._has_worked = True
            return Decision(settled=[outcome])  # the usual case
        # A call that returned only failures is no evidence about other batches.
        decision = Decision()
        if outcome.completed:
            decision.add(self._succeeded(outcome.times.began, tried))
        elif tried:
            self._step(Evidence.FAILURE, outcome)
        if self._fail_fast or (found := isolation.left_out(outcome, self._number)) is None:
            decision.settled.append(outcome)
            return decision
        missing, rest = found
        decision.add(Decision([rest] if rest is not None else [], [missing]))
        return decision

    def look(self, *, nothing_else: bool) -> Decision:
        """Decide what is due now. ``nothing_else``: no batch runs, and there are no more items."""
        if self.paused and not self._held and not self._tries.out:
            self._end_pause()  # the last item tried was returned as a failure, not raised
        if not self.paused:
            return self._at_the_end() if nothing_else and self._held else Decision()
        if self._tries.out:
            return Decision()
        if isinstance(self._doubt, doubt.Doubted):
            return self._doubted(self._doubt, nothing_else=nothing_else)
        if nothing_else and not any(held.error.outage for held in self._held):
            # No new batch can give evidence, and nothing looks like an outage.
            self._step(Evidence.NO_SIGN)
            self._row = Row(alarms=self._row.alarms + 1)
            return self._at_the_end()
        order = self._step(Evidence.NOTHING)
        if order is breaker.Order.TRY:
            self._admit = True
            return Decision(again=[self._one_to_try()])
        return Decision()

    def settle_all(self, *, nothing_else: bool) -> Decision:
        """Record held items as failed, with the error of their batch, because the run ends.

        No attempt is counted, because nothing works and no item is known to be at fault. Exception:
        ``nothing_else`` is left, and there were only a few items, each of them tried alone.
        Suspects that were not tried alone keep their existing record.
        """
        held, self._held = self._held, []
        counted = (
            nothing_else and len(held) <= _ITEMS_TO_TRY and all(map(isolation.was_alone, held))
        )
        known = (each for each in held if isolation.was_alone(each) or not each.batch.suspects)
        return Decision([self._settled(each, counted=counted) for each in known])

    def drop_all(self) -> int:
        """Forget the held batches without a record, because the run ends; return their number."""
        count = len(self._held)
        self._held.clear()
        self._tries.out.clear()
        return count

    # --- after a success

    def _succeeded(self, began: float, tried: bool) -> Decision:
        self._has_worked = True
        self._row = Row(alarms=self._row.alarms)
        # A success is evidence only about calls that had failed before it began.
        known = [held for held in self._held if held.times.ended < began]
        if not self.paused or not (known or tried):
            return self._release(known)
        log.info("a call succeeded: the run continues")
        service_is_back = self._step(Evidence.SUCCESS) is breaker.Order.AGAIN
        if service_is_back:
            self._service_back_at = began
        self._doubt, self._admit = doubt.Trusted(), False
        # With many bad items, the run must not pause every time a few of them come in a row.
        self._row = Row(alarms=0 if service_is_back else self._row.alarms + 1)
        return self._release(known, paused=True)

    def _release(self, known: Iterable[Failed], *, paused: bool = False) -> Decision:
        """Release held batches to be halved, because the cause of their failure is known.

        Batches that began while the service was down are handled again unchanged instead, and so
        are batches of one item if the run has ``paused``; each batch only once.
        """
        decision = Decision()
        known = list(known)
        released = set(map(id, known))
        self._held = [held for held in self._held if id(held) not in released]
        for held in known:
            down = held.times.began < self._service_back_at
            alone = paused and held.batch.part_of is None and len(held.batch) == 1
            if (down or alone) and held.error.transient and not isolation.was_again(held.batch):
                self.retried.add(isolation.root_of(held.batch))
                decision.again.append(isolation.again(held, self._number))
            else:
                decision.add(self._isolated(held))
        return decision

    def _isolated(self, failed: Failed) -> Decision:
        if self._isolate and not isolation.was_alone(failed):
            return Decision(again=isolation.parts(failed, self._number))
        return Decision(settled=[self._settled(failed)])

    def _settled(self, failed: Failed, *, counted: bool = True) -> Done:
        # If nothing has worked yet, a failed import is not an item's fault.
        counted = counted and (self._has_worked or not failed.error.environment)
        return isolation.settled(failed, isolate=self._isolate, counted=counted)

    # --- after a failure

    def _take_failed(self, failed: Failed, tried: bool) -> Decision:
        if failed.error.cause is Cause.STOPPED:
            self._held.append(failed)  # the run is stopping, and will drop it without a record
            return Decision()
        if self._fail_fast:
            return Decision(settled=[self._settled(failed)])
        silent = failed.batch.suspects and not failed.error.outage
        if silent and not self.paused:
            return self._isolated(failed)
        self._held.append(failed)
        if isinstance(self._doubt, doubt.Doubted) and self._doubt.shape and not failed.error.shape:
            self._doubt = doubt.Trusted()  # the shape of the results is not the only fault
        if tried and self.paused:
            self._step(Evidence.FAILURE, failed)
        elif self._pause_after is None:
            if not self._isolate or len(self._held) > _MOST_HELD:
                return self._release(self._held)
        elif not silent:
            self._count(failed, self._pause_after)
        return Decision()

    def _count(self, failed: Failed, pause_after: int) -> None:
        """Count one more failed batch in a row; pause or doubt the handler if there are enough."""
        self._row = self._row.and_then(isolation.root_of(failed.batch), failed.error.name)
        if self.paused:
            return
        if failed.error.shape and not self._has_worked and len(self._row.all) == 1:
            self._doubt = doubt.Doubted(0, _SHAPE_BATCHES, shape=True)
        elif not self._row.is_long(pause_after):
            return
        elif failed.error.transient:
            self._step(Evidence.MANY_FAILED)
            log.warning(
                "%d batches in a row failed with %s: pausing, and trying one call at a time for up "
                "to %g s; no attempts are counted meanwhile. If the items are bad and the service "
                "is fine, set pause_after=None",
                len(self._row.all),
                _describe(failed),
                self._breaker.patience if isinstance(self._breaker, breaker.Paused) else 0.0,
            )
        else:
            self._doubt = self._doubt_handler()

    def _doubt_handler(self) -> doubt.Doubted:
        """Begin to test whether anything works, for errors that waiting does not fix."""
        log.warning(
            "nothing has succeeded since %s failed (last: %s): trying a few single items and a few "
            "more batches before giving up. If the items are bad and the handler is fine, set "
            "pause_after=None",
            _batches(len(self._held)),
            _describe(self._held[-1]),
        )
        # A handler that has worked before is more likely to have met bad items.
        more = _MORE_BATCHES_AFTER_SUCCESS if self._has_worked else _MORE_BATCHES
        left = (len(held.batch) for held in self._held if not isolation.was_alone(held))
        tries = min(_ITEMS_TO_TRY, sum(left)) if self._isolate else 0
        return doubt.Doubted(tries, (self._pause_after or 0) + more)

    def _doubted(self, state: doubt.Doubted, *, nothing_else: bool) -> Decision:
        in_a_row = len(self._row.all)
        if state.shape and nothing_else and not state.tried and in_a_row < state.batches:
            # There are too few batches to judge by their number: try halves of them.
            large = [held for held in self._held if len(held.batch) >= _SMALLEST_TO_HALVE]
            if not large or not self._isolate:
                self._doubt = doubt.Trusted()
                return self._at_the_end()
            state = replace(state, tries=_SHAPE_HALVES)
        self._doubt, order = doubt.step(
            state, in_a_row=in_a_row, nothing_else=nothing_else, has_worked=self._has_worked
        )
        match order:
            case doubt.Order.TRY:
                return Decision(again=[self._one_to_try(shape=state.shape)])
            case doubt.Order.BEGIN:
                self._admit = True
            case doubt.Order.HALVE:
                return self._release(self._held)
        if isinstance(self._doubt, doubt.Broken):
            self._why = self._why_broken(self._doubt)
        return Decision()

    def _at_the_end(self) -> Decision:
        """Give up finding out why the held batches failed."""
        if self._pause_after is None:
            return self._release(self._held)
        if any(held.error.outage for held in self._held):
            # Too few batches are left to recognise an outage by their number.
            self._step(Evidence.LAST_FAILED)
            if self._pausing:
                return self.look(nothing_else=True)
        if self._has_worked or not self._isolate:
            return self._release(self._held)
        if suspects := [held for held in self._held if held.batch.suspects]:
            return self._release(suspects)
        # Nothing has worked in this run: try a few single items to see whether all of them fail.
        return self._doubted(self._doubt_handler(), nothing_else=True)

    def _one_to_try(self, *, shape: bool = False) -> Batch:
        """Take one held item out of its batch, a different one each time.

        ``shape``: take half of the largest batch instead.
        """
        if shape:
            held = max(self._held, key=lambda each: len(each.batch))
            at, size = 0, len(held.batch) // 2
        elif self._isolate:
            # Items that were already tried alone come last.
            held = min(self._held, key=isolation.was_alone)
            at, size = self._tries.place(len(held.batch)), 1
        else:
            held = self._held[0]
            at, size = 0, len(held.batch)
        one, rest = isolation.to_try(held, self._number, at, size)
        left = (each for each in self._held if each is not held)
        self._held = [*left, *([rest] if rest is not None else [])]
        self._tries.out.add(one.number)
        return one

    def _end_pause(self) -> None:
        self._step(Evidence.NO_SIGN)
        self._doubt, self._admit = doubt.Trusted(), False

    def _step(self, evidence: Evidence, last: Done | Failed | None = None) -> breaker.Order:
        """Make one step of the breaker; ``last`` is the failure that the messages describe."""
        now = self._clock.monotonic()
        before, (self._breaker, order) = self._breaker, breaker.step(self._breaker, evidence, now)
        if self._breaker is before:
            return order
        match self._breaker:
            case breaker.Closed():
                self._admit = False
                if evidence is Evidence.FAILURE:
                    # The wait for the last batches is over; each is called once more.
                    self._service_back_at = now
            case breaker.Paused(pause=pause, until=until) if pause and last is not None:
                log.warning(
                    "still failing with %s: next try in %.0f s", _describe(last), until - now
                )
            case breaker.Open(seconds=seconds) if last is not None:
                self._why = (
                    f"{seconds:.0f} s without a success (last failure: {_describe(last)}); items "
                    "that failed meanwhile are left to the next run, with no attempt counted"
                )
        return order

    def _why_broken(self, state: doubt.Broken) -> str:
        last = _describe(self._held[-1])
        failed = f"{_batches(len(self._held))} failed"
        if state.shape:
            return (
                f"no result of the handler can be matched to its items: {failed} with {last} (if "
                "the items are bad and the handler is fine, set pause_after=None)"
            )
        if state.tried:
            items = "1 single item" if state.tried == 1 else f"{state.tried} single items"
            failed += f", and {items}"
        return f"nothing has succeeded; {failed} (last: {last})"


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count:,} batches"


def _describe(outcome: Done | Failed) -> str:
    message = outcome.failures[0].message if outcome.failures else ""
    name = outcome.error.name if isinstance(outcome, Failed) else "ItemFailure"
    return f"{name}: {clean(message, 300)}" if message else name
