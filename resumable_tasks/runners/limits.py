"""Limits on how often the handler is called, and on how many calls run at once.

One `Limits` is shared by all workers of a process. What a rate lets through is in its window; the
number of calls at once follows TCP's rule (additive increase, multiplicative decrease: Chiu and
Jain, 1989), as Netflix's ``concurrency-limits`` applies it to calls of a service.
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
# Latency "holds" while a call takes no longer than so many times the quickest of late.
_SLOWER = 2.0
_FORGET = 1.01


@locked
class Adaptive:
    """``concurrency="adaptive"`` with bounds: from ``lowest`` to ``highest`` calls at once."""

    lowest: int = 1
    highest: int = 32

    def __post_init__(self) -> None:
        checks.whole_number("Adaptive: lowest", self.lowest, 1)
        checks.whole_number("Adaptive: highest", self.highest, 1)
        if self.lowest > self.highest:
            raise UsageError(f"{self!r}: give bounds with 1 <= lowest <= highest")


class Gate(Protocol):
    """Something elsewhere that says when a call may begin."""

    def enter(self, stopping: Stopping, slots: int) -> bool:
        """Wait for leave, for a call of this weight; False if the run is stopping."""

    async def aenter(self, stopping: Stopping, slots: int) -> bool:
        """The same, in an event loop."""


class Held(NamedTuple):
    """The place of a call in the window of a rate, with the weight that it was given there."""

    rate: RateLimit
    window: AnyWindow
    slot: Slot
    weight: int


@dataclass(slots=True, eq=False)
class Entry:
    """One call of the handler that waits, goes on, or has ended.

    ``held`` are its places in the windows so far. ``waits`` are the seconds that it has waited, by
    what has held it back (``by``).
    """

    load: Load
    waits: dict[str, float] = field(default_factory=dict)
    held: list[Held] = field(default_factory=list)
    began: float = 0.0
    by: str = ""
    used: Used = field(default_factory=Used)
    ended: bool = False

    def held_back(self, by: str, since: float) -> None:
        """Note that it has waited up to now."""
        self.waits[by] = self.waits.get(by, 0.0) + time.monotonic() - since


@dataclass(eq=False)
class Limits:
    """Holds calls of the handler back. Crosses to other processes, where it begins afresh.

    ``largest``: the items of the largest call. ``processes``: how many share the rates; each then
    takes its part, so that all together keep to them. ``learnt`` is what calls have taught of
    their weights. ``auto``: also keep to the limits that answers tell of.
    ``share``: the file by which processes of one host share the rates, which are whole then.
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
        self, load: Load, stopping: Stopping, waits: dict[str, float] | None = None
    ) -> Entry | None:
        """Wait until a call with this load may begin; None if the run is stopping.

        ``waits`` is told the seconds meanwhile, by what has held the call back.
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
        """`enter`, in an event loop."""
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
        """Take in what a call has used, as its handler says. Reports of one call add up.

        ``headers`` are those of an answer, which may tell of limits of the service.
        """
        with self._lock, _at_no_cost_of_the_call():
            call.used.add(**reported)
            if headers is not None:
                self._obey(call, headers)
            self._correct(call)

    def _obey(self, call: Entry, headers: Mapping[str, str]) -> None:
        """Wait where the service has little left; with ``auto``, keep to its limits."""
        now = self.clock.monotonic()
        self._held_until = max(self._held_until, now + (retry_after(headers) or 0.0))
        quota, *others = call.load.parts or ("",)
        for told in told_by(headers) if not others else ():  # else: of which of the quotas?
            self._headroom.tell(quota, told, now)
            if self.auto:
                self._take_over(RateLimit(told.limit, 60.0, told.unit), call, now)

    def _take_over(self, rate: RateLimit, call: Entry, now: float) -> None:
        """Keep to a limit that the service has told of, from this call on."""
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
        """Give a call the weight in its windows that was reported.

        As long as it goes on there may be more to come, so that it weighs no less than estimated.
        """
        for rate, window, slot, weight in call.held:
            true = call.used.of(rate.unit)
            if slot is None or true is None:
                continue
            if rate.quota:  # of a call of several quotas, each has its part
                whole = max(1, self.learnt.weight(rate.unit, call.load))
                true = math.ceil(true * weight / whole)
            window.correct(slot, true if call.ended else max(true, weight))

    def left(self) -> list[tuple[RateLimit, int]]:
        """How much each rate allows now; nothing of those that other processes keep to."""
        with self._lock:
            now = self.clock.monotonic()
            held = now < self._held_until
            return [(rate, 0 if held else window.left(now)) for rate, window in self._windows or ()]

    def _leave(self) -> None:
        with self._lock:
            self._running -= 1

    def _admit(self, call: Entry) -> float:
        """0 if the call may begin, and is counted from now on; else when to ask again."""
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
        """Enter the call into the windows in which it is not yet; 0 once it is in all of them."""
        if self._windows is None:
            # The shortest last: a slot is taken when a call begins, and not long before.
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
                "a call of about %s %s is above rate_limit=: such a call is made when no other of "
                "the last %g s counts, and longer than that before the next. Give a smaller "
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
        if count < largest:  # a part too small for one call: one call in as much more time
            seconds *= largest * self.processes / rate.count
            count = largest
        return Window(count, seconds) if rate.weighted else Counted(count, seconds)


@contextmanager
def _at_no_cost_of_the_call() -> Iterator[None]:
    """While entered, the place of ``share`` may fail: what a call has answered counts all the same.

    The others go on with what they know of it. Where it still fails, the next call is not begun.
    """
    try:
        yield
    except StoreError as error:
        log.warning(
            "what a call has used could not be told to those that share its rate: %s", error.what
        )


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
