"""What a failed batch means: a bad item in it, a handler that is wrong, or a service that is down.

A batch that failed is *held*: nothing is recorded of it, and none of its items' attempts is used
up, until it is known which of the three it is.

* **A call that began later has succeeded**: the service and the handler work, so there is a bad
  item. The batch is halved and its halves are handled, and so on, until the bad items stand alone
  (bisection: O(k log n) calls for k of them); what is good is committed.
* **So many batches in a row have failed with one error** (``pause_after``): the run pauses, and
  *probes*, with one item of those that are held and one new batch at a time: at once, and then
  after growing pauses. If the first succeeds there are just many bad items. If a later one does
  the service is back, and what is held is handled again as it was. After ``give_up_after`` seconds
  the run ends as interrupted. The idea is that of Nygard's circuit breaker (*Release It!*, 2007).
  An error of programming does not go away by waiting: a few more are tried at once, and if all of
  them fail the run ends as failed.
* **There is nothing else to handle**: as with a success, if there has been any in this run; what
  looks like an outage is waited for, but not for long.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from resumable_tasks.base import log
from resumable_tasks.base.text import clean
from resumable_tasks.items.batch import Batch, Part
from resumable_tasks.runners.outcome import Outcome

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 15.0
_MOST_HELD = 64
_PROBES = 5
_MORE_BATCHES = 10
_MORE_BATCHES_AFTER_SUCCESS = 30
_TAIL_SECONDS = 30.0
_MOST_PATIENT = 8
_MISSING = "MissingResult"


@dataclass(slots=True)
class Decision:
    """``settled`` outcomes are to be committed, ``again`` batches to be handled."""

    settled: list[Outcome] = field(default_factory=list)
    again: list[Batch] = field(default_factory=list)

    def add(self, other: Decision) -> None:
        self.settled += other.settled
        self.again += other.again


class Triage:
    """Takes outcomes, in the committer's thread, and decides which are settled.

    ``number`` gives the numbers of further batches. ``pause_after`` None: the run never pauses.
    After `give_up` or `hopeless` is set, the engine ends the run.
    """

    def __init__(
        self,
        number: Callable[[], int],
        *,
        isolate: bool,
        pause_after: int | None,
        give_up_after: float,
    ) -> None:
        self._number = number
        self._isolate = isolate
        self._pause_after = pause_after
        self._give_up_after = give_up_after
        self._held: list[Outcome] = []
        self._in_a_row: set[int] = set()
        self._error_in_a_row = ""
        self._failed_in_a_row: set[int] = set()
        self._in_the_tail: bool | None = None
        self._anything_works = False
        self._false_alarms = 0
        self._paused_at: float | None = None
        self._pause = 0.0
        self._next_probe = math.inf
        self._probes: set[int] = set()
        self._probed = 0
        self._to_try: int | None = None  # how many items tell whether anything works at all
        self._admit = False
        self.give_up: str | None = None
        self.hopeless: str | None = None

    @property
    def held(self) -> int:
        """How many batches are held."""
        return len(self._held)

    @property
    def paused(self) -> bool:
        """Whether the run pauses."""
        return self._paused_at is not None

    def may_begin(self) -> bool:
        """Whether a new batch may begin: in a pause one now and then. In the caller's thread."""
        if self._paused_at is None:
            return True
        admitted, self._admit = self._admit, False
        return admitted

    @property
    def wait(self) -> float | None:
        """Seconds after which `look` has something to do; None: not by itself."""
        if self._paused_at is None or self._next_probe == math.inf:
            return None
        return max(0.0, self._next_probe - time.monotonic())

    def take(self, outcome: Outcome) -> Decision:
        """What follows from an outcome."""
        is_probe = outcome.batch.number in self._probes
        self._probes.discard(outcome.batch.number)
        if not outcome.raised:
            # One that returns nothing but failures says nothing of others.
            worked = outcome.completed > 0
            decision = self._after_success(outcome.began, is_probe) if worked else Decision()
            if is_probe and not worked and self.paused:
                self._probe_failed(outcome)
            decision.add(self._ask_again(outcome))
            return decision
        self._held.append(outcome)
        if is_probe and self.paused:
            self._probe_failed(outcome)
            return Decision()
        if self._pause_after is None and (not self._isolate or len(self._held) > _MOST_HELD):
            return self._release(self._held, again=False)
        return self._count_in_a_row(outcome)

    def look(self, *, nothing_else: bool) -> Decision:
        """What is due now. ``nothing_else``: no batch runs, and the items are at their end."""
        if self.paused and not self._held and not self._probes:
            self._end_pause()  # its last probe has failed its item without raising
        if self.paused:
            if self._probes:
                return Decision()
            if self._to_try is not None:
                return self._try_next(nothing_else=nothing_else)
            if nothing_else and not any(held.outage for held in self._held):
                # No new batch can tell any more, and there is no sign of an outage.
                self._end_pause()
                return self._release(self._held, again=False)
            if self._in_the_tail and nothing_else and self._paused_for() >= _TAIL_SECONDS:
                self._in_the_tail = False
                self._end_pause()
                return self.look(nothing_else=True)
            if time.monotonic() < self._next_probe:
                return Decision()
            self._admit = True
            return Decision(again=[self._probe()])
        if not nothing_else or not self._held:
            return Decision()
        if self._pause_after is None:
            return self._release(self._held, again=False)
        if self._in_the_tail is None and any(held.outage for held in self._held):
            # Too few batches are left to tell an outage by their number.
            self._in_the_tail = True
            self._begin_pause()
            return self.look(nothing_else=True)
        if self._anything_works or not self._isolate:
            return self._release(self._held, again=False)
        # Nothing has worked in this run: a few items are to tell whether it is for all of them.
        self._try_a_few()
        return self._try_next(nothing_else=True)

    def settle_all(self) -> Decision:
        """What is held has failed, as it is."""
        decision = Decision(settled=[_counted(held) for held in self._held])
        self._held.clear()
        return decision

    def drop_all(self) -> int:
        """Forget what is held, because the run ends: nothing is recorded of it."""
        count = len(self._held)
        self._held.clear()
        return count

    # --- a success, and what is known by it

    def _after_success(self, began: float, is_probe: bool) -> Decision:
        self._anything_works = True
        self._in_a_row.clear()
        self._failed_in_a_row.clear()
        # A call that was on its way when others failed says nothing of the time after.
        known = [held for held in self._held if held.ended < began]
        was_paused = self.paused
        again = self.paused and self._pause > 0
        if self.paused and (known or is_probe):
            log.info("a call has succeeded: the run goes on")
            # Where bad items are many, not every few of them are to stop the run for a moment.
            self._false_alarms = 0 if again else self._false_alarms + 1
            self._end_pause()
        return self._release(known, again=again, was_paused=was_paused)

    def _release(self, known: list[Outcome], *, again: bool, was_paused: bool = False) -> Decision:
        """Held batches whose kind is known. ``again``: it was not for their items' sake.

        ``was_paused``: nor need it have been for that of an item that was a batch of its own.
        """
        decision = Decision()
        released = {id(held) for held in known}
        known = list(known)
        self._held = [held for held in self._held if id(held) not in released]
        for held in known:
            batch, part = held.batch, _part(held)
            had_its_chance = batch.part_of is not None and not batch.part_of.error
            alone = was_paused and batch.part_of is None and len(batch) == 1
            if (again or alone) and held.transient and not had_its_chance:
                part = Part(part.root, 0, "")
                decision.again.append(replace(batch, number=self._number(), part_of=part))
            elif len(batch) > 1 and self._isolate:
                half = len(batch) // 2
                decision.again.append(batch.slice(0, half, self._number(), part))
                decision.again.append(batch.slice(half, len(batch), self._number(), part))
            else:
                decision.settled.append(_counted(held))
        return decision

    def _ask_again(self, outcome: Outcome) -> Decision:
        """Items that the handler has left out are handled once more, by themselves."""
        batch = outcome.batch
        left_out = {f.key for f in outcome.failures if f.error == _MISSING}
        if not left_out or (batch.part_of is not None and batch.part_of.error == _MISSING):
            return Decision(settled=[_counted(outcome)])
        indexes = [at for at, key in enumerate(batch.keys) if key in left_out]
        attempts = next(f.attempts for f in outcome.failures if f.error == _MISSING)
        part = Part(_part(outcome).root, attempts, _MISSING)
        rest = tuple(failure for failure in outcome.failures if failure.error != _MISSING)
        decision = Decision(again=[batch.choose(indexes, self._number(), part)])
        # Nothing of it stays to be committed if all were left out.
        if outcome.completed or rest:
            decision.settled.append(_counted(replace(outcome, failures=rest)))
        return decision

    # --- many failures in a row

    def _count_in_a_row(self, outcome: Outcome) -> Decision:
        if outcome.raised != self._error_in_a_row:
            self._in_a_row.clear()
        self._error_in_a_row = outcome.raised
        self._in_a_row.add(_part(outcome).root)
        self._failed_in_a_row.add(_part(outcome).root)
        if self.paused or self._pause_after is None:
            return Decision()
        enough = self._pause_after * min(2**self._false_alarms, _MOST_PATIENT)
        # An outage has more than one face: twice as many failures of any kind are enough too.
        if len(self._in_a_row) < enough and len(self._failed_in_a_row) < 2 * enough:
            return Decision()
        if outcome.transient:
            self._begin_pause()
            log.warning(
                "%d batches in a row have failed with %s: the run pauses, and tries one at a time "
                "for up to %g s; no attempt is counted meanwhile (if the items are at fault, and "
                "not a service: pause_after=None)",
                max(len(self._in_a_row), len(self._failed_in_a_row)),
                _describe(outcome),
                self._give_up_after,
            )
        else:
            self._try_a_few()
        return Decision()

    def _begin_pause(self) -> None:
        self._paused_at = self._next_probe = time.monotonic()
        self._pause = 0.0
        self._probed = 0

    def _paused_for(self) -> float:
        return time.monotonic() - self._paused_at if self._paused_at is not None else 0.0

    def _end_pause(self) -> None:
        self._paused_at = None
        self._to_try = None
        self._admit = False
        self._next_probe = math.inf

    def _try_a_few(self) -> None:
        """Find out whether anything works, where waiting is of no use."""
        self._begin_pause()
        items = sum(len(held.batch) for held in self._held if len(held.batch) > 1)
        self._to_try = min(_PROBES, items) if self._isolate else 0
        log.warning(
            "nothing has succeeded since %s failed, the last with %s: a few items are tried by "
            "themselves, and a few more batches, before the run ends (if the items are at fault, "
            "and not the handler: pause_after=None)",
            _batches(len(self._held)),
            _describe(self._held[-1]),
        )

    def _try_next(self, *, nothing_else: bool) -> Decision:
        assert self._to_try is not None
        if self._probed < self._to_try:
            return Decision(again=[self._probe()])
        # A handler that has worked before is more likely to have met bad items.
        more = _MORE_BATCHES_AFTER_SUCCESS if self._anything_works else _MORE_BATCHES
        self._next_probe = math.inf
        if nothing_else and self._anything_works:
            self._end_pause()
            return self._release(self._held, again=False)
        if nothing_else or len(self._failed_in_a_row) >= (self._pause_after or 0) + more:
            self._end_pause()
            self.hopeless = (
                f"nothing has succeeded, and {_batches(len(self._held))} failed"
                + (f", and {self._probed} items by themselves" if self._probed else "")
                + f", the last with {_describe(self._held[-1])}"
            )
        else:
            self._admit = True
        return Decision()

    def _probe(self) -> Batch:
        """One item of those that are held, taken out of its batch; another each time."""
        alone = [held for held in self._held if len(held.batch) == 1]
        others = [held for held in self._held if len(held.batch) > 1]
        # What has been tried alone is tried again only if there is nothing else.
        held = (others or alone)[0]
        self._held = [each for each in self._held if each is not held]
        size = 1 if self._isolate else len(held.batch)
        probe = held.batch.slice(0, size, self._number(), _part(held))
        if size < len(held.batch):
            rest = held.batch.slice(size, len(held.batch), held.batch.number, _part(held))
            done = set(probe.keys)
            kept = tuple(failure for failure in held.failures if failure.key not in done)
            self._held.append(replace(held, batch=rest, failures=kept))
        self._probed += 1
        self._probes.add(probe.number)
        self._next_probe = math.inf
        return probe

    def _probe_failed(self, outcome: Outcome) -> None:
        if self._paused_at is None or self._to_try is not None:
            return  # `look` knows what is next
        now = time.monotonic()
        if now - self._paused_at >= self._give_up_after:
            self.give_up = (
                f"{now - self._paused_at:.0f} s without a success (the last failure is "
                f"{_describe(outcome)}); what has failed meanwhile is left to the next run, with "
                "no attempt counted"
            )
            return
        self._pause = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE)
        self._next_probe = min(now + self._pause, self._paused_at + self._give_up_after)
        log.warning(
            "still failing, with %s: tried again in %.0f s",
            _describe(outcome),
            self._next_probe - now,
        )


def _part(held: Outcome) -> Part:
    """What a batch is part of: of itself, if it was planned so."""
    attempts = held.failures[0].attempts if held.failures else 1
    part = held.batch.part_of
    if part is None:
        return Part(held.batch.number, attempts, held.raised)
    return Part(part.root, part.attempts or attempts, held.raised)


def _counted(outcome: Outcome) -> Outcome:
    """The outcome with the attempts of the batch that was planned: isolation does not count."""
    part = outcome.batch.part_of
    if part is None or not part.attempts or not outcome.failures:
        return outcome
    counted = tuple(replace(failure, attempts=part.attempts) for failure in outcome.failures)
    return replace(outcome, failures=counted)


def _batches(count: int) -> str:
    return "1 batch" if count == 1 else f"{count:,} batches"


def _describe(outcome: Outcome) -> str:
    message = outcome.failures[0].message if outcome.failures else ""
    return f"{outcome.raised}: {clean(message, 300)}"
