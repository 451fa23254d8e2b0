"""Limits on how often the handler is called, and on how many calls run at once.

All workers of a process share one `Limits`. The window of each rate holds the calls that it has let
through. The adaptive number of concurrent calls follows TCP's rule (additive increase,
multiplicative decrease: Chiu and Jain, 1989), as Netflix's ``concurrency-limits`` applies it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from resumable_tasks.base import checks, log
from resumable_tasks.base.clock import SYSTEM, Clock
from resumable_tasks.base.frozen import locked
from resumable_tasks.base.steps import adrive, drive
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.runners.headroom import Headroom, told_by
from resumable_tasks.runners.http_signs import is_throttling, retry_after, seconds_told
from resumable_tasks.runners.outcome import ADAPTIVE, RATE, TOLD
from resumable_tasks.runners.rates import RateLimit
from resumable_tasks.runners.usage import Learnt, Load, Used
from resumable_tasks.runners.windows import AnyWindow, Counted, Slot, Window

if TYPE_CHECKING:
    from resumable_tasks.base.stopping import Stopping

_POLL_SECONDS = 0.02
_MOST_POLL_SECONDS = 0.5
# A call is slow if it takes longer than this many times the quickest recent call, whose time is
# slowly forgotten.
_SLOWER = 2.0
_FORGET = 1.01


@locked
class Adaptive:
    """``concurrency="adaptive"`` with bounds: from ``lowest`` to ``highest`` simultaneous calls."""

    lowest: int = 1
    highest: int = 32

    def __post_init__(self) -> None:
        checks.whole_number("Adaptive: lowest", self.lowest, 1)
        checks.whole_number("Adaptive: highest", self.highest, 1)
        if self.lowest > self.highest:
            raise UsageError(f"{self!r}: give bounds with 1 <= lowest <= highest")


class Gate(Protocol):
    """An external limit that decides when a call may begin."""

    def enter(self, stopping: Stopping, slots: int) -> bool:
        """Wait until a call of this weight may begin; return False if the run is stopping."""

    async def aenter(self, stopping: Stopping, slots: int) -> bool:
        """`enter` in an event loop."""


class Held(NamedTuple):
    """The slot of a call in the window of a rate, with its estimated weight."""

    rate: RateLimit
    window: AnyWindow
    slot: Slot
    weight: int


@dataclass(slots=True, eq=False)
class Entry:
    """One call of the handler, which waits, runs, or has ended.

    ``held``: its slots in the windows so far. ``waits``: the seconds that it has waited, by reason.
    ``by``: the present reason.
    """

    load: Load
    waits: dict[str, float] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    began: float = 0.0
    by: str = ""
    used: Used = field(default_factory=Used)
    ended: bool = False

    def held_back(self, by: str, since: float) -> None:
        """Add the seconds since ``since`` to the waits."""
        self.waits[by] = self.waits.get(by, 0.0) + time.monotonic() - since


@dataclass(eq=False)
class Limits:
    """Holds back calls of the handler. A copy sent to another process starts anew there.

    ``largest``: the number of items of the largest call. ``processes``: how many processes divide
    the rates among them. ``learnt``: estimates of weights, from earlier calls. ``auto``: also keep
    to the limits that the service reports. ``share``: where processes share the windows of the
    rates (a file, or a Redis); each then uses the undivided rates.
    """

    rates: Sequence[RateLimit] = ()
    adaptive: Adaptive | None = None
    gates: Sequence[Gate] = ()
    largest: int = 1
    processes: int = 1
    learnt: Learnt = field(default_factory=Learnt)
    auto: bool = False
    share: str | None = None
    clock: Clock = SYSTEM

    def __post_init__(self) -> None:
        self._lock = threading.Condition()  # notified when a call has ended
        self._held_until = 0.0
        self._running = 0
        self._windows: list[tuple[RateLimit, AnyWindow]] | None = None
        self._said_heavy = False
        self._headroom = Headroom()
        self._control = AdditiveIncrease(self.adaptive) if self.adaptive is not None else None

    def __reduce__(self) -> tuple[Any, ...]:
        return Limits, (
            *(self.rates, self.adaptive, self.gates, self.largest, self.processes, self.learnt),
            *(self.auto, self.share),
        )

    @property
    def concurrency(self) -> int | None:
        """The number of calls that may run at once now; None if it is fixed elsewhere."""
        return int(self._control.limit) if self._control is not None else None

    @property
    def at_once(self) -> str:
        """Describe the adaptive limit on concurrent calls; "" if there is none."""
        if self._control is None or self.adaptive is None:
            return ""
        limit = int(self._control.limit)
        if limit >= self.adaptive.highest:
            return f"at highest={limit}"
        if self._control.rising:
            return f"{limit} calls at once, and rising"
        return f"the service handles no more than {limit} at once"

    def enter(
        self, load: Load, stopping: Stopping, waits: dict[str, float] | None = None
    ) -> Entry | None:
        """Wait until a call with this load may begin; return None if the run is stopping.

        ``waits`` receives the seconds waited, by reason.
        """
        slots = max(1, load.own or 1)

        def do(step: float | Gate) -> bool:
            if isinstance(step, float):
                with self._lock:
                    self._lock.wait(step)
                return True
            return step.enter(stopping, slots)

        return drive(self._steps(Entry(load, {} if waits is None else waits), stopping), do)

    async def aenter(
        self, load: Load, stopping: Stopping, waits: dict[str, float] | None = None
    ) -> Entry | None:
        """`enter` in an event loop."""
        import asyncio

        slots = max(1, load.own or 1)

        async def do(step: float | Gate) -> bool:
            if isinstance(step, float):
                await asyncio.sleep(step)
                return True
            return await step.aenter(stopping, slots)

        entry = Entry(load, {} if waits is None else waits)
        return await adrive(self._steps(entry, stopping), do)

    def _steps(
        self, entry: Entry, stopping: Stopping
    ) -> Generator[float | Gate, bool, Entry | None]:
        """Yield seconds to wait and gates to enter; False as an answer means stop."""
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
        """Note that a call has ended. If the service told it to wait, all calls wait as long."""
        told = seconds_told(error) if error is not None else None
        with self._lock:
            self._running -= 1
            call.ended = True
            with _at_no_cost_of_the_call():
                self._correct(call)
            self.learnt.add(call.load, call.used)
            self._lock.notify()
            if told is not None:
                self._held_until = max(self._held_until, self.clock.monotonic() + told)
            if self._control is None:
                return
            if error is None:
                self._control.went_well(call.began, self._running + 1)
            elif told is not None or is_throttling(error) or isinstance(error, TimeoutError):
                self._control.was_throttled(call.began, error)

    def report(
        self,
        call: Entry,
        reported: Mapping[str, int | None],
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Count the usage that a call's handler reports. Reports of one call add up.

        ``headers``: of the service's response; they may contain its limits.
        """
        with self._lock, _at_no_cost_of_the_call():
            call.used.add(**reported)
            if headers is not None:
                self._obey(call, headers)
            self._correct(call)

    def _obey(self, call: Entry, headers: Mapping[str, str]) -> None:
        """Make calls wait if the service has little quota left; with ``auto``, keep its limits."""
        now = self.clock.monotonic()
        self._held_until = max(self._held_until, now + (retry_after(headers) or 0.0))
        quota, *others = call.load.parts or ("",)
        for told in told_by(headers) if not others else ():  # else the quota is unknown
            self._headroom.tell(quota, told, now)
            if self.auto:
                self._take_over(RateLimit(told.limit, 60.0, told.unit), call, now)

    def _take_over(self, rate: RateLimit, call: Entry, now: float) -> None:
        """Keep to a limit that the service has reported, from this call on."""
        assert self._windows is not None
        for at, (known, window) in enumerate(self._windows):
            if known.of_service and known.unit == rate.unit:
                window.most = max(1, rate.count // (1 if self.share else self.processes))
                self._windows[at] = replace(rate, of_service=True), window
                return
        share = max(1, rate.count // self.processes)
        window = self._window(rate) if self.share else Window(share, rate.seconds)
        rate = replace(rate, of_service=True)
        self._windows.append((rate, window))
        weight = self.learnt.weight(rate.unit, call.load)
        call.held.append(Held(rate, window, window.put(weight, now)[0], weight))
        log.info("rate_limit: the service allows %s", rate)

    def _correct(self, call: Entry) -> None:
        """Set the weight of a call in its windows to the reported usage.

        Until the call ends, more reports may come, so it counts at least as estimated.
        """
        for rate, window, slot, weight in call.held:
            true = call.used.of(rate.unit)
            if slot is None or true is None:
                continue
            if rate.quota:  # a call in several quotas is divided among them
                whole = max(1, self.learnt.weight(rate.unit, call.load))
                true = math.ceil(true * weight / whole)
            window.correct(slot, true if call.ended else max(true, weight))

    def left(self) -> list[tuple[RateLimit, int]]:
        """Return how much each rate allows now, without rates that only other processes use."""
        with self._lock:
            now = self.clock.monotonic()
            held = now < self._held_until
            return [(rate, 0 if held else window.left(now)) for rate, window in self._windows or ()]

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1

    def _admit(self, call: Entry) -> float:
        """Return 0 if the call may begin, and count it; else the seconds until the next try."""
        with self._lock:
            now = self.clock.monotonic()
            if now < self._held_until:
                call.by = TOLD
                return self._held_until - now
            if self._control is not None and self._running >= int(self._control.limit):
                call.by = ADAPTIVE
                return _POLL_SECONDS
            if (wait := self._headroom.wait(call.load, self.learnt.weight, now)) > 0:
                call.by = TOLD
                return wait
            if (wait := self._put(call, now)) > 0:
                call.by = RATE
                return wait
            self._headroom.take(call.load, self.learnt.weight)
            self._running += 1
            return 0.0

    def _put(self, call: Entry, now: float) -> float:
        """Enter the call into its remaining windows; return 0, or the seconds to wait for one."""
        if self._windows is None:
            # The shortest window last: its slot must not be taken long before the call begins.
            rates = sorted(self.rates, key=lambda rate: -rate.seconds)
            self._windows = [(rate, self._window(rate)) for rate in rates]
        for rate, window in self._windows[len(call.held) :]:
            part = call.load.part(rate.quota)
            weight = self.learnt.weight(rate.unit, part) if part is not None else 0
            slot, wait = window.put(weight, now) if weight else (None, 0.0)
            if wait > 0:
                return wait
            call.held.append(Held(rate, window, slot, weight))
            if weight > rate.count:
                self._say_heavy(rate, weight)
        return 0.0

    def _say_heavy(self, rate: RateLimit, weight: int) -> None:
        if not self._said_heavy:
            self._said_heavy = True
            log.warning(
                "a call of about %s %s exceeds rate_limit= by itself: it waits until no call of "
                "the last %g s counts, and the next call waits even longer. Give a smaller "
                "batch_size, or max_weight=",
                f"{weight:,}",
                rate.unit,
                rate.seconds,
            )

    def _window(self, rate: RateLimit) -> AnyWindow:
        if self.share is not None:
            from resumable_tasks.runners.shared import SharedWindow

            name = f"{rate.unit} {rate.quota} {rate.seconds:g}"
            return SharedWindow(self.share, name, rate.count, rate.seconds)
        count, seconds = rate.count // self.processes, rate.seconds
        if rate.weighted and count:
            return Window(count, seconds)
        largest = self.largest if rate.unit == "items" else 1
        if count < largest:  # too small for one call: allow one in a longer time instead
            seconds *= largest * self.processes / rate.count
            count = largest
        return Window(count, seconds) if rate.weighted else Counted(count, seconds)


@contextmanager
def _at_no_cost_of_the_call() -> Iterator[None]:
    """Log errors of the shared window instead of raising them: the call's result still counts.

    Other processes go on with the estimate. If the shared window still fails, the next call does
    not begin.
    """
    try:
        yield
    except StoreError as error:
        log.warning(
            "the usage of a call could not be reported to the processes that share its rate: %s",
            error.what,
        )


class AdditiveIncrease:
    """An adaptive limit on concurrent calls: one more per round, half as many when throttled.

    Until the first throttled or slow call, it doubles in each round.
    """

    def __init__(self, bounds: Adaptive) -> None:
        self._bounds = bounds
        self.limit = float(bounds.lowest)
        self._doubling = True
        self._cut = -math.inf
        self._quickest = math.inf

    @property
    def rising(self) -> bool:
        """True until the first sign of too many calls."""
        return self._doubling

    def went_well(self, began: float, running: int) -> None:
        """Adjust the limit after a success; ``running`` calls were active when it ended."""
        seconds = time.monotonic() - began
        self._quickest = min(seconds, self._quickest * _FORGET)
        if seconds > _SLOWER * self._quickest + _POLL_SECONDS:
            self._doubling = False
        # Raise it only if the limit was reached, by a call that began after the last cut.
        elif began > self._cut and running >= int(self.limit):
            step = 1.0 if self._doubling else 1.0 / self.limit
            self.limit = min(self.limit + step, float(self._bounds.highest))

    def was_throttled(self, began: float, error: BaseException) -> None:
        """Halve the limit after a throttled call; several calls of one round halve it once."""
        if began <= self._cut:
            return
        self._cut = time.monotonic()
        self._doubling = False
        before, self.limit = self.limit, max(self.limit / 2, float(self._bounds.lowest))
        log.info(
            "%d calls at once instead of %d: %s", int(self.limit), int(before), type(error).__name__
        )
