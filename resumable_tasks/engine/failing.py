"""The meaning of a failed batch: a bad item, a wrong handler, or a service that is down.

A batch that failed is *held*: nothing is recorded of it, and no attempt of its items is counted,
until it is known which of the three it is.

* **A call that began later has succeeded**: the service and the handler work, so there is a bad
  item. The batch is halved and its halves are handled, and so on, until the bad items stand alone
  (`isolation`); what is good is committed.
* **So many batches in a row have failed with one error** (``pause_after``): the run pauses, and
  tries one item of those that are held and one new batch at a time (`breaker`). If the first
  succeeds there are just many bad items; if a later one does, the service is back, and what is
  held is handled again as it was. After ``give_up_after`` seconds the run ends as interrupted.
* **The errors are those of programming**: a few more are tried at once, and if all of them fail
  the run ends as failed (`doubt`). Results of a shape that no batch's would match are found
  out by the first few calls.
* **There is nothing else to handle**: as with a success, if there has been any in this run; what
  looks like an outage is waited for, but not for long.

A batch of *suspects*, items that have failed by themselves in an earlier run, is halved at once:
that it fails says nothing of the handler, and nothing of the service, unless it looks like an
outage.
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
# Results of a wrong shape: so many batches, or, where there are fewer, so many halves.
_SHAPE_BATCHES, _SHAPE_HALVES = 3, 2
_SMALLEST_TO_HALVE = 4


@dataclass(slots=True)
class Decision:
    """``settled`` outcomes are to be committed, ``again`` batches to be handled."""

    settled: list[Done] = field(default_factory=list)
    again: list[Batch] = field(default_factory=list)

    def add(self, other: Decision) -> None:
        self.settled += other.settled
        self.again += other.again


@frozen
class Row:
    """Batches that have failed one after the other, by the numbers they were planned with.

    ``same`` are those at its end that failed with one class of error. ``alarms``: how many rows
    on end looked like an outage and were none; each makes the next one longer before it does.
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
        # An outage has more than one face: twice as many failures of any kind are enough too.
        return len(self.same) >= enough or len(self.all) >= 2 * enough


class FailureHandling:
    """Takes outcomes, in the committer's thread, and decides which are settled.

    ``number`` gives the numbers of further batches. ``pause_after`` None: the run never pauses.
    ``fail_fast``: what has failed is settled at once. ``run`` is the number of this run: each tries
    other items. The engine ends the run once `give_up` or `hopeless` says why. ``retried`` are the
    batches that were called again with the same items.
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
        # What began before is not to be blamed for its failure.
        self._service_back_at = -math.inf
        self._why = ""
        self.retried: set[int] = set()

    @property
    def give_up(self) -> str | None:
        """Why the run is to end as interrupted, if it is."""
        return self._why if isinstance(self._breaker, breaker.Open) else None

    @property
    def hopeless(self) -> str | None:
        """Why the run is to end as failed, if it is."""
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
        """True if a new batch may begin: in a pause one now and then. In the caller's thread."""
        if not self.paused:
            return True
        admitted, self._admit = self._admit, False
        return admitted

    @property
    def wait(self) -> float | None:
        """Seconds after which `look` has something to do; None: not by itself."""
        if not isinstance(self._breaker, breaker.Paused):
            return None
        return max(0.0, self._breaker.until - self._clock.monotonic())

    def take(self, outcome: Done | Failed) -> Decision:
        """Decide what follows from an outcome."""
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
            return Decision(settled=[outcome])  # as nearly all are
        # One that returns nothing but failures says nothing of others.
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
            self._end_pause()  # the last item that was tried has failed without raising
        if not self.paused:
            return self._at_the_end() if nothing_else and self._held else Decision()
        if self._tries.out:
            return Decision()
        if isinstance(self._doubt, doubt.Doubted):
            return self._doubted(self._doubt, nothing_else=nothing_else)
        if nothing_else and not any(held.error.outage for held in self._held):
            # No new batch can tell any more, and there is no sign of an outage.
            self._step(Evidence.NO_SIGN)
            self._row = Row(alarms=self._row.alarms + 1)
            return self._at_the_end()
        order = self._step(Evidence.NOTHING)
        if order is breaker.Order.TRY:
            self._admit = True
            return Decision(again=[self._one_to_try()])
        return Decision()

    def settle_all(self, *, nothing_else: bool) -> Decision:
        """Record what is held as failed, with the error of its batch, because the run ends.

        Nothing works, so that it is not known to be an item's fault: no attempt is counted, but
        where there were only a few items, each tried by itself, and ``nothing_else``. Suspects that
        were not tried by themselves keep the record that they have.
        """
        held, self._held = self._held, []
        counted = (
            nothing_else and len(held) <= _ITEMS_TO_TRY and all(map(isolation.was_alone, held))
        )
        known = (each for each in held if isolation.was_alone(each) or not each.batch.suspects)
        return Decision([self._settled(each, counted=counted) for each in known])

    def drop_all(self) -> int:
        """Forget what is held, because the run ends: nothing is recorded of it, or awaited."""
        count = len(self._held)
        self._held.clear()
        self._tries.out.clear()
        return count

    # --- a success, and what is known by it

    def _succeeded(self, began: float, tried: bool) -> Decision:
        self._has_worked = True
        self._row = Row(alarms=self._row.alarms)
        # A call that was on its way when others failed says nothing of the time after.
        known = [held for held in self._held if held.times.ended < began]
        if not self.paused or not (known or tried):
            return self._release(known)
        log.info("a call succeeded: the run continues")
        service_is_back = self._step(Evidence.SUCCESS) is breaker.Order.AGAIN
        if service_is_back:
            self._service_back_at = began
        self._doubt, self._admit = doubt.Trusted(), False
        # Where bad items are many, not every few of them are to stop the run for a moment.
        self._row = Row(alarms=0 if service_is_back else self._row.alarms + 1)
        return self._release(known, paused=True)

    def _release(self, known: Iterable[Failed], *, paused: bool = False) -> Decision:
        """Let go of held batches, whose kind is known, to be halved.

        What began while the service was down is handled again as it was instead, and so is a batch
        of one item if the run has ``paused``: each only once.
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
        # Where nothing has worked, an import that fails says nothing of an item.
        counted = counted and (self._has_worked or not failed.error.environment)
        return isolation.settled(failed, isolate=self._isolate, counted=counted)

    # --- a failure, and what many of them may mean

    def _take_failed(self, failed: Failed, tried: bool) -> Decision:
        if failed.error.cause is Cause.STOPPED:
            self._held.append(failed)  # until the run has stopped, and nothing is recorded of it
            return Decision()
        if self._fail_fast:
            return Decision(settled=[self._settled(failed)])
        silent = failed.batch.suspects and not failed.error.outage
        if silent and not self.paused:
            return self._isolated(failed)
        self._held.append(failed)
        if isinstance(self._doubt, doubt.Doubted) and self._doubt.shape and not failed.error.shape:
            self._doubt = doubt.Trusted()  # there is more that is wrong
        if tried and self.paused:
            self._step(Evidence.FAILURE, failed)
        elif self._pause_after is None:
            if not self._isolate or len(self._held) > _MOST_HELD:
                return self._release(self._held)
        elif not silent:
            self._count(failed, self._pause_after)
        return Decision()

    def _count(self, failed: Failed, pause_after: int) -> None:
        """One more batch in a row has failed: does the run go on?"""
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
                "%d batches in a row have failed with %s: the run pauses, and tries one at a time "
                "for up to %g s; no attempt is counted meanwhile. If the items are bad and the "
                "service is fine, set pause_after=None",
                len(self._row.all),
                _describe(failed),
                self._breaker.patience if isinstance(self._breaker, breaker.Paused) else 0.0,
            )
        else:
            self._doubt = self._doubt_handler()

    def _doubt_handler(self) -> doubt.Doubted:
        """Begin to test whether anything works, where waiting is of no use."""
        log.warning(
            "nothing has succeeded since %s failed, the last with %s: trying a few single items, "
            "and a few more batches, before the run ends. If the items are bad and the handler is "
            "fine, set pause_after=None",
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
            # Too few batches to tell by their number.
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
            # Too few batches are left to tell an outage by their number.
            self._step(Evidence.LAST_FAILED)
            if self._pausing:
                return self.look(nothing_else=True)
        if self._has_worked or not self._isolate:
            return self._release(self._held)
        if suspects := [held for held in self._held if held.batch.suspects]:
            return self._release(suspects)
        # Nothing has worked in this run: a few items are to tell whether it is for all of them.
        return self._doubted(self._doubt_handler(), nothing_else=True)

    def _one_to_try(self, *, shape: bool = False) -> Batch:
        """One item of those that are held, taken out of its batch; another each time.

        ``shape``: half of the largest batch.
        """
        if shape:
            held = max(self._held, key=lambda each: len(each.batch))
            at, size = 0, len(held.batch) // 2
        elif self._isolate:
            # What has been tried alone is tried again only if there is nothing else.
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
        """One step of the breaker; ``last`` is what has failed, for the messages."""
        now = self._clock.monotonic()
        before, (self._breaker, order) = self._breaker, breaker.step(self._breaker, evidence, now)
        if self._breaker is before:
            return order
        match self._breaker:
            case breaker.Closed():
                self._admit = False
                if evidence is Evidence.FAILURE:
                    # The last batches have been waited for; each is called once more.
                    self._service_back_at = now
            case breaker.Paused(pause=pause, until=until) if pause and last is not None:
                log.warning(
                    "still failing, with %s: next try in %.0f s", _describe(last), until - now
                )
            case breaker.Open(seconds=seconds) if last is not None:
                self._why = (
                    f"{seconds:.0f} s without a success (the last failure is {_describe(last)}); "
                    "what has failed meanwhile is left to the next run, with no attempt counted"
                )
        return order

    def _why_broken(self, state: doubt.Broken) -> str:
        last = _describe(self._held[-1])
        failed = f"{_batches(len(self._held))} failed"
        if state.shape:
            return (
                f"no result of the handler can be matched to its items: {failed}, with {last} (if "
                "some items are at fault, and not the handler: pause_after=None)"
            )
        if state.tried:
            items = "1 item by itself" if state.tried == 1 else f"{state.tried} items by themselves"
            failed += f", and {items}"
        return f"nothing has succeeded, and {failed}, the last with {last}"


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count:,} batches"


def _describe(outcome: Done | Failed) -> str:
    message = outcome.failures[0].message if outcome.failures else ""
    name = outcome.error.name if isinstance(outcome, Failed) else "ItemFailure"
    return f"{name}: {clean(message, 300)}" if message else name
