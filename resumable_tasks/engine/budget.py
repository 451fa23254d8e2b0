"""How much one run may do, take or spend, and what the rest would cost."""

from __future__ import annotations

import math
import time

from resumable_tasks.runners.outcome import Outcome

# 400 times 0.01 is a little more than 4.
_ROUNDING = 1 + 1e-9


class Budget:
    """What a run has used of ``max_items``, ``max_seconds`` and ``max_cost`` (each may be None).

    No call is begun that would exceed ``max_cost`` at the average cost of an item up to now,
    ``cost_each`` from earlier runs at first. Where nothing is known of it, the first call alone is
    to tell. Written to by the committer's thread, asked by the caller's.
    """

    def __init__(
        self,
        max_items: int | None = None,
        max_seconds: float | None = None,
        max_cost: float | None = None,
        cost_each: float | None = None,
    ) -> None:
        self.max_items = max_items
        self.max_cost = max_cost
        self.max_seconds = max_seconds
        self._cost_each = cost_each
        self._until = math.inf if max_seconds is None else time.monotonic() + max_seconds
        self._handed = 0
        self._counted = 0
        self.spent = 0.0

    @property
    def cost_each(self) -> float | None:
        """What an item has cost on average; None if that is not known."""
        return self.spent / self._counted if self._counted else self._cost_each

    @property
    def seconds_left(self) -> float | None:
        return None if self._until == math.inf else max(0.0, self._until - time.monotonic())

    def hand_out(self, items: int) -> int:
        """How many of so many items may be handled; they are counted as handed out."""
        if self.max_items is not None:
            items = min(items, self.max_items - self._handed)
        self._handed += items
        return items

    def add(self, outcome: Outcome) -> None:
        """Count what a call has cost."""
        if outcome.cost == outcome.cost:  # no NaN
            self.spent += outcome.cost
            self._counted += outcome.completed + len(outcome.failures)

    def affords(self, items: int, out: int) -> bool:
        """Whether so many items may be begun, while ``out`` others are on their way."""
        if self.max_cost is None:
            return True
        each = self.cost_each
        if each is None:
            return out == 0
        return self.spent + each * (items + out) <= self.max_cost * _ROUNDING

    def affordable(self, items: int) -> int:
        """How many of so many items can be afforded, while nothing is on its way."""
        each = self.cost_each
        if self.max_cost is None or not each:
            return items
        return min(items, max(0, int((self.max_cost * _ROUNDING - self.spent) / each)))

    @property
    def used_up(self) -> str:
        """What ends a run that may hand out nothing more."""
        if self.max_items is not None and self._handed >= self.max_items:
            return f"max_items={self.max_items}"
        return f"max_cost={self.max_cost:g}"

    @property
    def over(self) -> str | None:
        """What is used up, or was exceeded as calls have cost more than those before; or None."""
        if time.monotonic() >= self._until:
            return f"max_seconds={self.max_seconds:g}"
        if self.max_cost is not None and self.spent > self.max_cost * _ROUNDING:
            return f"max_cost={self.max_cost:g}"
        return None
