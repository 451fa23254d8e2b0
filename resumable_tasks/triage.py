"""What a failed batch means: a bad item in it, a handler that is wrong, or a service that is down.

A batch that failed is *held*: nothing is recorded of it, and none of its items' attempts is used
up, until it is known which of the three it is.

* **A call that began later has succeeded**: the service and the handler work, so there is a bad
  item. The batch is halved and its halves are handled, and so on, until the bad items stand alone
  (bisection: O(k log n) calls for k of them); what is good is committed.
* **So many batches in a row have failed with one error** (``pause_after``): the run pauses, and
  *probes*, with one item at a time of those that are held: at once, and then after growing pauses.
  If the first succeeds there are just many bad items. If a later one does the service is back, and
  what is held is handled again as it was. After ``give_up_after`` seconds the run ends as
  interrupted. The idea is that of Nygard's circuit breaker (*Release It!*, 2007). An error of
  programming does not go away by waiting: then a few items are tried at once, and if all of them
  fail the run ends as failed.
* **There is nothing else to handle**: as with a success, if there has been any in this run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from resumable_tasks import log
from resumable_tasks.model import Batch, Outcome, Part
from resumable_tasks.text import clean

_FIRST_PAUSE = 1.0
_LONGEST_PAUSE = 60.0
_MOST_HELD = 64
_PROBES = 5
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
        self._anything_works = False
        self._false_alarms = 0
        self._paused_at: float | None = None
        self._pause = 0.0
        self._next_probe = math.inf
        self._probes: dict[int, Outcome] = {}  # the number of a probe → what it is of
        self._probed = 0
        self._candidates: list[tuple[Outcome, int]] | None = None
        self.give_up: str | None = None
        self.hopeless: str | None = None

    @property
    def held(self) -> int:
        """How many batches are held."""
        return len(self._held)

    @property
    def paused(self) -> bool:
        """Whether no further batch is to begin for now."""
        return self._paused_at is not None

    @property
    def wait(self) -> float | None:
        """Seconds after which `look` has something to do; None: not by itself."""
        if self._paused_at is None or self._next_probe == math.inf:
            return None
        return max(0.0, self._next_probe - time.monotonic())

    def take(self, outcome: Outcome) -> Decision:
        """What follows from an outcome."""
        probed = self._probes.pop(outcome.batch.number, None)
        if not outcome.raised:
            if probed is not None:
                self._shorten(probed, outcome.batch)
            decision = self._after_success(outcome.began)
            decision.add(self._ask_again(outcome))
            return decision
        if probed is not None:
            self._probe_failed(outcome)
            return Decision()
        self._held.append(outcome)
        if self._pause_after is None and (not self._isolate or len(self._held) > _MOST_HELD):
            return self._release(self._held, again=False)
        self._count_in_a_row(outcome)
        return Decision()

    def look(self, *, nothing_else: bool) -> Decision:
        """What is due now. ``nothing_else``: no batch runs, and the items are at their end."""
        if self.paused:
            if self._probes or time.monotonic() < self._next_probe:
                return Decision()
            return Decision(again=[self._probe()])
        if not nothing_else or not self._held:
            return Decision()
        if self._anything_works or not self._isolate:
            return self._release(self._held, again=False)
        # Nothing has worked in this run: a few items are to tell whether it is for all of them.
        self._try_a_few()
        return self.look(nothing_else=True) if self.paused else Decision()

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

    def _after_success(self, began: float) -> Decision:
        self._anything_works = True
        self._in_a_row.clear()
        # A call that was on its way when others failed says nothing of the time after.
        known = [held for held in self._held if held.ended < began]
        again = self.paused and self._pause > 0
        if known and self.paused:
            log.info("a call has succeeded: the run goes on")
            # Where bad items are many, not every few of them are to stop the run for a moment.
            self._false_alarms = 0 if again else self._false_alarms + 1
            self._end_pause()
        return self._release(known, again=again)

    def _release(self, known: list[Outcome], *, again: bool) -> Decision:
        """Held batches whose kind is known. ``again``: it was not for their items' sake."""
        decision = Decision()
        released = {id(held) for held in known}
        known = list(known)
        self._held = [held for held in self._held if id(held) not in released]
        for held in known:
            batch, part = held.batch, _part(held)
            had_its_chance = batch.part_of is not None and not batch.part_of.error
            if again and held.transient and not had_its_chance:
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

    def _count_in_a_row(self, outcome: Outcome) -> None:
        if outcome.raised != self._error_in_a_row:
            self._in_a_row.clear()
        self._error_in_a_row = outcome.raised
        self._in_a_row.add(_part(outcome).root)
        if self.paused or self._pause_after is None:
            return
        if len(self._in_a_row) < self._pause_after * min(2**self._false_alarms, _MOST_PATIENT):
            return
        if outcome.transient:
            self._begin_pause()
            log.warning(
                "%d batches in a row have failed with %s: the run pauses, and tries one item at a "
                "time for up to %g s; no attempt is counted meanwhile",
                len(self._in_a_row),
                _describe(outcome),
                self._give_up_after,
            )
        else:
            self._try_a_few()

    def _begin_pause(self) -> None:
        self._paused_at = self._next_probe = time.monotonic()
        self._pause = 0.0
        self._probed = 0

    def _end_pause(self) -> None:
        self._paused_at = None
        self._candidates = None
        self._next_probe = math.inf
        self._probes.clear()

    def _try_a_few(self) -> None:
        """Find out whether anything works, where waiting is of no use."""
        batches = [held for held in self._held if len(held.batch) > 1] if self._isolate else []
        most = max((len(held.batch) for held in batches), default=0)
        each = [(held, at) for at in range(most) for held in batches if at < len(held.batch)]
        self._candidates = each[: max(self._pause_after or 0, _PROBES)]
        if self._candidates:
            log.warning(
                "nothing has succeeded since %s failed, the last with %s: a few items are tried "
                "by themselves",
                _batches(len(self._held)),
                _describe(self._held[-1]),
            )
            self._begin_pause()
        else:
            self._say_hopeless()

    def _say_hopeless(self) -> None:
        self.hopeless = (
            f"nothing has succeeded since {_batches(len(self._held))} failed"
            + (f", and {self._probed} items by themselves" if self._probed else "")
            + f", with {_describe(self._held[-1])}"
        )

    def _probe(self) -> Batch:
        """One item of a held batch, another each time."""
        if self._candidates is not None:
            held, at = self._candidates[self._probed]
        else:
            held = self._held[self._probed % len(self._held)]
            at = (self._probed // len(self._held)) % len(held.batch)
        start, stop = (at, at + 1) if self._isolate else (0, len(held.batch))
        self._probed += 1
        part = Part(_part(held).root, 0, held.raised)
        probe = held.batch.slice(start, stop, self._number(), part)
        self._probes[probe.number] = held
        self._next_probe = math.inf
        return probe

    def _probe_failed(self, outcome: Outcome) -> None:
        if self._paused_at is None:
            return  # another call has ended the pause
        now = time.monotonic()
        if self._candidates is not None:
            self._next_probe = now
            if self._probed >= len(self._candidates):
                self._end_pause()
                self._say_hopeless()
        elif now - self._paused_at >= self._give_up_after:
            self.give_up = (
                f"{now - self._paused_at:.0f} s without a success (the last failure is "
                f"{_describe(outcome)}); what has failed meanwhile is left to the next run, with "
                "no attempt counted"
            )
        else:
            self._pause = min(2 * self._pause or _FIRST_PAUSE, _LONGEST_PAUSE)
            self._next_probe = min(now + self._pause, self._paused_at + self._give_up_after)
            log.warning(
                "still failing, with %s: tried again in %.0f s",
                _describe(outcome),
                self._next_probe - now,
            )

    def _shorten(self, held: Outcome, probe: Batch) -> None:
        """Take the items of a probe that has succeeded out of what it was of."""
        if all(each is not held for each in self._held):
            return
        batch, done = held.batch, set(probe.keys)
        indexes = [at for at, key in enumerate(batch.keys) if key not in done]
        self._held = [each for each in self._held if each is not held]
        if indexes:
            rest = batch.choose(indexes, batch.number, _part(held))
            kept = tuple(f for f in held.failures if f.key not in done)
            self._held.append(replace(held, batch=rest, failures=kept))


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
