"""Submits batches to a service and collects them later: many at once, on a few threads."""

from __future__ import annotations

import heapq
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import checks
from resumable_tasks.base.boottime import boottime
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.base.text import duration
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
# This run looks at resting batches again only if others keep it running this long.
_REST_SECONDS = 3_600.0
# Threads notice after at most this time that the machine has slept: their waits use a clock that
# stops meanwhile.
_SLICE_SECONDS = 30.0


@dataclass(order=True, slots=True)
class _Turn:
    """The next step of a life, and the pause before it; ``due`` is a time of `boottime`."""

    due: float
    number: int
    batch: Batch = field(compare=False)
    steps: Steps[Outcome] = field(compare=False)
    pause: Pause | None = field(compare=False, default=None)


class SubmittedRunner(Runner):
    """Keeps up to ``concurrency`` submissions with the service, plus those of earlier runs.

    ``wait``: the seconds after which the run need not wait for the service any longer; None: it
    waits until everything is done. ``ask``: a person decides about submissions that cannot be
    searched for.
    """

    submits = True

    def __init__(self, concurrency: int, *, wait: float | None, ask: bool) -> None:
        super().__init__(concurrency)
        self._ask = ask
        self._out: dict[str, float] = {}
        self._until = math.inf if wait is None else boottime() + wait

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
        self._done = done
        service: Any = work.handler
        self._calls = Calls(service)
        self._shared = Shared(
            *(work, self._calls, self._record, self.price, self._ask, stopping, self._place),
            out=self._out,
        )
        # Prices by the number of a batch and of its items, because a budget prices parts of it too.
        self._priced: dict[tuple[int, int], float] = {}
        self._turns: list[_Turn] = []
        self._numbers = count()
        self._changed = threading.Condition()
        self._closed = False
        self._threads: list[threading.Thread] = []
        threading.Thread(target=self._heed_stop, name="resumable-stop", daemon=True).start()

    @property
    def at_work(self) -> str:
        out = list(self._out.values())
        if not out:
            return ""
        return f"{len(out):,} out, oldest {duration(boottime() - min(out))}"

    def price(self, batch: Batch) -> float | None:
        """Return the expected cost of a batch, or None; for an earlier run's, the recorded one."""
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
        steps = Life(self._shared, batch).steps()
        self._put(_Turn(boottime(), next(self._numbers), batch, steps))

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
            except BaseException as error:  # noqa: BLE001 - ends the run, as a failed record does
                self._done(Fatal(turn.batch, error))

    def _heed_stop(self) -> None:
        """Wake all threads once the run stops or is closed."""
        while not (self._shared.stopping.wait(_SLICE_SECONDS) or self._closed):
            pass
        with self._changed:
            self._changed.notify_all()

    def _next(self) -> _Turn | None:
        """Return the next turn that is due (all are if the run stops); None after `close`."""
        with self._changed:
            while True:
                left = self._turns[0].due - boottime() if self._turns else _SLICE_SECONDS
                if self._turns and (left <= 0 or self._shared.stopping.is_set()):
                    return heapq.heappop(self._turns)
                if self._closed and not self._turns:
                    return None
                self._changed.wait(min(left, _SLICE_SECONDS))

    def _take(self, turn: _Turn) -> None:
        stops = self._shared.stopping.is_set()
        if stops and turn.pause is None:
            self._done(Dropped(turn.batch))
            return
        if stops and turn.pause is not None and turn.pause.look_in is not None:
            self._rest(turn.batch, turn.pause)
        try:
            pause = next(turn.steps) if turn.pause is None else turn.steps.send(stops)
        except StopIteration as end:
            self._done(end.value)
            return
        self._put(self._after(turn, pause))

    def _after(self, turn: _Turn, pause: Pause) -> _Turn:
        now = boottime()
        due = now + pause.seconds
        if pause.why:
            self._rest(turn.batch, pause)
            due = now + _REST_SECONDS
        elif pause.look_in is not None and due >= self._until:
            if now >= self._until:
                self._rest(turn.batch, pause)
            due = self._until if now < self._until else now + _REST_SECONDS
        return _Turn(due, turn.number, turn.batch, turn.steps, pause)

    def _rest(self, batch: Batch, pause: Pause) -> None:
        """Report that the run need not wait for this batch, or cannot go on with it."""
        look_in = pause.seconds if pause.look_in is None else pause.look_in
        self._rests(batch, time.time() + look_in, pause.why)


def _checked(price: Any) -> float:
    """Return the price. Raises `UsageError` if it is not a valid cost."""
    if checks.is_number(price):
        return float(price)
    raise UsageError(
        f"price(items) returned {shorten(price)}",
        remedy="Return the expected cost of these items: a number from 0",
    )
