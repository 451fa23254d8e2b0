"""Limits on what one run may do, take or spend, and the cost of the rest."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from resumable_tasks.base import checks

if TYPE_CHECKING:
    from resumable_tasks.runners.outcome import Done, Failed

# 400 times 0.01 is a little more than 4.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits on what one run may do. Raises `UsageError` for a value that does not fit.

    A run that has used its budget up ends as interrupted and says what remains; the next run
    resumes. None: no limit.

    Args:
        items: how many items the handler is called with, at most.
        seconds: how long the run begins new batches.
        cost: what the run may spend. No batch is begun that would exceed it at the average cost
            of an item up to then.
    """

    items: int | None = None
    seconds: float | None = None
    cost: float | None = None

    def __post_init__(self) -> None:
        checks.whole_number("Budget: items", self.items, 1, or_none=True)
        checks.above_zero("Budget: seconds", self.seconds)
        checks.above_zero("Budget: cost", self.cost)

    def overridden_by(self, other: Budget) -> Budget:
        """Return the budget with the limits that the other one names."""
        return Budget(
            self.items if other.items is None else other.items,
            self.seconds if other.seconds is None else other.seconds,
            self.cost if other.cost is None else other.cost,
        )


class Spending:
    """The part of its budget that a run has used.

    No call is begun that would exceed the cost at the average cost of an item up to now,
    ``cost_each`` from earlier runs at first. Where nothing is known of it, the first call alone is
    to tell. Written to by the committer's thread, asked by the caller's.
    """

    def __init__(self, budget: Budget, cost_each: float | None = None) -> None:
        self.budget = budget
        self._cost_each = cost_each
        self._until = math.inf if budget.seconds is None else time.monotonic() + budget.seconds
        self._taken = 0
        self._counted = 0
        self.spent = 0.0

    @property
    def cost_each(self) -> float | None:
        """The average cost of an item; None if it is not known."""
        return self.spent / self._counted if self._counted else self._cost_each

    @property
    def seconds_left(self) -> float | None:
        return None if self._until == math.inf else max(0.0, self._until - time.monotonic())

    def take(self, items: int) -> int:
        """Take up to ``items`` items from the budget, and return how many it allows."""
        if self.budget.items is not None:
            items = min(items, self.budget.items - self._taken)
        self._taken += items
        return items

    def add(self, outcome: Done | Failed) -> None:
        """Count what a call has cost."""
        if outcome.cost == outcome.cost:  # no NaN
            self.spent += outcome.cost
            # A batch that failed has completed none.
            completed: int = getattr(outcome, "completed", 0)
            self._counted += completed + len(outcome.failures)

    def affords(self, items: int, out: int) -> bool:
        """True if so many items may begin while ``out`` others are in flight."""
        if self.budget.cost is None:
            return True
        each = self.cost_each
        if each is None:
            return out == 0
        return self.spent + each * (items + out) <= self.budget.cost * _ROUNDING

    def affordable(self, items: int) -> int:
        """The number of items that the budget affords while nothing is in flight."""
        each = self.cost_each
        if self.budget.cost is None or not each:
            return items
        return min(items, max(0, int((self.budget.cost * _ROUNDING - self.spent) / each)))

    @property
    def used_up(self) -> str:
        """The limit that ends a run which may begin nothing more."""
        if self.budget.items is not None and self._taken >= self.budget.items:
            return f"items={self.budget.items}"
        return f"cost={self.budget.cost:g}"

    @property
    def over(self) -> str | None:
        """The limit that is used up, or was exceeded because calls became dearer; or None."""
        if time.monotonic() >= self._until:
            return f"seconds={self.budget.seconds:g}"
        if self.budget.cost is not None and self.spent > self.budget.cost * _ROUNDING:
            return f"cost={self.budget.cost:g}"
        return None
