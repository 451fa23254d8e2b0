"""Batches that are submitted, and collected later: many at once, on a few threads."""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import checks
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.errors import UsageError
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import shorten
from resumable_tasks.items.submission import Submission, Transition
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.outcome import Dropped, Fatal, Outcome
from resumable_tasks.runners.submitted.calls import Calls
from resumable_tasks.runners.submitted.life import Life, Pause, Shared, Steps, may_be_sent_again

if TYPE_CHECKING:
    from resumable_tasks.runners.handle import Work

_THREADS = 4
# A machine that sleeps is looked after at least so often once it wakes up.
_SLICE_SECONDS, _STOP_SLICE_SECONDS = 30.0, 0.2
# What rests is not looked at by this run any more: nothing but others holds that up.
_REST_SECONDS = 3_600.0


@dataclass(order=True, slots=True)
class _Turn:
    """The next step of a life: ``due`` by the wall clock, set at ``since`` by it."""

    due: float
    number: int
    since: float = field(compare=False)
    batch: Batch = field(compare=False)
    steps: Steps[Outcome] = field(compare=False)
    begun: bool = field(compare=False, default=False)
    rests: bool = field(compare=False, default=False)


class SubmittedRunner(Runner):
    """Has ``concurrency`` submissions with the service at once, and those of earlier runs besides.

    ``wait``: seconds after which the run need not wait any longer for what the service has; None:
    it waits until all is done. ``ask``: what nobody can look for is left to a person.
    """

    submits = True

    def __init__(self, concurrency: int, *, wait: float | None, ask: bool) -> None:
        super().__init__(concurrency)
        self._ask = ask
        self._until = None if wait is None else time.time() + wait

    @property
    def window(self) -> int:
        return self.concurrency

    def keep(
        self,
        record: Callable[[Transition], None],
        rests: Callable[[Batch, float, str], None],
        place: str,
    ) -> None:
        self._record, self._rests, self._place = record, rests, place

    def needs_items(self, submission: Submission) -> bool:
        return may_be_sent_again(self._calls, submission)

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        self._done, self._stopping = done, stopping
        service: Any = work.handler
        self._calls = Calls(service)
        self._shared = Shared(
            work, self._calls, self._record, self.price, self._ask, stopping, self._place
        )
        # By the number of a batch, and its items: a budget has parts of it priced.
        self._priced: dict[tuple[int, int], float] = {}
        self._turns: list[_Turn] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []

    def price(self, batch: Batch) -> float | None:
        """The expected cost of a batch, if the service knows; of an earlier run's, as it was."""
        if batch.submission is not None:
            return batch.submission.cost
        if not self._calls.has("price"):
            return None
        asked = batch.number, len(batch)
        if asked not in self._priced:
            self._priced[asked] = _checked(self._calls.call("price", batch.items))
        return self._priced[asked]

    def submit(self, batch: Batch) -> None:
        if len(self._threads) < _THREADS:
            name = f"resumable-submit-{len(self._threads)}"
            thread = threading.Thread(target=self._work_off, name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        now = time.time()
        steps = Life(self._shared, batch).steps()
        self._put(_Turn(now, next(self._numbers), now, batch, steps))

    def close(self, *, abandon: bool) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if not abandon:
            for thread in self._threads:
                thread.join()
            self._calls.close()

    def _put(self, turn: _Turn) -> None:
        with self._changed:
            heapq.heappush(self._turns, turn)
            self._changed.notify()

    def _work_off(self) -> None:
        while (turn := self._next()) is not None:
            try:
                self._take(turn)
            except BaseException as error:  # noqa: BLE001 - ends the run, as a record that fails
                self._done(Fatal(turn.batch, error))

    def _next(self) -> _Turn | None:
        """The next turn that is due, or whose run stops; None once the runner is closed."""
        with self._changed:
            while True:
                if self._turns and self._is_due(self._turns[0]):
                    return heapq.heappop(self._turns)
                if self._closed and not self._turns:
                    return None
                left = self._turns[0].due - time.time() if self._turns else _SLICE_SECONDS
                self._changed.wait(min(left, _STOP_SLICE_SECONDS))

    def _is_due(self, turn: _Turn) -> bool:
        now = time.time()
        # A clock that was set back must not make anybody wait for what it had shown.
        return self._stopping.is_set() or now >= turn.due or now < turn.since

    def _take(self, turn: _Turn) -> None:
        stops = self._stopping.is_set()
        if stops and not turn.begun:
            self._done(Dropped(turn.batch))
            return
        try:
            pause = turn.steps.send(stops) if turn.begun else next(turn.steps)
        except StopIteration as end:
            self._done(end.value)
            return
        self._put(self._after(turn, pause))

    def _after(self, turn: _Turn, pause: Pause) -> _Turn:
        now, until = time.time(), self._until
        due, rests = now + pause.seconds, bool(pause.why)
        if pause.rests and not rests and until is not None:
            rests, due = now >= until, min(due, max(now, until))
        if rests:
            if not turn.rests:
                self._rests(turn.batch, now + pause.seconds, pause.why)
            due = now + _REST_SECONDS
        return _Turn(due, turn.number, now, turn.batch, turn.steps, True, rests)


def _checked(price: Any) -> float:
    """Raises `UsageError` for what is no cost."""
    if checks.is_number(price):
        return float(price)
    raise UsageError(
        f"price(items) returned {shorten(price)}",
        remedy="Return the expected cost of these items: a number from 0",
    )
