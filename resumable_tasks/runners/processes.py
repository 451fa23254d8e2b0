"""Runs batches in processes of this machine, for CPU-bound handlers. Workers write their shards."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.reduction import ForkingPickler
from queue import SimpleQueue

from resumable_tasks.base import log
from resumable_tasks.base.clock import held_up
from resumable_tasks.base.steps import drive
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.errors import UsageError, WorkerLost
from resumable_tasks.items.batch import Batch, Cause
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.bound import with_start
from resumable_tasks.runners.handle import (
    Answer,
    Call,
    Pause,
    Raised,
    Step,
    Work,
    calls,
    failed_call,
    failed_whole,
)
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Fatal, Outcome, Times
from resumable_tasks.runners.pickling import HandlerReference, shippable
from resumable_tasks.runners.retries import overdue
from resumable_tasks.runners.worker import Worker

_DEATHS = 2
_POLL_SECONDS = 0.5
# How long to wait for the exit code of a process whose pipe is closed.
_DYING_SECONDS = 5.0
_OF_MEMORY = "; the kernel may have killed it for using too much memory: try a smaller batch_size"


class ProcessRunner(Runner):
    """Runs plain functions in ``concurrency`` processes, each controlled by a thread of the driver.

    A failure of a process affects its own batch only. A process that dies is replaced, and its
    batch is handled once more; if that process dies too, the batch fails with `WorkerLost`. A
    process whose call exceeds the timeout is killed and replaced, and the call fails with
    ``TimeoutError``. (The standard library's pool has no timeouts, and loses all its batches with
    one process; see ``docs/design/0008-failures.md``.)
    """

    remote = True

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        crosses = shippable(work, HandlerReference(work.handler), processes=self.concurrency)
        self._work = replace(crosses, trails=work.trails)
        try:  # report what cannot be pickled now, before anything runs
            self._pickled = bytes(ForkingPickler.dumps(crosses))
        except UsageError:
            raise
        except Exception as error:
            raise UsageError(
                f"the job cannot be sent to another process: {error}. Functions given to "
                "Retry(on=…), cost= and key= must be at the top level of a module, and the "
                "handler's parameters must be picklable",
                remedy='Change that (create clients inside the handler), or use runner="local"',
            ) from error
        self._done, self._stopping = done, stopping
        self._queue: SimpleQueue[Batch | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._lanes: list[_Lane] = []

    def submit(self, batch: Batch) -> None:
        self._queue.put(batch)
        with self._lock:
            if len(self._lanes) < self.concurrency:
                given = (self._work, self._pickled, self._queue, self._done, self._stopping)
                lane = _Lane(*given, self.calls)
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


class _Lane:
    """Runs batches one by one in a process, and replaces the process when it dies."""

    def __init__(
        self,
        work: Work,
        pickled: bytes,
        queue: SimpleQueue[Batch | None],
        done: Callable[[Outcome], None],
        stopping: Stopping,
        going_on: dict[int, float],
    ) -> None:
        thread = threading.Thread(target=self._run, name="resumable-process", daemon=True)
        self.start, self.join = thread.start, thread.join
        self._work = work
        self._pickled = pickled
        self._queue = queue
        self._done = done
        self._stopping = stopping
        self._going_on = going_on
        self._abandoned = False
        self._deaths = 0  # of processes that handled this batch
        self._calls = 0  # of the handler, in this step
        self._spent = 0.0  # in this step, as far as the worker has reported it
        self._process: Worker | None = None

    def _run(self) -> None:
        while (batch := self._queue.get()) is not None and not self._abandoned:
            if self._stopping.is_set():
                outcome: Outcome = Dropped(batch)
            else:
                try:
                    outcome = self._handle(batch)
                except Exception as error:  # noqa: BLE001 - no process, no memory: ends the run
                    outcome = Fatal(batch, error)
            if not self._abandoned:
                self._done(outcome)
        if self._process is not None:
            self._process.end()

    def abandon(self) -> None:
        """End at once, from another thread; a running batch gets no outcome."""
        self._abandoned = True
        if self._process is not None:
            self._process.abandon()

    def _handle(self, batch: Batch) -> Outcome:
        self._deaths = 0
        # The process makes the calls, so it applies the limits and makes the spans.
        return drive(calls(replace(self._work, limits=None, traced=""), batch), self._do)

    def _do(self, step: Step) -> Answer:
        if isinstance(step, Pause):
            return Dropped(step.batch) if self._stopping.wait(step.seconds) else None
        assert isinstance(step, Call)
        self._calls, self._spent = 0, 0.0
        began, fresh = time.monotonic(), self._process is None
        while True:
            if not self._has_process():
                return Dropped(step.batch, cost=self._spent)
            try:
                answer = self._send(step)
            except (EOFError, BrokenPipeError, ConnectionResetError):
                answer = None
            except Exception as error:  # noqa: BLE001 - these items cannot be pickled
                return failed_whole(self._work, step.batch, error, step.number)
            finally:
                self._going_on.pop(step.batch.number, None)
            match answer:
                case Done() | Failed():
                    times = replace(answer.times, calls=self._calls)
                    if fresh:
                        times = with_start(times, time.monotonic() - began)
                    return replace(answer, batch=step.batch, times=times)
                case Fatal():
                    return replace(answer, batch=step.batch)
            # The call is overdue, or the run stops before it began, or the process has died.
            how = self._kill(0.0 if answer else _DYING_SECONDS)
            if isinstance(answer, Dropped):
                return replace(answer, batch=step.batch)
            answer = answer or self._after_death(step, how)
            if answer is not None:
                return answer

    def _has_process(self) -> bool:
        """Make sure that there is a process; return False if the run stops."""
        return (self._process is not None and self._process.is_alive) or self._begin_process()

    def _after_death(self, call: Call, how: str) -> Outcome | None:
        """Return the outcome after the process died; None to handle the batch once more."""
        if self._abandoned:
            return Dropped(call.batch)
        self._deaths += 1
        part = call.batch.part_of
        error = part.error if part is not None else None
        known = error is not None and error.cause is Cause.WORKER_LOST
        if known or self._deaths == _DEATHS:
            times = "once" if self._deaths == 1 else f"{self._deaths} times"
            hint = _OF_MEMORY if "SIGKILL" in how else ""
            lost = WorkerLost(
                f"the worker process died {times} while handling this batch: it {how}{hint}"
            )
            return failed_call(self._work, call.batch, self._raised(lost, call))
        again = WorkerLost("a worker process died; its batch is handled again")
        log.warning("%s", again)
        # The lost call is paid for too.
        self._spent = failed_call(self._work, call.batch, self._raised(again, call)).cost
        return Dropped(call.batch) if self._stopping.is_set() else None

    def _raised(self, error: WorkerLost, call: Call) -> Raised:
        now = time.monotonic()
        return Raised(error, call.number, Times(0.0, now, now), spent=self._spent)

    def _send(self, call: Call) -> Outcome | Raised | None:
        """Have the process handle a batch.

        Returns its outcome, `Raised` for an overdue call, or None if the lane is abandoned. Raises
        ``EOFError`` or another connection error if the process died.
        """
        process = self._process
        assert process is not None
        process.pipe.send((call.batch, call.number, self._spent))
        deadline: float | None = None
        calling, began = False, 0.0
        while True:
            if self._stopping.is_set() and not calling:
                return Dropped(call.batch, cost=self._spent)
            now = time.monotonic()
            left = _POLL_SECONDS if deadline is None else max(0.0, deadline - now)
            until = now + min(left, _POLL_SECONDS)
            message = process.receive(until - now)
            if deadline is not None:
                deadline += held_up(time.monotonic() - until)
            if message is not None:
                kind, value = message
                if kind == "outcome":
                    return value  # type: ignore[no-any-return]
                if kind == "unreadable":
                    unreadable = UsageError(
                        f"a worker process cannot load these items: {value}",
                        remedy="Give items whose classes a worker can import",
                    )
                    return failed_whole(self._work, call.batch, unreadable, call.number)
                # "call": a call has begun (with its number). "ended": its handler has returned.
                # "pause": a pause has begun (with the cost of all calls so far).
                deadline, calling = None, kind != "pause"
                self._going_on.pop(call.batch.number, None)
                if kind == "pause":
                    self._spent = value
                elif kind == "call":
                    call.number = value
                    began = self._going_on[call.batch.number] = time.monotonic()
                    self._calls += 1
                    if self._work.timeout is not None:
                        deadline = began + self._work.timeout
            elif self._abandoned:
                return None
            elif deadline is not None and deadline <= now:
                times = Times(now - began, began, now, self._calls)
                error = overdue(self._work.timeout)
                return Raised(error, call.number, times, spent=self._spent)

    def _begin_process(self) -> bool:
        """Start a process and wait until it is ready; return False if the run stops first.

        Raises `WorkerLost` or `UsageError` if no process can start.
        """
        self._kill()
        self._process = Worker(self._pickled)
        return self._process.wait_until_ready(lambda: self._abandoned or self._stopping.is_set())

    def _kill(self, patience: float = 0.0) -> str:
        """End the process; return how it ended, as text."""
        process, self._process = self._process, None
        return process.kill(patience) if process is not None else ""
