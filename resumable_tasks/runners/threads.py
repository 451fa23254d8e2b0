"""Runs batches on threads of this process, for plain functions."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING

from resumable_tasks.base.stopping import Stopping
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Fatal, Outcome

if TYPE_CHECKING:
    from resumable_tasks.runners.handle import Work

# A handler that is quicker than this does not wait for anything, so more threads do not help.
_CHEAP_SECONDS = 0.0005
_STAND_BACK_SECONDS = 0.01


class ThreadRunner(Runner):
    """Runs plain functions on ``concurrency`` threads.

    The threads are daemons, unlike those of the standard library's executor, so that a second
    Ctrl-C does not wait for a handler that hangs. While calls are very short, all threads except
    one pause, because they would only compete for the GIL.
    """

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        self._work, self._done, self._stopping = work, done, stopping
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._context: Context = copy_context()
        self._threads: list[threading.Thread] = []
        self._recent: deque[float] = deque(maxlen=8)

    def submit(self, batch: Batch) -> None:
        if len(self._threads) < self.concurrency:
            number = len(self._threads)
            name = f"resumable-worker-{number}"
            thread = threading.Thread(target=self._run, args=(number,), name=name, daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put(batch)

    def close(self, *, abandon: bool) -> None:
        for _ in self._threads:
            self._queue.put(None)
        if not abandon:
            for thread in self._threads:
                thread.join()

    def _run(self, number: int) -> None:
        from resumable_tasks.runners.handle import execute

        while (batch := self._next(number)) is not None:
            if self._stopping.is_set():
                self._done(Dropped(batch))
                continue
            # Each batch sees the caller's context variables, and changes only its own.
            try:
                outcome = self._context.copy().run(
                    execute, self._work, batch, self._stopping, running=self.calls
                )
            except Exception as error:  # noqa: BLE001 - a bug of ours; else the run would hang
                outcome = Fatal(batch, error)
            if isinstance(outcome, (Done, Failed)):
                self._recent.append(outcome.times.seconds)
            self._done(outcome)

    def _next(self, number: int) -> Batch | None:
        while number and self._recent and min(self._recent) < _CHEAP_SECONDS:
            time.sleep(_STAND_BACK_SECONDS)
            with contextlib.suppress(Empty):
                return self._queue.get_nowait()
        return self._queue.get()
