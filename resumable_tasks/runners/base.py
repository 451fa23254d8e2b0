"""The contract of a runner, and the handling of one batch, which is the same in all of them."""

from __future__ import annotations

import inspect
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from resumable_tasks import failures, log, rows
from resumable_tasks.errors import UsageError
from resumable_tasks.failures import RetryPolicy
from resumable_tasks.keys import KeyScheme
from resumable_tasks.model import Batch, CurrentBatch, Outcome, ResultsMode
from resumable_tasks.rows import Matched
from resumable_tasks.shards import ShardWriter

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
    to send back.
    """

    handler: Callable[[Any], Any]
    scheme: KeyScheme
    results: ResultsMode
    retry: RetryPolicy
    timeout: float | None = None
    writer: ShardWriter | None = None


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


def execute(work: Work, batch: Batch, stopping: threading.Event | None = None) -> Outcome:
    """Call a plain handler with a batch. Never raises: what went wrong is in the outcome."""
    began = time.perf_counter()
    for attempt in range(1, work.retry.retries + 2):
        try:
            current.set((batch, attempt))
            returned = work.handler(batch.items)
            seconds = time.perf_counter() - began
            matched = rows.match(returned, batch, work.scheme, work.results)
        except Exception as error:  # noqa: BLE001 - becomes the items' failure
            pause = work.retry.pause(attempt, error)
            if pause is None or _wait(pause, stopping):
                return Outcome(batch, failures=failures.whole_batch(batch, error, attempt))
        except BaseException as error:  # noqa: BLE001 - ends the run, by the engine
            return Outcome(batch, fatal=error)
        else:
            if work.timeout is not None and seconds > work.timeout:
                # What has been paid for is kept; but no thread can be made to stop.
                log.warning(
                    "batch %d took %.1f s, longer than its timeout of %g s: only a coroutine "
                    "handler can be stopped in time",
                    batch.number,
                    seconds,
                    work.timeout,
                )
            return outcome_of(work, batch, matched, attempt, seconds)
    raise AssertionError("the last attempt has no pause after it")


def _wait(seconds: float, stopping: threading.Event | None) -> bool:
    """Wait; True if the run is stopping, so that there will be no next attempt."""
    if stopping is not None:
        return stopping.wait(seconds)
    time.sleep(seconds)
    return False


def outcome_of(
    work: Work, batch: Batch, matched: Matched, attempts: int, seconds: float
) -> Outcome:
    """The outcome of a handled batch, with its shard written if that is the worker's part."""
    failed = failures.records(batch, matched.failed, attempts) if matched.failed else ()
    table, shard = matched.table, None
    schema = table.schema if table is not None else None
    if table is not None and work.writer is not None:
        try:
            shard = work.writer(table, matched.completed)
        except Exception as error:  # noqa: BLE001 - a full disk is no failure of the items
            return Outcome(batch, fatal=error)
        table = None
    return Outcome(batch, matched.done, matched.completed, table, shard, schema, failed, seconds)
