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

    ``done`` is called exactly once for every submitted batch, from any thread, unless the runner
    was closed with ``abandon=True``. Once ``stopping`` is set, no more batches are started; waiting
    ones are returned as dropped.
    """

    remote = False
    """True if workers are other processes, which write their own shards."""
    needs_files = False
    """True if workers need a directory that all machines share."""

    submits = False
    """True if batches are submitted to a service, which may keep them for hours, across runs."""

    def __init__(self, concurrency: int) -> None:
        self.concurrency = concurrency
        # The start times of the calls that run in this process, by the number of the batch.
        self.calls: dict[int, float] = {}

    @property
    def window(self) -> int:
        """The least size of the window (batches submitted and not yet committed)."""
        return 2 * self.concurrency

    @property
    def at_work(self) -> str:
        """How many batches are handled at once, as text."""
        return f"concurrency={self.concurrency}"

    def keep(  # noqa: B027 - most runners submit nothing
        self,
        record: Callable[[Transition], None],
        rests: Callable[[Batch, float, str], None],
        place: str,
    ) -> None:
        """Receive, before `start`, the callbacks for batches that are with a service.

        ``record`` makes a change of a submission's state durable, or raises. ``rests`` reports that
        this run need not wait for a batch: the batch, when to look again (Unix time), and the
        reason, "" if the service is just at work. ``place``: the checkpoint's URL, for messages.
        """

    def needs_items(self, submission: Submission) -> bool:
        """True if a submission of an earlier run should be passed to `submit` with its items."""
        return False

    def price(self, batch: Batch) -> float | None:
        """Return the expected cost of a batch, or None if unknown. Call it after `start`."""
        return None

    @abstractmethod
    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        """Get ready. Called once, before the first `submit`."""

    @abstractmethod
    def submit(self, batch: Batch) -> None:
        """Start executing this batch; return at once."""

    @abstractmethod
    def close(self, *, abandon: bool) -> None:
        """Free the resources of `start`. Called when all batches have outcomes, or to abandon them.

        ``abandon``: do not wait for running batches; they get no outcome.
        """


def is_coroutine_function(handler: Callable[..., Any]) -> bool:
    """True if a handler must be awaited; also for an object with an async ``__call__``.

    An async generator is awaited for each of its rows.
    """
    call = getattr(handler, "__call__", None)  # noqa: B004 - the method itself is inspected
    return any(
        inspect.iscoroutinefunction(each) or inspect.isasyncgenfunction(each)
        for each in (handler, call)
    )
