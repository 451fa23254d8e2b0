"""What task runs in this process and in others have in common: names, sizes, states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import Task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.states import Completed, Failed

from resumable_tasks.base import log
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.outcome import Failure, Outcome

# The number of task runs doubles the time that each lasts, so many times on the way to the limit.
_DOUBLINGS = 8


@dataclass(frozen=True, slots=True)
class TaskRuns:
    """How the batches of a job become task runs.

    A task run costs Prefect about 10 ms here and 40 ms in its server, whatever is in it (measured
    with 3.8). So one handles batches for ``seconds`` at least, several if they are small; and the
    more task runs a flow run has had, the longer each lasts, so that ``limit`` of them are enough
    for any number of batches.
    """

    job: str
    tags: Sequence[str]
    limit: int
    seconds: float

    def as_task(self, fn: Callable[..., Any], name: str) -> Task[Any, Any]:
        """The function as a task of one task run, whose name this is.

        Prefect neither caches nor keeps what it returns: the checkpoint decides what is done.
        """
        return Task(
            fn,
            name=self.job,
            task_run_name=name,
            tags=list(self.tags),
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=0,
            log_prints=False,
        )

    def seconds_of(self, number: int) -> float:
        """How long the task run of this number (from 0) goes on taking batches."""
        doublings = number * _DOUBLINGS // max(self.limit, 1)
        return float(self.seconds * 2.0 ** min(doublings, 60))

    def name(self, batches: Sequence[Batch]) -> str:
        """``classify 00042 (50 items)``, ``classify 00042-00057 (16 batches, 800 items)``"""
        items = sum(map(len, batches))
        return self.name_of(batches[0].number, batches[-1].number, len(batches), items)

    def name_of(self, first: int, last: int, batches: int, items: int) -> str:
        """The same, by the numbers of the first and the last batch."""
        counted = f"{items:,} item{'s' if items != 1 else ''}"
        if batches == 1:
            return f"{self.job} {first:05} ({counted})"
        return f"{self.job} {first:05}-{last:05} ({batches:,} batches, {counted})"


@dataclass(slots=True)
class Tally:
    """What became of the batches of one task run, for those who look at it."""

    batches: int = 0
    first: int = -1
    last: int = -1
    items: int = 0
    completed: int = 0
    failures: list[Failure] = field(default_factory=list)
    failed: int = 0
    fatal: BaseException | None = None

    def add(self, outcome: Outcome) -> None:
        number = outcome.batch.number
        self.first = number if self.first < 0 else min(self.first, number)
        self.last = max(self.last, number)
        self.batches += 1
        self.items += len(outcome.batch)
        self.completed += outcome.completed
        self.failed += len(outcome.failures)
        self.fatal = self.fatal or outcome.fatal
        if outcome.failures:
            # One of each batch: where a whole batch fails, it fails for one reason.
            self.failures.append(outcome.failures[0])
            log.error(
                "batch %05d: %d of %d items failed; the first:\n%s",
                number,
                len(outcome.failures),
                len(outcome.batch),
                outcome.failures[0].traceback or describe(outcome.failures[0]),
            )

    def state(self) -> State[None]:
        """The task run's last state: failed if any item has, with the cause."""
        done = f"{self.completed:,} items done"
        if self.batches > 1:
            done += f" in {self.batches:,} batches"
        if self.fatal is not None:
            return Failed(message=f"{type(self.fatal).__name__}: {self.fatal}")
        if self.failures:
            more = f" (and {self.failed - 1:,} more)" if self.failed > 1 else ""
            return Failed(message=f"{describe(self.failures[0])}{more}; {done}")
        return Completed(message=done)


def describe(failure: Failure) -> str:
    return f"{failure.error}: {failure.message} (key {failure.key!r})"


def rename(name: str) -> None:
    """Give the task run that this is called in another name.

    It is told with the next state, and so costs no call.
    """
    context = TaskRunContext.get()
    if context is not None:
        context.task_run.name = name
