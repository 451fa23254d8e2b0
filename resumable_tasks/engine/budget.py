"""Limits on what a run, or all runs of a checkpoint, may do and spend."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from resumable_tasks.base import checks, log
from resumable_tasks.base.frozen import locked

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.form import Found
    from resumable_tasks.items.batch import Batch
    from resumable_tasks.runners.outcome import Done, Dropped, Failed

T = TypeVar("T", bound="Done | Failed | Dropped")

# Sums of floats are inexact: 400 times 0.01 adds up to a little more than 4.
_ROUNDING = 1 + 1e-9


@locked
class Budget:
    """Limits on what a run may do. Raises `UsageError` for a value that does not fit.

    A run that has used up its budget ends cleanly with `BudgetUsedUp` and reports what remains; the
    next run resumes. The retries of a flow run share one budget. None: no limit.

    Args:
        items: maximum number of items given to the handler.
        seconds: how long the run starts new batches; batches running then have ``grace_seconds``.
        cost: what the run may spend. No batch starts that would exceed the limit at the average
            cost per item so far. If that average is above the whole limit, one item starts alone;
            otherwise no run would ever start one. Work submitted to a service counts by its
            expected cost (the service's ``price``) until it is collected, including that of earlier
            runs.
        total: what all runs of the checkpoint may spend together, by the same rules. The journal
            records the spending, so a crash forgets at most the calls in flight.
    """

    items: int | None = None
    seconds: float | None = None
    cost: float | None = None
    total: float | None = None

    def __post_init__(self) -> None:
        checks.whole_number("Budget: items", self.items, 1, or_none=True)
        checks.seconds_or_none("Budget: seconds", self.seconds)
        checks.above_zero("Budget: cost", self.cost)
        checks.above_zero("Budget: total", self.total)

    def overridden_by(self, other: Budget) -> Budget:
        """Return the budget with the limits that the other one names."""
        return Budget(
            self.items if other.items is None else other.items,
            self.seconds if other.seconds is None else other.seconds,
            self.cost if other.cost is None else other.cost,
            self.total if other.total is None else other.total,
        )

    @property
    def of_money(self) -> bool:
        """True if the cost of calls has to be known."""
        return self.cost is not None or self.total is not None


class Spending:
    """The part of its budget that a run has used.

    No call begins that would exceed the limit at the average cost of an item so far (at first the
    average of earlier runs). While that cost is unknown, one call at a time shows it. If it is
    above the whole ``cost`` of the budget, one item is begun alone; otherwise no run would ever
    begin one. The committer's thread writes, the caller's thread reads. ``owed`` is spent but not
    recorded yet.
    """

    def __init__(self, budget: Budget, found: Found) -> None:
        self.budget = budget
        self._found = found
        self._until = math.inf
        if budget.seconds is not None:
            self._until = time.monotonic() + budget.seconds - found.used.seconds
        self._taken = found.used.items
        self._called = 0
        self._settled = 0
        self.spent = 0.0
        self.owed = 0.0

    @property
    def cost_each(self) -> float | None:
        """The average cost of an item; None if unknown.

        Items count once they are settled: a failed batch is handled again, in parts or after an
        outage, and would otherwise count each time. Until then, the items of paid calls count.
        """
        if self._settled:
            return self.spent / self._settled
        return self.spent / self._called if self.spent and self._called else self._found.cost_each

    @property
    def seconds_left(self) -> float | None:
        return None if self._until == math.inf else max(0.0, self._until - time.monotonic())

    def take(self, items: int) -> int:
        """Take up to ``items`` items from the budget, and return how many it allows."""
        if self.budget.items is not None:
            items = min(items, max(0, self.budget.items - self._taken))
        self._taken += items
        return items

    def add(self, outcome: T) -> T:
        """Count the cost of a batch's calls.

        Returns the outcome without its cost, so that the cost counts once whatever happens next.
        """
        if outcome.cost == outcome.cost:  # not NaN
            self.spent += outcome.cost
            self.owed += outcome.cost
            # A failed batch counts its items; a dropped one none, because it may still complete.
            self._called += _items(outcome)
        return replace(outcome, cost=0.0) if outcome.cost else outcome

    def settle(self, settled: Sequence[Done]) -> None:
        """Count the items of these batches, which are not handled again."""
        self._settled += sum(map(_items, settled))

    def take_owed(self, *, due: bool) -> Done | None:
        """Take the owed cost as an outcome without items; None if nothing is owed or due.

        With a ``total`` limit the cost is always due, even if nothing else is recorded.
        """
        due = due or self.budget.total is not None
        if not self.owed or not due or self._found.spent is None:
            return None
        from resumable_tasks.items.batch import Batch
        from resumable_tasks.runners.outcome import Done

        owed, self.owed = self.owed, 0.0
        return Done(Batch(0, [], b"", []), cost=owed)

    def allows_nothing(self, out: int) -> bool:
        """True if no further item at all may begin while ``out`` items are in flight."""
        if self.budget.items is not None and self._taken >= self.budget.items:
            return True
        if out or not self.budget.of_money:
            return False
        return self._room <= 0 or (self._room < (self.cost_each or 0.0) and not self._may_try_one)

    def affords(self, batch: Batch, out: int, *, again: bool = False) -> bool:
        """True if a batch may begin, or be handled again, while ``out`` items are in flight."""
        if not self.budget.of_money:
            return True
        each = self.cost_each
        if each is None:
            # The parts of a failed batch are together no more than the batch was.
            return (again or out == 0) and self._room > 0
        if out == 0 and len(batch) == 1 and self._may_try_one:
            return True
        return each * (len(batch) + out) <= self._room

    def affordable(self, batch: Batch) -> int:
        """Return how many items of the batch the budget allows while nothing is in flight."""
        items = len(batch)
        if not self.budget.of_money:
            return items
        each, room = self.cost_each, self._room
        found = min(items, max(0, int(room / each) if each else items * (room > 0)))
        if not found and self._may_try_one:
            log.warning(
                "items have cost %.4g on average so far, more than the whole budget (cost=%g): "
                "starting a single item to see what it costs now",
                each,
                self.budget.cost,
            )
            return 1
        return found

    def begins(self, batch: Batch) -> None:
        """Note that a batch begins. Does nothing here; a subclass reserves its cost."""

    @property
    def _may_try_one(self) -> bool:
        """True while nothing of the budget's ``cost`` is spent and the total allows one item."""
        each = self.cost_each
        if each is None or self.budget.cost is None or self._found.used.cost + self.spent:
            return False
        return each <= self._room_of_total

    @property
    def _room(self) -> float:
        """The cost that may still be spent."""
        return min(self._rooms)[0]

    @property
    def _rooms(self) -> list[tuple[float, str]]:
        """What is left of each cost limit, and the limit as text."""
        rooms = []
        if self.budget.cost is not None:
            spent = self._found.used.cost + self.spent
            rooms.append((self.budget.cost * _ROUNDING - spent, f"cost={self.budget.cost:g}"))
        if self.budget.total is not None:
            words = f"total={self.budget.total:g} for all runs together"
            rooms.append((self._room_of_total, words))
        return rooms

    @property
    def _room_of_total(self) -> float:
        """The cost that all runs together may still spend."""
        if self.budget.total is None:
            return math.inf
        return self.budget.total * _ROUNDING - (self._found.spent or 0.0) - self.spent

    @property
    def used_up(self) -> str:
        """The limit that keeps the run from beginning more, as text."""
        if self.budget.items is not None and self._taken >= self.budget.items:
            return f"items={self.budget.items}"
        return min(self._rooms)[1]

    @property
    def over(self) -> str | None:
        """The limit that is reached, or was exceeded because calls became dearer; or None."""
        if time.monotonic() >= self._until:
            return f"seconds={self.budget.seconds:g}"
        if self.budget.of_money and self.spent and self._room < 0:
            return min(self._rooms)[1]
        return None


def _items(outcome: Done | Failed | Dropped) -> int:
    completed: int = getattr(outcome, "completed", 0)
    return completed + len(getattr(outcome, "failures", ()))
