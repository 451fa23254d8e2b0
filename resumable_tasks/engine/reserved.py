"""The spending of a run whose batches are with a service: what is out counts by its expected cost.

Hours lie between a submission and its real cost, so the average of earlier calls tells too late.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from resumable_tasks.engine.budget import Budget, Spending, T

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.form import Found
    from resumable_tasks.items.batch import Batch


class ReservedSpending(Spending):
    """The part of its budget that a run has used, or has reserved for what is out.

    No submission begins whose expected cost, by ``price``, is more than the limit less what was
    spent and what is out, whichever run has submitted that. Written to by both threads.
    """

    def __init__(
        self, budget: Budget, found: Found, price: Callable[[Batch], float | None]
    ) -> None:
        super().__init__(budget, found)
        self._price = price
        self._reserved: dict[int, float] = {}
        self._lock = threading.Lock()

    def affords(self, batch: Batch, out: int, *, again: bool = False) -> bool:
        """True if a batch may begin. It is `begins` that reserves its cost."""
        return self._expected(batch) <= self._left

    def affordable(self, batch: Batch) -> int:
        """The number of items that the budget affords, from the first on."""
        fits, too_many = 0, len(batch) + 1
        while too_many - fits > 1:
            items = (fits + too_many) // 2
            if self._expected(batch.slice(0, items, batch.number, None)) <= self._left:
                fits = items
            else:
                too_many = items
        return fits

    def begins(self, batch: Batch) -> None:
        """Reserve the cost of a batch that goes on, whatever room there is."""
        with self._lock:
            self._reserved[batch.number] = self._expected(batch)

    def add(self, outcome: T) -> T:
        """Count what a submission has cost in the place of what was reserved for it."""
        from resumable_tasks.runners.outcome import Dropped

        counted = super().add(outcome)
        # One that the run has left behind is out, and may be charged for, still.
        if not isinstance(outcome, Dropped):
            with self._lock:
                self._reserved.pop(outcome.batch.number, None)
        return counted

    @property
    def over(self) -> str | None:
        """The time that is up, or None: costs that are exceeded only let nothing more begin."""
        return super().over if self.seconds_left == 0.0 else None

    @property
    def _left(self) -> float:
        with self._lock:
            return self._room - sum(self._reserved.values())

    def _expected(self, batch: Batch) -> float:
        """What an earlier run has submitted without a price may cost whatever it likes."""
        expected = self._price(batch)
        return math.inf if expected is None else expected
