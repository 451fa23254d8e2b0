"""Batches in processes of this machine: for handlers that compute. Workers write their shards."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue

from resumable_tasks.base import log
from resumable_tasks.errors import UsageError, WorkerLost
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.base import Runner, Work, attempts_of, execute, failed_whole
from resumable_tasks.runners.outcome import Outcome
from resumable_tasks.runners.pickling import HandlerReference, contain, shippable
from resumable_tasks.runners.retries import Attempts, overdue

_DEATHS = 2
_POLL_SECONDS = 0.5
# "fork" would copy our threads' locks in whatever state they are, "forkserver" would keep the
# environment of its own start; "spawn" means the same on every system.
_CONTEXT = multiprocessing.get_context("spawn")


class ProcessRunner(Runner):
    """Plain functions in ``concurrency`` processes, each looked after by a thread of ours.

    What happens to a process concerns its own batch only. One that dies is replaced and its batch
    handled once more: if that one dies too, the batch has failed with `WorkerLost`. One whose call
    takes longer than the timeout is killed and replaced, and the call has failed with
    ``TimeoutError``. (The standard library's pool knows no timeout, and loses all its batches with
    one process; ``docs/design/0008-failures.md``.)
    """

    remote = True

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: threading.Event) -> None:
        self._work = shippable(work, HandlerReference(work.handler), processes=self.concurrency)
        try:  # what cannot cross is said now, before anything has run
            ForkingPickler.dumps(self._work)
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"the job cannot be sent to another process: {error}. What retry_on=, cost= and "
                "key= are given must be at the top level of a module"
            ) from error
        self._done, self._stopping = done, stopping
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []

    def submit(self, batch: Batch) -> None:
        self._queue.put(batch)
        with self._lock:
            if len(self._lanes) < self.concurrency:
                lane = _Lane(self._work, self._queue, self._done, self._stopping)
                self._lanes.append(lane)
                lane.start()

    def close(self, *, abandon: bool) -> None:
        for _ in self._lanes:
            self._queue.put(None)
        for lane in self._lanes:
            if abandon:
                lane.abandon()
            else:
                lane.join()


class _Lane(threading.Thread):
    """One process after the other, and the batch that it handles."""

    def __init__(
        self,
        work: Work,
        queue: SimpleQueue[Batch | None],
        done: Callable[[Outcome], None],
        stopping: threading.Event,
    ) -> None:
        super().__init__(name="resumable-process", daemon=True)
        self._work = work
        self._queue = queue
        self._done = done
        self._stopping = stopping
        self._abandoned = False
        self._process: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def run(self) -> None:
        while (batch := self._queue.get()) is not None and not self._abandoned:
            if self._stopping.is_set():
                outcome = Outcome(batch, dropped=True)
            else:
                try:
                    outcome = self._handle(batch)
                except Exception as error:  # noqa: BLE001 - no process, no memory: ends the run
                    outcome = Outcome(batch, fatal=error)
            if not self._abandoned:
                self._done(outcome)
        self._end_process()

    def abandon(self) -> None:
        """End at once, from another thread; a batch that is handled does not come back."""
        self._abandoned = True
        if self._process is not None:
            self._process.terminate()

    def _handle(self, batch: Batch) -> Outcome:
        work, deaths = self._work, 0
        attempts = attempts_of(work, batch)
        while True:
            try:
                came = self._send(batch, attempts)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                came = None
            except Exception as error:  # noqa: BLE001 - these items cannot cross
                return failed_whole(work, batch, error, attempts.number)
            if isinstance(came, Outcome) and not came.dropped:
                return replace(came, batch=batch)
            self._kill()  # it is overdue, or waits for the next call, which is not to be made
            if isinstance(came, Outcome):
                return replace(came, batch=batch)
            if self._abandoned:
                return Outcome(batch, dropped=True)
            if came is not None:
                pause = attempts.pause_after(came)
                if pause is None:
                    return failed_whole(work, batch, came, attempts.number)
                if self._stopping.wait(pause):
                    return Outcome(batch, dropped=True)
                continue
            deaths += 1
            known = batch.part_of is not None and batch.part_of.error == WorkerLost.__name__
            if known or deaths == _DEATHS:
                lost = WorkerLost(
                    f"the worker process died while it handled this batch, {deaths} times; the "
                    "kernel kills a process that takes too much memory: try a smaller batch_size"
                )
                return failed_whole(work, batch, lost, attempts.number)
            log.warning("a worker process has died; its batch is handled again")
            if self._stopping.is_set():
                return Outcome(batch, dropped=True)

    def _send(self, batch: Batch, attempts: Attempts) -> Outcome | TimeoutError | None:
        """Have the process handle a batch: an outcome, a call that is overdue, or it has died."""
        if self._process is None or self._pipe is None or not self._process.is_alive():
            self._begin_process()
        process, pipe = self._process, self._pipe
        assert process is not None
        assert pipe is not None
        pipe.send((batch, attempts.number))
        deadline: float | None = None
        calling = False
        while True:
            if self._stopping.is_set() and not calling:
                return Outcome(batch, dropped=True)
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return overdue(self._work.timeout)
            wait = _POLL_SECONDS if left is None else min(left, _POLL_SECONDS)
            ready = connection.wait([pipe, process.sentinel], wait)
            if pipe in ready:
                kind, value = pipe.recv()
                if kind == "outcome":
                    return value  # type: ignore[no-any-return]
                # A call has begun (its number), or ended with a pause after it (None).
                deadline, calling = None, value is not None
                if value is not None:
                    attempts.number = value
                    if self._work.timeout is not None:
                        deadline = time.monotonic() + self._work.timeout
            elif ready or self._abandoned:
                return None

    def _begin_process(self) -> None:
        self._kill()
        self._pipe, theirs = _CONTEXT.Pipe()
        with theirs:
            self._process = _CONTEXT.Process(target=_serve, args=(theirs, self._work))
            self._process.start()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.join()
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _end_process(self) -> None:
        """Let it end by itself: it sees that there is nothing more to come."""
        if self._pipe is not None:
            self._pipe.close()
        if self._process is not None:
            self._process.join()


def _serve(pipe: Connection, work: Work) -> None:
    """In a worker process: batches as they come."""
    # Ctrl-C goes to the whole process group; the driver decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None:
        watch = threading.Thread(target=_die_with, args=(parent.sentinel,), daemon=True)
        watch.start()
    withdrawn = _Told(pipe)
    while True:
        try:
            batch, first = pipe.recv()
        except EOFError:
            return
        outcome = execute(work, batch, withdrawn, first=first, on_call=withdrawn.call)
        if not outcome.dropped:
            outcome = contain(work, outcome)
        _send_back(pipe, work, outcome, first)


def _send_back(pipe: Connection, work: Work, outcome: Outcome, first: int) -> None:
    # The items are there already.
    batch = replace(outcome.batch, items=None)
    try:
        data = ForkingPickler.dumps(("outcome", replace(outcome, batch=batch)))
    except Exception as error:  # noqa: BLE001 - what cannot cross back has failed
        data = ForkingPickler.dumps(("outcome", failed_whole(work, batch, error, first)))
    pipe.send_bytes(data)


class _Told(threading.Event):
    """Tells the driver of calls and of the pauses between them, in which no timeout counts."""

    def __init__(self, pipe: Connection) -> None:
        super().__init__()
        self._pipe = pipe

    def call(self, number: int) -> None:
        self._pipe.send(("call", number))

    def wait(self, timeout: float | None = None) -> bool:
        self._pipe.send(("call", None))
        time.sleep(timeout or 0.0)
        return False


def _die_with(sentinel: int) -> None:
    """A worker whose driver was killed must not go on spending."""
    with contextlib.suppress(Exception):
        connection.wait([sentinel])
    os._exit(1)
