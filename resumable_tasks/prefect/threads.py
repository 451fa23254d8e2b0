"""Batches as task runs on the threads of the flow's own task runner."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import CancelledError
from contextvars import copy_context
from typing import Any

from prefect import states
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectSignal

from resumable_tasks.base.daemons import Daemons
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.items.batch import Batch
from resumable_tasks.prefect.task_runs import Tally, TaskRuns, begin, rename, task_run_id
from resumable_tasks.runners.base import Runner, is_coroutine_function
from resumable_tasks.runners.eventloop import EventLoop, aexecute
from resumable_tasks.runners.handle import Work, execute
from resumable_tasks.runners.outcome import Dropped, Fatal, Outcome

# 25 times the cost of a task run, so that Prefect's part stays under 5 % of the work.
SECONDS = 1.0
_LEFT = "The run has ended, and does not wait for this batch any longer"


class Lane:
    """One task run, which takes batch after batch for its time. Opaque to Prefect.

    Prefect keeps a task run's arguments until all its events have been sent; a lane holds no batch
    by then.
    """

    __slots__ = ("first", "number", "runner")

    def __init__(self, runner: ThreadTaskRuns, first: Batch, number: int) -> None:
        self.runner: ThreadTaskRuns | None = runner
        self.first: Batch | None = first
        self.number = number


class ThreadTaskRuns(Runner):
    """Up to ``concurrency`` task runs at once, each of which handles batches as they come.

    Batches wait here and never in Prefect's pool, which would still start them after a cancel.
    Outcomes go to the engine at once, not when their task run ends. Handlers run on our own daemon
    threads: Prefect waits for its threads at the end of the flow, but after the grace period no
    handler may delay the end.
    """

    def __init__(
        self, concurrency: int, runs: TaskRuns, loop: asyncio.AbstractEventLoop | None
    ) -> None:
        super().__init__(concurrency)
        self._runs = runs
        self._callers_loop = loop

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        self._work, self._done, self._stopping = work, done, stopping
        self._context = copy_context()
        self._waiting: deque[Batch] = deque()
        self._changed = threading.Condition()
        self._daemons = Daemons("resumable-lane")
        self._lanes = self._idle = self._started = 0
        self._closed = self._cancelled = False
        self._loop: EventLoop | None = None
        if is_coroutine_function(work.handler):
            self._loop = EventLoop(self._callers_loop)

    def submit(self, batch: Batch) -> None:
        with self._changed:
            self._waiting.append(batch)
            self._changed.notify()
        self._start_lanes()

    def close(self, *, abandon: bool) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            # Wait, so that every task run has a final state when the flow continues.
            while self._lanes and not abandon:
                self._changed.wait()
        self._daemons.end()
        if self._loop is not None:
            self._loop.close(abandon=abandon)

    def _start_lanes(self) -> None:
        """Start a task run for each waiting batch without a free lane."""
        while True:
            if self._over:
                self._drop_waiting()
                return
            with self._changed:
                wanted = len(self._waiting) > self._idle and self._lanes < self.concurrency
                if not wanted or self._closed:
                    return
                first, number = self._waiting.popleft(), self._started
                self._lanes += 1
                self._started += 1
            lane = Lane(self, first, number)
            try:
                future = self._context.copy().run(self._submit, lane, first)
                future.add_done_callback(functools.partial(self._ended, lane))
            except BaseException as error:  # noqa: BLE001 - ends the run through the engine
                self._give_up(lane, error)

    def _submit(self, lane: Lane, first: Batch) -> Any:
        return self._runs.as_task(handle_lane, self._runs.name([first])).submit(lane)

    def handle(self, lane: Lane) -> State[None]:
        """In the task run: handle a lane's batches on a daemon thread, and wait for its end."""
        work = self._daemons.submit(functools.partial(self._handle_batches, lane))
        try:
            return work.result()
        except CancelledError:
            if not work.cancelled():
                raise
            lane.first = None
            return states.Cancelled(message=_LEFT)

    def _handle_batches(self, lane: Lane) -> State[None]:
        """Handle batches until the time is over, or none is left."""
        tally, until = (
            Tally(self._work.isolate),
            time.monotonic() + self._runs.seconds_of(lane.number),
        )
        batch, lane.first = lane.first, None
        while batch is not None:
            outcome: Outcome = Dropped(batch)
            try:
                if not self._over:
                    # Each batch gets a copy of the task run's context.
                    outcome = copy_context().run(self._execute, batch)
                    self._runs.causes.tell(outcome, task_run_id())
                    tally.add(outcome)
            except BaseException as error:
                outcome = Fatal(batch, error)
                raise
            finally:
                # Dropped: cancelled with the flow's event loop, before a request to stop. Waiting
                # batches must not begin. The engine stops when it sees the outcome.
                self._cancelled = self._cancelled or isinstance(outcome, Dropped)
                self._done(outcome)
            batch = self._next(until)
        if tally.batches > 1:
            rename(self._runs.name_of(tally.first, tally.last, tally.batches, tally.items))
        return tally.state()

    @property
    def _over(self) -> bool:
        """True once no further batch may begin."""
        return self._cancelled or self._stopping.is_set()

    def _execute(self, batch: Batch) -> Outcome:
        if self._loop is None:
            return execute(self._work, batch, self._stopping, running=self.calls)
        call = functools.partial(aexecute, self._work, batch, self._stopping, self.calls)
        return self._loop.spawn(call, copy_context()).result()

    def _next(self, until: float) -> Batch | None:
        """The next batch for a lane. Waits for one while more may come and there is time."""
        with self._changed:
            self._idle += 1
            while not self._waiting and not self._closed and not self._over:
                left = until - time.monotonic()
                if left <= 0:
                    break
                self._changed.wait(min(left, 0.5))
            self._idle -= 1
            if not self._waiting or time.monotonic() >= until:
                return None
            return self._waiting.popleft()

    def _ended(self, lane: Lane, future: Any) -> None:
        if lane.first is not None:  # Prefect has never called the task's function
            self._give_up(lane, _why(future))
            return
        self._leave(lane)
        self._start_lanes()

    def _give_up(self, lane: Lane, why: BaseException) -> None:
        """Give back the batch of a task run that has not begun."""
        assert lane.first is not None
        batch, lane.first = lane.first, None
        if isinstance(why, PrefectSignal):  # suspended or aborted: stop as Prefect asks
            self._done(Dropped(batch))
            self._drop_waiting()
        else:
            self._done(Fatal(batch, why))
        self._leave(lane)

    def _leave(self, lane: Lane) -> None:
        lane.runner = None
        with self._changed:
            self._lanes -= 1
            self._changed.notify_all()

    def _drop_waiting(self) -> None:
        while True:
            with self._changed:
                if not self._waiting:
                    return
                batch = self._waiting.popleft()
            self._done(Dropped(batch))


def handle_lane(lane: Lane) -> State[None]:
    """The task's function."""
    begin()
    assert lane.runner is not None
    return lane.runner.handle(lane)


def _why(future: Any) -> BaseException:
    """The reason why a task run has ended without beginning."""
    try:
        future.result(timeout=1)
    except BaseException as error:  # noqa: BLE001 - returned, not raised
        return error
    return RuntimeError("Prefect ended a task run without starting it")
