"""Limits on how often the handler is called, and on how many calls run at once.

One `Limits` is shared by all workers of a process. Windows are kept by ``pyrate-limiter``; the
number of calls at once follows TCP's rule (additive increase, multiplicative decrease: Chiu and
Jain, 1989), as Netflix's ``concurrency-limits`` applies it to calls of a service.
"""

from __future__ import annotations

import math
import re
import threading
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from resumable_tasks.base import log
from resumable_tasks.base.steps import adrive, drive
from resumable_tasks.errors import UsageError
from resumable_tasks.runners.http_signs import is_throttling, seconds_told
from resumable_tasks.runners.outcome import ADAPTIVE, RATE, TOLD

if TYPE_CHECKING:
    from pyrate_limiter import InMemoryBucket

    from resumable_tasks.base.stopping import Stopping

_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60}
_SECONDS |= {"h": 3_600, "hour": 3_600, "d": 86_400, "day": 86_400}
_RATE = re.compile(r"\s*(\d+)\s*(calls?|items?)?\s*(?:/|per\s)\s*(\d+)?\s*([a-z]+?)s?\s*", re.I)
_NAMED = "prefect:"
_POLL_SECONDS = 0.02
_MOST_POLL_SECONDS = 0.5
# Latency "holds" while a call takes no longer than so many times the quickest of late.
_SLOWER = 2.0
_FORGET = 1.01


@dataclass(frozen=True, slots=True)
class Adaptive:
    """``concurrency="adaptive"`` with bounds: from ``lowest`` to ``highest`` calls at once."""

    lowest: int = 1
    highest: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.lowest <= self.highest:
            raise UsageError(f"{self!r}: give bounds with 1 <= lowest <= highest")


@dataclass(frozen=True, slots=True)
class RateLimit:
    """At most ``count`` calls of the handler, or items, in any ``seconds`` that lie together."""

    count: int
    seconds: float
    of_items: bool = False

    def __str__(self) -> str:
        return f"{self.count} {'items' if self.of_items else 'calls'} in {self.seconds:g} s"


def parse_rate(text: str) -> RateLimit:
    """``60/minute``, ``10 per second``, ``600 items/minute``, ``1000/2 hours``.

    Raises `UsageError`.
    """
    found = _RATE.fullmatch(text)
    seconds = _SECONDS.get(found[4].lower()) if found else None
    if not found or seconds is None or int(found[1]) < 1 or int(found[3] or 1) < 1:
        raise UsageError(
            f'rate_limit={text!r} is not of the form "60/minute" (calls of the handler), '
            '"600 items/minute" or "prefect:NAME" (a global concurrency limit of Prefect)',
            remedy="Give rate_limit= one of these forms",
        )
    return RateLimit(
        int(found[1]), float(seconds * int(found[3] or 1)), (found[2] or "").startswith("i")
    )


def parse_rates(given: str | Sequence[str] | None) -> tuple[list[RateLimit], list[str]]:
    """The rates, and the names of Prefect's limits. Raises `UsageError`."""
    each = [given] if isinstance(given, str) else given or ()
    if not isinstance(each, Sequence) or not all(isinstance(text, str) for text in each):
        raise UsageError(
            f"rate_limit={given!r} is neither a string nor a list of them",
            remedy='Give rate_limit= a string such as "60/minute", or a list of them',
        )
    names = [text.removeprefix(_NAMED) for text in each if text.startswith(_NAMED)]
    if not all(names):
        raise UsageError(
            f'rate_limit={given!r}: "prefect:" is followed by the name of a limit',
            remedy='Name the limit, as in "prefect:api"',
        )
    return [parse_rate(text) for text in each if not text.startswith(_NAMED)], names


class Gate(Protocol):
    """Something elsewhere that says when a call may begin."""

    def enter(self, stopping: Stopping) -> bool:
        """Wait for leave; False if the run is stopping."""

    async def aenter(self, stopping: Stopping) -> bool:
        """The same, in an event loop."""


@dataclass(slots=True, eq=False)
class Entry:
    """One call of the handler that waits, or goes on. ``counted``: in how many windows it is.

    ``waits`` are the seconds that it has waited, by what has held it back (``by``).
    """

    items: int
    waits: dict[str, float] = field(default_factory=dict)
    counted: int = 0
    began: float = 0.0
    by: str = ""

    def held_back(self, by: str, since: float) -> None:
        """Note that it has waited up to now."""
        self.waits[by] = self.waits.get(by, 0.0) + time.monotonic() - since


@dataclass(eq=False)
class Limits:
    """Holds calls of the handler back. Crosses to other processes, where it begins afresh.

    ``largest``: the items of the largest call. ``processes``: how many share the rates; each then
    takes its part, so that all together keep to them.
    """

    rates: Sequence[RateLimit] = ()
    adaptive: Adaptive | None = None
    gates: Sequence[Gate] = ()
    largest: int = 1
    processes: int = 1

    def __post_init__(self) -> None:
        self._lock = threading.Condition()  # notified when a call has ended
        self._held_until = 0.0
        self._running = 0
        self._windows: list[tuple[InMemoryBucket, bool]] | None = None
        self._control = AdditiveIncrease(self.adaptive) if self.adaptive is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Limits, (self.rates, self.adaptive, self.gates, self.largest, self.processes)

    @property
    def concurrency(self) -> int | None:
        """The number of calls that may run at once now; None if it is fixed elsewhere."""
        return int(self._control.limit) if self._control is not None else None

    @property
    def at_once(self) -> str:
        """What sets how many calls run at once, in words; "" if that is not set here."""
        if self._control is None or self.adaptive is None:
            return ""
        limit = int(self._control.limit)
        if limit >= self.adaptive.highest:
            return f"at highest={limit}"
        if self._control.rising:
            return f"{limit} calls at once, and rising"
        return f"the service bears no more than {limit} at once"

    def enter(
        self, items: int, stopping: Stopping, waits: dict[str, float] | None = None
    ) -> Entry | None:
        """Wait until a call with so many items may begin; None if the run is stopping.

        ``waits`` is told the seconds meanwhile, by what has held the call back.
        """

        def do(step: float | Gate) -> bool:
            if isinstance(step, float):
                with self._lock:
                    self._lock.wait(step)
                return True
            return step.enter(stopping)

        return drive(self._steps(Entry(items, {} if waits is None else waits), stopping), do)

    async def aenter(
        self, items: int, stopping: Stopping, waits: dict[str, float] | None = None
    ) -> Entry | None:
        """`enter`, in an event loop."""
        import asyncio

        async def do(step: float | Gate) -> bool:
            if isinstance(step, float):
                await asyncio.sleep(step)
                return True
            return await step.aenter(stopping)

        entry = Entry(items, {} if waits is None else waits)
        return await adrive(self._steps(entry, stopping), do)

    def _steps(
        self, entry: Entry, stopping: Stopping
    ) -> Generator[float | Gate, bool, Entry | None]:
        """Seconds to wait, and gates to enter, whose answers say whether to go on."""
        while (wait := self._admit(entry)) > 0:
            if stopping.is_set():
                return None
            since = time.monotonic()
            yield min(wait, _MOST_POLL_SECONDS)
            entry.held_back(entry.by, since)
        try:
            for gate in self.gates:
                since = time.monotonic()
                goes_on = yield gate
                entry.held_back(RATE, since)
                if not goes_on:
                    break
            else:
                entry.began = time.monotonic()
        finally:
            if not entry.began:
                self._leave()
        return entry if entry.began else None

    def leave(self, call: Entry, error: BaseException | None) -> None:
        """The call has ended. One that was told to wait holds all others back as long."""
        told = seconds_told(error) if error is not None else None
        with self._lock:
            self._running -= 1
            self._lock.notify()
            if told is not None:
                self._held_until = max(self._held_until, time.monotonic() + told)
            if self._control is None:
                return
            if error is None:
                self._control.went_well(call.began, self._running + 1)
            elif told is not None or is_throttling(error) or isinstance(error, TimeoutError):
                self._control.was_throttled(call.began, error)

    def left(self) -> list[tuple[RateLimit, int]]:
        """How much each rate allows now; nothing of those that other processes keep to."""
        with self._lock:
            held = time.monotonic() < self._held_until
            found = []
            for rate, (window, _) in zip(self._longest_first, self._windows or (), strict=False):
                window.leak(_milliseconds())
                found.append((rate, 0 if held else rate.count - window.count()))
            return found

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1

    def _admit(self, call: Entry) -> float:
        """0 if the call may begin, and is counted from now on; else when to ask again."""
        with self._lock:
            now = time.monotonic()
            if now < self._held_until:
                call.by = TOLD
                return self._held_until - now
            if self._control is not None and self._running >= int(self._control.limit):
                call.by = ADAPTIVE
                return _POLL_SECONDS
            if self._windows is None:
                self._windows = [self._window(rate) for rate in self._longest_first]
            for window, of_items in self._windows[call.counted :]:
                wait = _put(window, call.items if of_items else 1)
                if wait > 0:
                    call.by = RATE
                    return wait
                call.counted += 1
            self._running += 1
            return 0.0

    @property
    def _longest_first(self) -> list[RateLimit]:
        # The shortest last: a slot is taken when a call begins, and not long before.
        return sorted(self.rates, key=lambda rate: -rate.seconds)

    def _window(self, rate: RateLimit) -> tuple[InMemoryBucket, bool]:
        from pyrate_limiter import InMemoryBucket, Rate

        largest = self.largest if rate.of_items else 1
        count, milliseconds = rate.count // self.processes, rate.seconds * 1_000
        if count < largest:  # a part too small for one call: one call in as much more time
            milliseconds *= largest * self.processes / rate.count
            count = largest
        return InMemoryBucket([Rate(count, math.ceil(milliseconds))]), rate.of_items


def _put(window: InMemoryBucket, weight: int) -> float:
    from pyrate_limiter import RateItem

    now = _milliseconds()
    window.leak(now)
    item = RateItem("", now, weight)
    if window.put(item):
        return 0.0
    wait = window.waiting(item)
    assert isinstance(wait, int)
    return max(wait + 1, 1) / 1_000


def _milliseconds() -> int:
    return math.ceil(time.monotonic() * 1_000)


class AdditiveIncrease:
    """An adaptive limit on concurrent calls: one more each round, half as many when throttled.

    Up to the first throttling, or the first call that takes long, it doubles from round to round.
    """

    def __init__(self, bounds: Adaptive) -> None:
        self._bounds = bounds
        self.limit = float(bounds.lowest)
        self._doubling = True
        self._cut = -math.inf
        self._quickest = math.inf

    @property
    def rising(self) -> bool:
        """True as long as nothing has told that there may be too many."""
        return self._doubling

    def went_well(self, began: float, running: int) -> None:
        """A call that ``began`` then has succeeded, when so many were running."""
        seconds = time.monotonic() - began
        self._quickest = min(seconds, self._quickest * _FORGET)
        if seconds > _SLOWER * self._quickest + _POLL_SECONDS:
            self._doubling = False
        # Only a limit that is reached, by a call that has seen the last cut, says that more goes.
        elif began > self._cut and running >= int(self.limit):
            step = 1.0 if self._doubling else 1.0 / self.limit
            self.limit = min(self.limit + step, float(self._bounds.highest))

    def was_throttled(self, began: float, error: BaseException) -> None:
        """A call was told that there are too many. Calls of one round halve the limit once."""
        if began <= self._cut:
            return
        self._cut = time.monotonic()
        self._doubling = False
        before, self.limit = self.limit, max(self.limit / 2, float(self._bounds.lowest))
        log.info(
            "%d calls at once instead of %d: %s", int(self.limit), int(before), type(error).__name__
        )
