"""Windows: the calls that a rate has let through recently, and when there is room again."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from pyrate_limiter import InMemoryBucket

Slot = Any
"""The entry of one call in a window, used to correct it; None if it cannot be corrected."""


class AnyWindow(Protocol):
    """The calls that one rate has let through recently. ``most``: its capacity."""

    most: int

    def put(self, weight: int, now: float) -> tuple[Slot, float]:
        """Enter a call; return its slot and 0, or None and the seconds until the next try."""

    def correct(self, slot: Slot, weight: int) -> None:
        """Change the weight of a call while it is in the window."""

    def left(self, now: float) -> int:
        """Return how much the window lets through now."""


class Window:
    """A sliding window of weights: exact, with one correctable entry per call.

    Any period of ``seconds`` contains at most ``most``, by the weights known when calls are let
    through. A call that is heavier than that is let through when the window is empty, and stays in
    it proportionally longer. So does a call that turns out to be heavier, which delays the others.
    """

    def __init__(self, most: int, seconds: float, entries: Iterable[list[Any]] = ()) -> None:
        """``entries``: the calls let through before, each a time and a weight, oldest first."""
        self.most = most
        self.entries = deque(entries)
        self._seconds = seconds
        self._sum = float(sum(entry[1] for entry in self.entries))

    def _end(self, entry: list[Any]) -> float:
        stays = self._seconds * max(1.0, entry[1] / self.most)
        return float(entry[0] + stays)

    def _leak(self, now: float) -> None:
        while self.entries and self._end(self.entries[0]) <= now:
            gone = self.entries.popleft()
            self._sum -= gone[1]
            gone.clear()

    def put(self, weight: int, now: float) -> tuple[Slot, float]:
        """Enter a call; return its slot and 0, or None and the seconds until the next try."""
        self._leak(now)
        over = self._sum + weight - self.most
        if over <= 0 or not self.entries:
            entry = [now, float(weight)]
            self.entries.append(entry)
            self._sum += weight
            return entry, 0.0
        until = now
        for entry in self.entries:  # oldest first, until enough will have left
            until = max(until, self._end(entry))
            over -= entry[1]
            if over <= 0:
                break
        return None, until - now

    def correct(self, slot: Slot, weight: int) -> None:
        """Change the weight of a call while it is in the window."""
        if slot:
            self._sum += weight - slot[1]
            slot[1] = float(weight)

    def left(self, now: float) -> int:
        """Return how much the window lets through now."""
        self._leak(now)
        return max(0, self.most - int(self._sum))


class Counted:
    """A window of calls or items, by ``pyrate-limiter``, which keeps an entry for each."""

    def __init__(self, most: int, seconds: float) -> None:
        from pyrate_limiter import InMemoryBucket, Rate

        self.most = most
        self._bucket: InMemoryBucket = InMemoryBucket([Rate(most, math.ceil(seconds * 1_000))])

    def put(self, weight: int, now: float) -> tuple[Slot, float]:
        """Enter a call; return None and 0, or None and the seconds until the next try."""
        from pyrate_limiter import RateItem

        item = RateItem("", math.ceil(now * 1_000), weight)
        self._bucket.leak(item.timestamp)
        if self._bucket.put(item):
            return None, 0.0
        wait = self._bucket.waiting(item)
        assert isinstance(wait, int)
        return None, max(wait + 1, 1) / 1_000

    def correct(self, slot: Slot, weight: int) -> None:
        """Do nothing: the numbers of calls and items are known beforehand."""

    def left(self, now: float) -> int:
        """Return how much the window lets through now."""
        self._bucket.leak(math.ceil(now * 1_000))
        return self.most - self._bucket.count()
