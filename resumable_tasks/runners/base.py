"""The contract of a runner."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.stopping import Stopping
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.submission import Submission, Transition
from resumable_tasks.runners.outcome import Outcome

if TYPE_CHECKING:
    from resumable_tasks.runners.handle import Work


class Runner(ABC):
    """Executes batches, up to ``concurrency`` at once.

    Every submitted batch comes back exactly once, by ``done``, from any thread, unless the
    runner was closed with ``abandon=True``. Once ``stopping`` is set no batch is started any
    more: those that wait come back as dropped.
    """

    remote = False
    """Whether workers are other processes, and write their own shards."""
    needs_files = False
    """Whether workers need a place for their files that all machines share."""

    submits = False
    """Whether batches are handed to a service, which has them for hours, also between two runs."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        # The calls that go on here: when each began, by the number of its batch.
        self.calls: dict[int, float] = {}

    @property
    def window(self) -> int:
        """The least number of batches that may be in flight, submitted and not yet committed."""
        return 2 * self.concurrency

    @property
    def at_work(self) -> str:
        """How many batches are at work at once, in words."""
        return f"concurrency={self.concurrency}"

    def keep(  # noqa: B027 - most submit nothing
        self,
        record: Callable[[Transition], None],
        rests: Callable[[Batch, float, str], None],
        place: str,
    ) -> None:
        """Be told, before `start`, what to tell of batches that are with a service.

        ``record`` makes a change of a submission's state durable, or raises. ``rests``: a batch
        need not be waited for by this run, when to look again (seconds since the epoch of Unix),
        and why, where it is not that the service is at work. ``place`` is the checkpoint's, for
        messages.
        """

    def needs_items(self, submission: Submission) -> bool:
        """True if a submission of an earlier run is handed to `submit` best with its items."""
        return False

    def price(self, batch: Batch) -> float | None:
        """The expected cost of a batch, once the runner has started; None if nobody knows it."""
        return None

    @abstractmethod
    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
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
    """True if a handler must be awaited; also for an object with an async ``__call__``.

    An async generator is awaited for each of its rows.
    """
    call = getattr(handler, "__call__", None)  # noqa: B004 - the method is what is asked about
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (handler, call)
    )
