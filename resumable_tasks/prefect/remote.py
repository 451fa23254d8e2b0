"""Batches as task runs in other processes: Dask, Ray, process pools, or any other task runner.

::

    driver   waiting batches → a group of them → task run ───┐
    worker   batch → handler → shard → outbox ───────────────┤  batch by batch
    driver   outbox → outcome → committed ───────────────────┘

A task run gets its batches when it is submitted. The outcome of each batch is in the checkpoint's
outbox as soon as it is known (see `resumable_tasks.checkpoint.directory.outbox`). So finished
batches are committed while their group continues, the death of a worker costs only its current
batch, and of a future only the end matters, not the result. The worker's side is in `worker`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from typing import Any

import cloudpickle
from prefect.exceptions import PrefectSignal

from resumable_tasks.base import log
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.checkpoint.directory.outbox import Outbox
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.engine.isolation import settled
from resumable_tasks.errors import ResumableTasksError, StoreError, UsageError, WorkerLost
from resumable_tasks.items.batch import Batch
from resumable_tasks.prefect.groups import Group, Submitter
from resumable_tasks.prefect.pace import MOST_BYTES, MOST_POLL_SECONDS, Pace
from resumable_tasks.prefect.silence import Silence
from resumable_tasks.prefect.task_runs import TaskRuns
from resumable_tasks.prefect.waiting import Kind, Waiting
from resumable_tasks.prefect.wire import lean_context, pickled, renew_pool
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.handle import Raised, Work, failed_call, failed_whole
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Fatal, Outcome, Times
from resumable_tasks.runners.pickling import compact

# A task run in another process costs Prefect about 0.2 s there, which should be at most 5 %.
SECONDS = 5.0
_OVERDUE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Close:
    """A message in the inbox: no more batches come. ``abandon``: do not wait for running ones."""

    abandon: bool


class RemoteTaskRuns(Runner):
    """Up to ``concurrency`` task runs at once, in processes that share the checkpoint's path.

    One thread submits task runs, looks into the outbox, and notes the ends of task runs. If a
    worker dies, batches of its task run that had not begun are sent again. The batch that it was
    handling gets a task run of its own. If that worker dies too, the batch is handled once more
    while no other task run is active, because several may share a process. After a third death it
    fails with `WorkerLost`.
    """

    remote = True
    needs_files = True

    def __init__(self, concurrency: int, runs: TaskRuns) -> None:
        super().__init__(concurrency)
        self._runs = runs
        self._pace = Pace()

    @property
    def window(self) -> int:
        return 2 * self.concurrency * self._pace.size

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        assert work.writer is not None
        self._done, self._stopping = done, stopping
        self._work = work
        crosses = pickled(work, self.concurrency)  # first, since it may raise: nothing is open yet
        self._inbox: SimpleQueue[Batch | Group | Close] = SimpleQueue()
        self._waiting = Waiting()
        self._groups: list[Group] = []
        self._broken: BaseException | None = None
        self._closing: Close | None = None
        self._stopped = False
        assert isinstance(work.writer, ShardWriter)
        self._outbox = Outbox(work.writer.store, work.writer.epoch)
        self._outbox.open()
        self._submitter = Submitter(self._runs, crosses, self._outbox)
        self._silence = Silence(self._outbox, work.retry.patience)
        self._thread = threading.Thread(
            target=copy_context().run,
            args=(self._run, lean_context()),
            name="resumable-remote",
            daemon=True,
        )
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        try:
            # From here on only the pickled items are kept, as they may be large.
            packed = replace(batch, items=cloudpickle.dumps(compact(batch.items)))
            # Try to load them while the batch can still be halved: so bad items fail, not the run.
            cloudpickle.loads(packed.items)
        except Exception as error:  # noqa: BLE001 - a batch that cannot be pickled has failed
            why = UsageError(
                f"these items cannot be sent to another process: {error}",
                remedy="Give items that can be pickled, such as dicts",
            )
            self._done(failed_whole(self._work, batch, why, 1))
        else:
            self._inbox.put(packed)

    def close(self, *, abandon: bool) -> None:
        self._inbox.put(Close(abandon))
        if not abandon:
            self._thread.join()
        if self._groups or self._submitter.pool_is_spent:
            renew_pool()
        try:
            self._outbox.close()
            if not abandon:
                self._outbox.clear()
        except StoreError as error:  # a failing disk is reported elsewhere
            log.warning("the outbox could not be closed: %s", error)

    def _run(self, context: AbstractContextManager[Any]) -> None:
        """The thread's loop, until the runner is closed and nothing runs any more."""
        with context:
            while self._closing is None or (self._groups and not self._closing.abandon):
                try:
                    self._take_inbox()
                    if self._stopping.is_set() or isinstance(self._broken, PrefectSignal):
                        self._stop()
                    self._look_after_groups()
                    self._start_groups()
                except PrefectSignal as error:  # suspended or aborted: wait for running batches
                    self._broken = error
                except BaseException as error:  # noqa: BLE001 - ends the run through the engine
                    self._give_all_back(error)

    def _give_all_back(self, error: BaseException) -> None:
        self._broken = error
        self._give_back(self._waiting.clear(), error)
        for group in self._groups:
            self._give_back(group.missing.values(), error)
            self._submitter.pool_is_spent |= group.future is not None
        self._groups.clear()

    def _take_inbox(self) -> None:
        wait = self._pace.pause if self._groups else 1.0
        while True:
            try:
                found = self._inbox.get(timeout=wait) if wait else self._inbox.get_nowait()
            except Empty:
                return
            wait = 0.0
            if isinstance(found, Close):
                self._closing = found
            elif isinstance(found, Group):
                found.ended = True
            elif self._broken is not None:
                self._give_back([found], self._broken)
            elif self._silence.over:
                self._done(Dropped(found, self._silence.over))
            elif self._waiting.add(found) is Kind.NEW:
                self._pace.add_size(len(found.items))

    def _give_back(self, batches: Iterable[Batch], why: BaseException | None) -> None:
        """Return batches that were not handled, because of an error or a stop."""
        fatal = None if isinstance(why, PrefectSignal) else why
        for batch in batches:
            self._done(Dropped(batch) if fatal is None else Fatal(batch, fatal))

    def _stop(self) -> None:
        """Let no further batch begin, here or in a worker."""
        if not self._stopped:
            self._stopped = True
            self._outbox.close()
        self._give_back(self._waiting.clear(), None)
        for group in [each for each in self._groups if each.future is None]:  # not submitted
            self._let_go(group)
            self._give_back(group.missing.values(), None)

    def _start_groups(self) -> None:
        while len(self._groups) < self.concurrency:
            isolated = any(group.isolated for group in self._groups)
            alone = isolated or self._waiting.count(Kind.ALONE) > 0
            if self._groups and (alone or self._submitter.pool_is_spent):
                return  # until all running groups have ended
            if (single := self._waiting.next_single()) is not None:
                self._start([single], alone)
            elif new := self._waiting.count(Kind.NEW):
                # Spread the waiting batches over all workers, instead of filling one.
                free = self.concurrency - len(self._groups)
                seconds = self._runs.seconds_of(self._submitter.started)
                size = min(self._pace.group_size(seconds), -(-new // free))
                self._start(self._waiting.next_group(size, MOST_BYTES), alone)
            else:
                return

    def _start(self, batches: list[Batch], isolated: bool) -> None:
        group = self._submitter.group(batches, isolated)
        # Before anything can fail, so that the batches are given back in that case.
        if not self._groups:
            self._silence.begin()
        self._groups.append(group)
        self._submitter.submit(group, self._inbox.put)

    def _look_after_groups(self) -> None:
        if not self._groups:
            return
        began = time.monotonic()
        # Ends are read before the outbox: an ended task run leaves no more outcomes.
        ended = {id(group) for group in self._groups if group.ended}
        there = self._outbox.numbers()
        for group in tuple(self._groups):
            self._take(group, sorted(there & group.missing.keys()))
            if id(group) in ended:
                # On a network file system a listing can be stale, so read each missing outcome.
                self._take(group, list(group.missing))
                self._finish(group)
            elif _is_overdue(group):
                self._finish(group)
        if self._silence.listen(group.number for group in self._groups):
            self._give_up(self._silence.over)
        self._pace.add_look(time.monotonic() - began)

    def _take(self, group: Group, numbers: Sequence[int]) -> None:
        for number in numbers:
            outcome = self._outbox.take(group.missing[number])
            if outcome is not None:
                del group.missing[number]
                self._waiting.accept()
                self._silence.hear()
                self._pace.add_seconds(0.0 if isinstance(outcome, Fatal) else outcome.times.seconds)
                self._runs.causes.tell(outcome, getattr(group.future, "task_run_id", ""))
                self._done(self._with_lost_calls(_by_our_clock(_unpacked(outcome))))

    def _with_lost_calls(self, outcome: Outcome) -> Outcome:
        """The outcome with the cost added of earlier calls whose workers were lost."""
        losses = self._waiting.losses_of(outcome.batch)
        if not losses or not isinstance(outcome, (Done, Failed)):
            return outcome
        return replace(outcome, cost=outcome.cost + self._lost(outcome.batch, losses, None).cost)

    def _give_up(self, why: str) -> None:
        """End the run because all workers are lost. Their batches are left to the next run.

        Except a batch that was lost with the last worker, after losing others: it has failed.
        """
        self._outbox.close()
        self._submitter.pool_is_spent = True
        for group in tuple(self._groups):
            self._take(group, list(group.missing))
            left = list(group.missing.values())
            begun = self._outbox.has_begun(group.number)
            self._let_go(group)
            if begun and left and self._waiting.losses_of(left[0]) == Kind.ALONE:
                failed = self._lost(left.pop(0), Kind.ALONE + 1, None)
                self._done(settled(failed, isolate=self._work.isolate))
            for batch in left:
                self._done(Dropped(batch, why))
        for batch in self._waiting.clear():
            self._done(Dropped(batch, why))

    def _finish(self, group: Group) -> None:
        """Finish a group. Its missing batches are lost, unless they were not to begin."""
        lost = list(group.missing.values())
        why = _why(group.future) if lost else None
        begun = bool(lost) and self._outbox.has_begun(group.number)
        taken_over = bool(lost) and not self._outbox.is_open()
        self._let_go(group)
        if not lost:
            return
        self._submitter.pool_is_spent |= isinstance(why, BrokenExecutor)
        if taken_over or self._stopping.is_set() or isinstance(why, PrefectSignal):
            self._give_back(lost, None)  # the journal will say who has taken over
        elif isinstance(why, ResumableTasksError) and not isinstance(why, WorkerLost):
            self._waiting.put_back(lost)
            raise why  # an error of ours about the place, not about a batch
        else:
            self._send_again(group, lost, why, begun)

    def _let_go(self, group: Group) -> None:
        self._outbox.withdraw(group.number)
        for number in group.batches:
            self._outbox.remove(number)
        group.future = None  # else Dask would rerun the task if its result is lost
        group.order.empty()
        self._groups.remove(group)  # after everything that may fail

    def _send_again(
        self, group: Group, lost: list[Batch], why: BaseException | None, begun: bool
    ) -> None:
        log.warning("a task run ended without %d of its batches: %r", len(lost), why)
        if not begun:
            refused = self._waiting.refuse(lost)
            if refused > 2 * self.concurrency:
                raise UsageError(
                    f"{refused} task runs in a row ended before they "
                    f"started: {why!r}. The workers need the same code and packages as the driver, "
                    f"the checkpoint's path ({self._outbox.store.url}), and Prefect's API",
                    remedy="Read a worker's log, and install what is missing there",
                )
            return
        self._waiting.accept()
        suspect, *rest = lost  # a worker handles batches in order, so it was at the first
        self._waiting.put_back(rest)
        losses = self._waiting.lose(suspect)
        if losses is None:
            return
        self._done(self._lost(suspect, losses, why))

    def _lost(self, batch: Batch, losses: int, why: BaseException | None) -> Failed:
        """The failure of a batch whose workers were lost, with the cost of as many calls."""
        error = WorkerLost(
            f"the worker of this batch was lost {losses} times{f' ({why!r})' if why else ''}. It "
            "may have used too much memory: try a smaller batch_size"
        )
        packed = isinstance(batch.items, bytes)
        whole = replace(batch, items=cloudpickle.loads(batch.items)) if packed else batch
        now = time.monotonic()
        failed = failed_call(self._work, whole, Raised(error, losses, Times(0.0, now, now)))
        return replace(failed, cost=losses * failed.cost)


def _unpacked(outcome: Outcome) -> Outcome:
    """Unpickle the items of an outcome with failures, which may be handled once more."""
    if not isinstance(outcome, (Done, Failed)) or not outcome.failures:
        return outcome
    batch = outcome.batch
    return replace(outcome, batch=replace(batch, items=cloudpickle.loads(batch.items)))


def _by_our_clock(outcome: Outcome) -> Outcome:
    """Convert an outcome's times to our clock: ended now, begun its duration before."""
    if not isinstance(outcome, (Done, Failed)):
        return outcome
    now = time.monotonic()
    began = now - (outcome.times.ended - outcome.times.began) - MOST_POLL_SECONDS
    return replace(outcome, times=replace(outcome.times, began=began, ended=now))


def _is_overdue(group: Group) -> bool:
    """True if a complete group's end is not reported, as seen with Dask; the outbox decides."""
    if group.missing:
        return False
    now = time.monotonic()
    group.complete_since = group.complete_since or now
    return now - group.complete_since > _OVERDUE_SECONDS


def _why(future: Any) -> BaseException | None:
    """The error of an ended task run; None if it has not failed."""
    try:
        future.result(timeout=5)
    except BaseException as error:  # noqa: BLE001 - returned, not raised
        return error
    return None
