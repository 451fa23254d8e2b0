"""The spending of a run whose batches are with a service: it counts their expected cost.

The real cost is known hours after the submission, so an average of earlier calls comes too late.
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
    """The part of its budget that a run has spent, or has reserved for submissions in flight.

    A submission begins only if its expected cost (by ``price``) fits into the limit less the cost
    spent and reserved, including submissions of earlier runs. Both threads write to this.
    """

    def __init__(
        self, budget: Budget, found: Found, price: Callable[[Batch], float | None]
    ) -> None:
        super().__init__(budget, found)
        self._price = price
        self._reserved: dict[int, float] = {}
        self._lock = threading.Lock()

    def affords(self, batch: Batch, out: int, *, again: bool = False) -> bool:
        """True if a batch may begin. `begins` then reserves its cost."""
        return self._expected(batch) <= self._left

    def affordable(self, batch: Batch) -> int:
        """Return how many items, from the first on, the budget allows."""
        fits, too_many = 0, len(batch) + 1
        while too_many - fits > 1:
            items = (fits + too_many) // 2
            if self._expected(batch.slice(0, items, batch.number, None)) <= self._left:
                fits = items
            else:
                too_many = items
        return fits

    def begins(self, batch: Batch) -> None:
        """Reserve the cost of a batch, even if the budget has no room for it."""
        with self._lock:
            self._reserved[batch.number] = self._expected(batch)

    def add(self, outcome: T) -> T:
        """Replace the reserved cost of a submission by its real cost."""
        from resumable_tasks.runners.outcome import Dropped

        counted = super().add(outcome)
        # A submission that the run leaves behind may still be charged for.
        if not isinstance(outcome, Dropped):
            with self._lock:
                self._reserved.pop(outcome.batch.number, None)
        return counted

    @property
    def over(self) -> str | None:
        """The time limit if it is reached, else None. Exceeded costs only stop new submissions."""
        return super().over if self.seconds_left == 0.0 else None

    @property
    def _left(self) -> float:
        with self._lock:
            return self._room - sum(self._reserved.values())

    def _expected(self, batch: Batch) -> float:
        """Return the expected cost; infinite for a submission that was made without a price."""
        expected = self._price(batch)
        return math.inf if expected is None else expected
