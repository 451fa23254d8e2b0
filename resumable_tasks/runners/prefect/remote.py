"""Batches as task runs in other processes: Dask, Ray, process pools, whatever the flow has.

::

    driver   batches that wait → a group of them → task run ─┐
    worker   batch → handler → shard → outbox ───────────────┤  batch by batch
    driver   outbox → outcome → committed ───────────────────┘

A task run is given its batches when it is submitted, and what becomes of each is in the
checkpoint's outbox as soon as it is known (see `resumable_tasks.outbox`). So a group's finished
batches are committed while the group goes on; a scheduler that runs a group again, because its
worker has died, has only the rest of it handled; and of a future only its end counts, not what
it says.
"""

from __future__ import annotations

import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass, replace
from hashlib import blake2b
from queue import Empty, SimpleQueue
from typing import Any

import cloudpickle
from prefect.client.schemas.objects import State
from prefect.exceptions import PrefectSignal
from prefect.logging import get_run_logger

from resumable_tasks import failures, log
from resumable_tasks.errors import ResumableTasksError, UsageError, WorkerLost
from resumable_tasks.manifest import NAME as MANIFEST
from resumable_tasks.model import Batch, Outcome
from resumable_tasks.outbox import Outbox
from resumable_tasks.runners.aio import aexecute
from resumable_tasks.runners.base import Runner, Work, execute, is_coroutine_function
from resumable_tasks.runners.crossing import HandlerReference, contain, shippable
from resumable_tasks.runners.loop import EventLoop
from resumable_tasks.runners.prefect.task_runs import Tally, TaskRuns

# A task run in another process costs Prefect about 0.2 s there, which is to be 5 % at most.
SECONDS = 5.0
_MOST_BATCHES = 256
_POLL_SECONDS = 0.1
_OVERDUE_SECONDS = 10.0


class Parcel:
    """What a task run is given: bytes, opaque to Prefect, and gone once they are not needed."""

    def __init__(self, outbox: Outbox, number: int, work: bytes, batches: bytes) -> None:
        self.outbox = outbox
        self.number = number
        self.work = work
        self.batches = batches

    def empty(self) -> None:
        self.work = self.batches = b""

    def __dask_tokenize__(self) -> object:
        # Dask would read all of it to find out whether it has seen it before.
        return self.outbox.store.url, self.outbox.epoch, self.number


@dataclass(slots=True)
class Group:
    """The batches of one task run, by number; ``missing``: of which nothing has come back yet."""

    parcel: Parcel
    batches: dict[int, Batch]
    missing: dict[int, Batch]
    future: Any = None
    ended: bool = False
    complete_since: float | None = None


class RemoteTaskRuns(Runner):
    """Up to ``concurrency`` task runs at once, in processes that share the checkpoint's path.

    One thread of ours submits, looks into the outbox, and takes the ends of task runs in.
    A batch whose worker died is handled once more, alone: the second time it has failed with
    `WorkerLost`.
    """

    remote = True

    def __init__(self, concurrency: int, runs: TaskRuns) -> None:
        super().__init__(concurrency)
        self._runs = runs
        self._size = 1
        self._seconds = 0.0
        self._handled = 0

    @property
    def window(self) -> int:
        return 2 * self.concurrency * self._size

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: threading.Event) -> None:
        assert work.writer is not None
        self._done, self._stopping = done, stopping
        self._work = _pickled(work)
        self._waiting: deque[Batch] = deque()
        self._alone: deque[Batch] = deque()
        self._lost_before: set[int] = set()
        self._groups: list[Group] = []
        self._started = 0
        self._inbox: SimpleQueue[Batch | Group | None] = SimpleQueue()
        self._broken: BaseException | None = None
        self._closed = self._abandoned = False
        self._outbox = Outbox(work.writer.store, work.writer.epoch)
        self._outbox.open()
        self._thread = threading.Thread(
            target=copy_context().run, args=(self._run,), name="resumable-remote", daemon=True
        )
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        self._inbox.put(batch)

    def close(self, *, abandon: bool) -> None:
        self._abandoned = abandon
        self._inbox.put(None)
        if not abandon:
            self._thread.join()
        self._outbox.close()

    def _run(self) -> None:
        """The thread: until it is closed and nothing runs any more."""
        while not (self._closed and (self._abandoned or not self._groups)):
            try:
                self._take_inbox()
                if self._stopping.is_set():
                    self._stop()
                self._start_groups()
                self._look_after_groups()
            except BaseException as error:  # noqa: BLE001 - ends the run, by the engine
                self._broken = error
                self._give_back([*self._waiting, *self._alone], error)
                for group in self._groups:
                    self._give_back(list(group.missing.values()), error)
                self._waiting.clear()
                self._alone.clear()
                self._groups.clear()

    def _take_inbox(self) -> None:
        wait = _POLL_SECONDS if self._groups else 1.0
        while True:
            try:
                found = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
            except Empty:
                return
            wait = 0.0
            if found is None:
                self._closed = True
            elif isinstance(found, Group):
                found.ended = True
            elif self._broken is not None:
                self._give_back([found], self._broken)
            else:
                self._waiting.append(found)

    def _give_back(self, batches: list[Batch], why: BaseException | None) -> None:
        """Batches that were not handled: because of an error, or because we are to stop."""
        fatal = None if isinstance(why, PrefectSignal) else why
        for batch in batches:
            self._done(Outcome(batch, dropped=fatal is None, fatal=fatal))

    def _stop(self) -> None:
        """No batch begins any more, here or in a worker."""
        self._outbox.close()
        self._give_back([*self._waiting, *self._alone], None)
        self._waiting.clear()
        self._alone.clear()

    def _start_groups(self) -> None:
        while len(self._groups) < self.concurrency and (self._waiting or self._alone):
            if self._alone:
                batches = [self._alone.popleft()]
            else:
                # What there is goes to all workers, rather than much to one and none to another.
                free = self.concurrency - len(self._groups)
                size = min(self._group_size(), -(-len(self._waiting) // free))
                batches = [self._waiting.popleft() for _ in range(size)]
            self._start(batches)

    def _group_size(self) -> int:
        """So many batches as fill a task run's time, by what they have taken up to now."""
        if self._handled:
            each = max(self._seconds / self._handled, 1e-3)
            wanted = int(self._runs.seconds_of(self._started) / each)
            # A guess from few batches is not to be trusted with very many.
            self._size = max(1, min(wanted, _MOST_BATCHES, 4 * self._handled))
        return self._size

    def _start(self, batches: list[Batch]) -> None:
        try:
            contents = cloudpickle.dumps(batches)
        except Exception as error:  # noqa: BLE001 - what cannot cross has failed
            why = UsageError(f"these items cannot be sent to another process: {error}")
            for batch in batches:
                self._done(Outcome(batch, failures=failures.whole_batch(batch, why, 1)))
            return
        parcel = Parcel(self._outbox, self._started, self._work, contents)
        self._started += 1
        by_number = {batch.number: batch for batch in batches}
        group = Group(parcel, by_number, dict(by_number))
        self._groups.append(group)
        group.future = self._runs.as_task(handle_group, self._runs.name(batches)).submit(parcel)
        group.future.add_done_callback(lambda _: self._inbox.put(group))

    def _look_after_groups(self) -> None:
        if not self._groups:
            return
        # Whoever has ended by now has left all that it ever will.
        ended = {id(group) for group in self._groups if group.ended}
        there = self._outbox.numbers()
        for group in tuple(self._groups):
            for number in sorted(there & group.missing.keys()):
                outcome = self._outbox.take(group.missing[number])
                if outcome is not None:
                    del group.missing[number]
                    self._seconds += outcome.seconds
                    self._handled += 1
                    self._done(outcome)
            if id(group) in ended or _is_overdue(group):
                self._finish(group)

    def _finish(self, group: Group) -> None:
        """Let a group go. What has not come of it is lost, unless it was not to begin."""
        self._groups.remove(group)
        group.parcel.empty()
        for number in group.batches:
            self._outbox.remove(number)
        lost = list(group.missing.values())
        if not lost:
            return
        why = _why(group.future)
        if self._stopping.is_set() or isinstance(why, PrefectSignal):
            self._give_back(lost, None)
        elif isinstance(why, ResumableTasksError):  # ours, of the place and not of a batch
            self._give_back(lost, why)
        else:
            self._handle_again(lost, why)

    def _handle_again(self, lost: list[Batch], why: BaseException | None) -> None:
        log.warning("a task run has ended without %d of its batches: %r", len(lost), why)
        for batch in lost:
            if batch.number not in self._lost_before:
                self._lost_before.add(batch.number)
                self._alone.append(batch)
                continue
            error = WorkerLost(
                f"the worker of this batch was lost, twice ({why!r}). A system kills a process "
                "that takes too much memory: try a smaller batch_size"
            )
            self._done(Outcome(batch, failures=failures.whole_batch(batch, error, 2)))


def _is_overdue(group: Group) -> bool:
    """Whether a group that is complete is not told to have ended (seen of Dask): trust the box."""
    if group.missing:
        return False
    now = time.monotonic()
    group.complete_since = group.complete_since or now
    return now - group.complete_since > _OVERDUE_SECONDS


def _why(future: Any) -> BaseException | None:
    """How a task run that has ended has failed; None if it has not."""
    try:
        future.result(timeout=5)
    except BaseException as error:  # noqa: BLE001 - this is what was asked for
        return error
    return None


def _pickled(work: Work) -> bytes:
    """The work as it crosses: a handler of a module by its name, any other by its code."""
    # Scripts, and files that Prefect loads by their path, have names that mean nothing elsewhere.
    if not str(getattr(work.handler, "__module__", "__")).startswith("__"):
        try:
            return bytes(cloudpickle.dumps(shippable(work, HandlerReference(work.handler))))
        except UsageError:
            pass  # a function in a function: by its code, then
    try:
        return bytes(cloudpickle.dumps(shippable(work, work.handler)))
    except Exception as error:
        raise UsageError(
            f"the handler cannot be sent to another process: {error}. Let it make or import what "
            "it needs (a client, a lock, a connection) when it is called"
        ) from error


def handle_group(parcel: Parcel) -> State[None]:
    """The function that is the task, in a worker."""
    log.destination.set(get_run_logger())
    outbox = parcel.outbox
    if MANIFEST not in outbox.store.list(""):
        raise UsageError(
            f"the checkpoint {outbox.store.url} is not there on host {os.uname().nodename}: it has "
            "to be on a path that the driver and all workers share"
        )
    work, batches = _unpickled(parcel.work), _unpickled(parcel.batches)
    parcel.empty()  # Prefect keeps it until it has told of this task run
    there, tally = outbox.numbers(), Tally()
    for batch in batches:
        if batch.number in there:
            continue  # this task run has been here before, on a worker that died
        if not outbox.is_open():
            log.warning("the run has been stopped, or taken over; what has not begun is left")
            break
        outcome = contain(_execute(work, batch))
        outbox.put(outcome)
        tally.add(outcome)
    return tally.state()


_loop: EventLoop | None = None
_last: tuple[bytes, Any] = (b"", None)
_lock = threading.Lock()


def _unpickled(data: bytes) -> Any:
    """What the driver has sent; the same again is not loaded again."""
    global _last
    digest = blake2b(data).digest()
    with _lock:
        if _last[0] == digest:
            return _last[1]
    try:
        found = cloudpickle.loads(data)
    except Exception as error:
        raise UsageError(
            f"what the driver has sent cannot be loaded on host {os.uname().nodename}: {error!r}. "
            "The workers need the same code and packages as the driver"
        ) from error
    if isinstance(found, Work):
        if isinstance(found.handler, HandlerReference):
            found = replace(found, handler=found.handler.handler)
        with _lock:
            _last = digest, found
    return found


def _execute(work: Work, batch: Batch) -> Outcome:
    global _loop
    if not is_coroutine_function(work.handler):
        return copy_context().run(execute, work, batch)
    with _lock:
        if _loop is None:
            _loop = EventLoop()  # one for all of this process, so that clients can be shared
    call = functools.partial(aexecute, work, batch, threading.Event())
    return _loop.spawn(call, copy_context()).result()
