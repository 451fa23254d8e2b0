"""Estimates of the work that is left."""

from __future__ import annotations

from dataclasses import dataclass

from resumable_tasks.base.text import count, duration


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected effort for ``items`` more items, at the pace so far; None if unknown."""

    items: int
    seconds: float | None = None
    cost: float | None = None

    def __str__(self) -> str:
        text = count(self.items, "item")
        if self.seconds is not None:
            text += f", about {duration(self.seconds)}"
        if self.cost is not None:
            text += f", at a cost of about {self.cost:,.4g}"
        return text
