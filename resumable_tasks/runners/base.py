"""The contract of a runner, and the handling of one batch, which is the same in all of them."""

from __future__ import annotations

import inspect
import math
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.errors import Interrupted, MissingResult, UsageError
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners import failures
from resumable_tasks.runners import match as rows
from resumable_tasks.runners.limits import Limits
from resumable_tasks.runners.outcome import CurrentBatch, Outcome, ResultsMode, Shard
from resumable_tasks.runners.retries import Attempts, GiveUp, RetryPolicy, looks_like_an_outage

if TYPE_CHECKING:
    import pyarrow as pa

current: ContextVar[tuple[Batch, int]] = ContextVar("resumable_tasks_current_batch")


def current_batch() -> CurrentBatch:
    """The batch that this handler call is about: its id, its keys, which attempt it is.

    Raises `UsageError` outside a handler.
    """
    try:
        batch, attempt = current.get()
    except LookupError:
        raise UsageError("current_batch() is for use inside a handler; none is running") from None
    return CurrentBatch(batch.id, tuple(batch.keys), attempt)


@dataclass(frozen=True, slots=True)
class Work:
    """All that a worker needs to handle a batch. Crosses to another process as it is.

    ``writer`` is set where workers write their own shards, because their rows would be too much
    to send back. ``cost`` is a field of the rows, or a callable of an outcome.
    """

    handler: Callable[[Any], Any]
    scheme: KeyScheme
    results: ResultsMode
    retry: RetryPolicy
    timeout: float | None = None
    limits: Limits | None = None
    cost: str | Callable[[Outcome], float] | None = None
    writer: Callable[[pa.Table, int], Shard] | None = None
    json_columns: frozenset[str] = frozenset()


class Runner(ABC):
    """Executes batches, up to ``concurrency`` at once.

    Every submitted batch comes back exactly once, by ``done``, from any thread, unless the
    runner was closed with ``abandon=True``. Once ``stopping`` is set no batch is started any
    more: those that wait come back as dropped.
    """

    remote = False
    """Whether workers write their own shards."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency

    @property
    def window(self) -> int:
        """How many batches may be out, submitted and not yet committed, at least."""
        return 2 * self.concurrency

    @abstractmethod
    def start(self, work: Work, done: Callable[[Outcome], None], stopping: threading.Event) -> None:
        """Get ready. Called once, before the first `submit`."""

    @abstractmethod
    def submit(self, batch: Batch) -> None:
        """Have this batch executed; returns at once."""

    @abstractmethod
    def close(self, *, abandon: bool) -> None:
        """Free what `start` took. Called when all batches have come back; else with ``abandon``.

        ``abandon``: without waiting for batches that still run, which then do not come back.
        """


def is_coroutine_function(handler: Callable[..., Any]) -> bool:
    """Whether a handler is to be awaited; also an object with an async ``__call__``."""
    call = getattr(handler, "__call__", None)  # noqa: B004 - the method is what is asked about
    return inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)


class Handling:
    """The calls of the handler with one batch: all that is the same for functions and coroutines.

    ``first`` is the number of the first call, where a worker before has made some.
    """

    __slots__ = (
        *("_attempts", "_began", "_began_at", "_cost", "_ended_at", "_seconds", "batch", "work"),
    )

    def __init__(self, work: Work, batch: Batch, first: int = 1) -> None:
        self.work = work
        self.batch = batch
        self._attempts = attempts_of(work, batch, first)
        self._seconds = self._cost = 0.0
        self._began = self._began_at = self._ended_at = 0.0

    @property
    def attempt(self) -> int:
        return self._attempts.number

    def begin(self) -> None:
        """A call begins."""
        current.set((self.batch, self.attempt))
        self._began_at, self._began = time.monotonic(), time.perf_counter()

    def end(self) -> None:
        """It has ended, however."""
        self._seconds += time.perf_counter() - self._began
        self._ended_at = time.monotonic()

    def outcome(self, returned: Any) -> Outcome:
        """What the handler returned, matched to the batch's keys. Raises `BadResult`."""
        work, batch = self.work, self.batch
        matched = rows.match(returned, batch, work.scheme, work.results, work.json_columns)
        failed = failures.records(batch, matched.failed, self.attempt) if matched.failed else ()
        table = matched.table
        outcome = Outcome(
            batch,
            done=matched.done,
            completed=matched.completed,
            table=table,
            schema=table.schema if table is not None else None,
            failures=failed,
            **self._times(),
        )
        if work.cost is not None:
            outcome = replace(outcome, cost=self._cost + _cost(work.cost, outcome))
        if table is not None and work.writer is not None:
            try:
                shard = work.writer(table, matched.completed)
            except Exception as error:  # noqa: BLE001 - a full disk is no failure of the items
                return Outcome(batch, fatal=error)
            outcome = replace(outcome, table=None, shard=shard)
        return outcome

    def pause_after(self, error: BaseException) -> float | None:
        """Seconds until the next call, which this is told of; None if there is to be none."""
        return self._attempts.pause_after(error)

    def failed(self, error: BaseException) -> Outcome:
        """The batch has failed with this error."""
        outcome = failed_whole(self.work, self.batch, error, self.attempt)
        outcome = replace(outcome, **self._times())
        if callable(self.work.cost):
            outcome = replace(outcome, cost=self._cost + _cost(self.work.cost, outcome))
        return outcome

    def count_failed_call(self, error: BaseException) -> None:
        """A call has failed, and there will be another: what it has cost is not forgotten."""
        if callable(self.work.cost):
            failed = failed_whole(self.work, self.batch, error, self.attempt)
            self._cost += _cost(self.work.cost, replace(failed, **self._times()))

    def _times(self) -> dict[str, Any]:
        return {"seconds": self._seconds, "began": self._began_at, "ended": self._ended_at}


def execute(
    work: Work,
    batch: Batch,
    stopping: threading.Event | None = None,
    *,
    first: int = 1,
    on_call: Callable[[int], None] | None = None,
) -> Outcome:
    """Call a plain handler with a batch. Never raises: what went wrong is in the outcome.

    ``on_call`` is told the number of each call before it begins, and sees to the timeout.
    """
    handling = Handling(work, batch, first)
    while True:
        call = error = None
        try:
            if work.limits is not None:
                call = work.limits.enter(len(batch), stopping)
                if call is None:
                    return Outcome(batch, dropped=True)
        except Exception as broken:  # noqa: BLE001 - a limit that is not there is no item's fault
            return Outcome(batch, fatal=broken)
        watch = _Overdue(work, batch) if on_call is None and work.timeout is not None else None
        try:
            if on_call is not None:
                on_call(handling.attempt)
            handling.begin()
            try:
                returned = work.handler(batch.items)
            finally:
                handling.end()
            return handling.outcome(returned)
        except Exception as raised:  # noqa: BLE001 - becomes the items' failure
            error = raised
        except BaseException as raised:  # noqa: BLE001 - ends the run, by the engine
            return ended_by(batch, raised)
        finally:
            if watch is not None:
                watch.cancel()
            if call is not None and work.limits is not None:
                work.limits.leave(call, error)
        try:
            pause = handling.pause_after(error)
        except GiveUp as why:
            if stopping is not None:
                stopping.set()  # now, and not when the engine sees it: others are on their way
            return Outcome(batch, dropped=True, why_dropped=str(why))
        except Exception as broken:  # noqa: BLE001 - retry_delay= is anybody's code
            return Outcome(batch, fatal=broken)
        if pause is None:
            return handling.failed(error)
        handling.count_failed_call(error)
        if _wait(pause, stopping):
            return Outcome(batch, dropped=True)


def failed_whole(work: Work, batch: Batch, error: BaseException, attempts: int) -> Outcome:
    """The outcome of a batch that has failed as a whole."""
    now = time.monotonic()
    return Outcome(
        batch,
        failures=failures.whole_batch(batch, error, attempts),
        began=now,
        ended=now,
        raised=type(error).__name__,
        transient=work.retry.is_transient(error),
        outage=looks_like_an_outage(error),
    )


def ended_by(batch: Batch, error: BaseException) -> Outcome:
    """The outcome of a batch whose handler ends the process."""
    if isinstance(error, SystemExit) and not error.code:
        stopped = Interrupted(
            "the handler has called sys.exit() in the middle of the run, of which no exit code "
            "of 0 is to speak; what was committed is safe. Run the same command again to resume"
        )
        stopped.__cause__ = error
        return Outcome(batch, fatal=stopped)
    return Outcome(batch, fatal=error)


class _Overdue(threading.Timer):
    """Says so when a call takes longer than its timeout: no thread can be made to stop."""

    def __init__(self, work: Work, batch: Batch) -> None:
        assert work.timeout is not None
        super().__init__(
            work.timeout,
            log.warning,
            (
                "batch %d is overdue: its call goes on after its timeout of %g s; only a coroutine "
                'handler, or runner="processes", can be stopped in time',
                batch.number,
                work.timeout,
            ),
        )
        self.daemon = True
        self.start()


def attempts_of(work: Work, batch: Batch, first: int = 1) -> Attempts:
    """The calls that there may be with a batch.

    Parts of one that failed after its retries are only looked for the bad item in.
    """
    policy, part = work.retry, batch.part_of
    if part is not None and part.error not in ("", MissingResult.__name__):
        policy = replace(policy, retries=0) if len(batch) > 1 else policy.without(part.error)
    return Attempts(policy, first)


def _cost(cost: str | Callable[[Outcome], float], outcome: Outcome) -> float:
    """What a call has cost; NaN, which the engine answers for, if it cannot be had."""
    try:
        if callable(cost):
            return float(cost(outcome))
        if outcome.table is None:
            return 0.0
        import pyarrow.compute as pc

        return float(pc.sum(outcome.table.column(cost)).as_py() or 0.0)
    except Exception:  # noqa: BLE001 - said with its traceback; rows that are paid for are kept
        log.exception("batch %d: its cost cannot be had by cost=%r", outcome.batch.number, cost)
        return math.nan


def _wait(seconds: float, stopping: threading.Event | None) -> bool:
    """Wait; True if the run is stopping, so that there will be no next attempt."""
    if stopping is not None:
        return stopping.wait(seconds)
    time.sleep(seconds)
    return False
