"""A run in virtual time: batches, lanes and a service as events, and the real failure handling.

Nothing sleeps and no thread runs: the next thing that happens is computed, and the clock is set to
it. What is real is all that decides: `FailureHandling`, with its breaker, its doubt and its
isolation. What the engine does around it (its window, its lanes, its committer) is as in
`resumable_tasks.engine.engine`.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from resumable_tasks.engine.failing import Decision, FailureHandling
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch, ErrorKind
from resumable_tasks.runners.outcome import Done, Failed, Failure, Times

BAD = ErrorKind("ValueError", transient=True)
PROGRAMMING = ErrorKind("KeyError")
SHAPE = ErrorKind("BadResult", shape=True)
DOWN = ErrorKind("ConnectionError", transient=True, outage=True)

Answer = Callable[[float, Sequence[int]], ErrorKind | None]
"""What a call that begins at this time with these items fails with, if it does."""


class VirtualClock:
    """Stands still until it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@dataclass
class Report:
    """What came of a run."""

    seconds: float
    calls: list[tuple[float, tuple[int, ...]]]
    done: list[int]
    failures: list[Failure]
    left: int
    give_up: str | None
    hopeless: str | None
    retried: int

    @property
    def failed(self) -> list[int]:
        return [failure.key for failure in self.failures]  # type: ignore[misc]

    def is_done(self) -> bool:
        return not (self.left or self.give_up or self.hopeless)


def planned(items: Iterable[int], batch_size: int, suspects: Iterable[int] = ()) -> list[Batch]:
    """Batches of these items, and of suspects by themselves."""
    suspects = set(suspects)
    found: list[Batch] = []
    items = list(items)
    good = [item for item in items if item not in suspects]
    bad = [item for item in items if item in suspects]
    for group, are_suspects in ((good, False), (bad, True)):
        for start in range(0, len(group), batch_size):
            some = group[start : start + batch_size]
            lines = keys.join([keys.canonical(item) for item in some])
            number = len(found)
            found.append(Batch(number, some, lines, some, suspects=are_suspects))
    return found


def outcome_of(batch: Batch, kind: ErrorKind | None, began: float, ended: float) -> Done | Failed:
    times = Times(ended - began, began, ended, 1)
    if kind is None:
        return Done(batch, batch.lines, len(batch), times=times)
    # The message says which call has raised it.
    message = f"{kind.name} of {sorted(batch.items)}"
    failures = tuple(Failure(key, kind.name, message) for key in batch.keys)
    return Failed(batch, kind, failures, times=times)


@dataclass
class Simulation:
    """One run of these batches, on so many lanes."""

    batches: Iterable[Batch]
    answer: Answer
    lanes: int = 4
    call_seconds: float = 0.1
    isolate: bool = True
    pause_after: int | None = 5
    give_up_after: float = 600.0
    number: int = 1
    clock: VirtualClock = field(default_factory=VirtualClock)

    def run(self) -> Report:
        numbers = itertools.count(1_000_000)
        handling = FailureHandling(
            lambda: next(numbers),
            isolate=self.isolate,
            pause_after=self.pause_after,
            give_up_after=self.give_up_after,
            run=self.number,
            clock=self.clock,
        )
        report = Report(0.0, [], [], [], 0, None, None, 0)
        left = deque(self.batches)
        waiting: deque[Batch] = deque()
        running: list[tuple[float, int, Done | Failed]] = []
        while True:
            while left and len(waiting) + len(running) < 2 * self.lanes and handling.may_begin():
                waiting.append(left.popleft())
            while waiting and len(running) < self.lanes:
                self._call(waiting.popleft(), running, report)
            group = self._next_group(running, handling)
            decision = Decision()
            for outcome in group:
                decision.add(handling.take(outcome))
            nothing_else = not (left or waiting or running or decision.again)
            if handling.give_up is None:
                decision.add(handling.look(nothing_else=nothing_else))
            if handling.hopeless is not None:
                decision.add(handling.settle_all(nothing_else=nothing_else))
            self._commit(decision.settled, report)
            waiting += decision.again
            over = handling.give_up or handling.hopeless
            if over or not (left or waiting or running or handling.held):
                report.left = sum(map(len, [*left, *waiting])) + handling.drop_all()
                report.left += sum(len(outcome.batch) for _, _, outcome in running)
                report.seconds = self.clock.now
                report.give_up, report.hopeless = handling.give_up, handling.hopeless
                report.retried = len(handling.retried)
                return report

    def _call(
        self, batch: Batch, running: list[tuple[float, int, Done | Failed]], report: Report
    ) -> None:
        began = self.clock.now
        ended = began + self.call_seconds
        report.calls.append((began, tuple(batch.items)))
        kind = self.answer(began, batch.items)
        heapq.heappush(running, (ended, batch.number, outcome_of(batch, kind, began, ended)))

    def _next_group(
        self, running: list[tuple[float, int, Done | Failed]], handling: FailureHandling
    ) -> list[Done | Failed]:
        """What is there at the next moment at which anything happens."""
        wait = handling.wait
        due = math.inf if wait is None else self.clock.now + wait
        ends = running[0][0] if running else math.inf
        assert min(due, ends) < math.inf or not handling.held or not handling.paused, (
            "nothing would ever happen any more"
        )
        if min(due, ends) < math.inf:
            self.clock.now = max(self.clock.now, min(due, ends))
        group = []
        while running and running[0][0] <= self.clock.now:
            group.append(heapq.heappop(running)[2])
        return group

    def _commit(self, settled: Sequence[Done], report: Report) -> None:
        for done in settled:
            report.done += keys.parse_lines(done.done)  # type: ignore[arg-type]
            report.failures += done.failures
