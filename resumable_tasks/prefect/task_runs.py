"""The common parts of task runs in this process and in others: names, sizes, states."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prefect import Task, states
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.logging import get_run_logger

from resumable_tasks.base import log
from resumable_tasks.base.text import count
from resumable_tasks.engine.isolation import as_two, final_failures
from resumable_tasks.items.batch import Batch, Cause
from resumable_tasks.items.keys import shown
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Failure, Fatal, Outcome

# How often the duration of task runs doubles on the way to their maximum number.
_DOUBLINGS = 8
_PLACES_KEPT = 10_000


class Causes:
    """Logs the traceback of each distinct cause of failures once in a run.

    ``where`` maps the id of a failed batch to that of its task run, for a limited number of them.
    """

    def __init__(self) -> None:
        self.where: dict[str, str] = {}
        self._known: set[tuple[str, ...]] = set()

    def tell(self, outcome: Outcome, task_run: object) -> None:
        """Log the failures and their tracebacks, unless the same cause was logged before."""
        if not isinstance(outcome, (Done, Failed)):
            return
        if outcome.failures and len(self.where) < _PLACES_KEPT:
            self.where[outcome.batch.id] = str(task_run)
        for failure in outcome.failures:
            # Compares the frames and not the message, which may name the item.
            frames = [line for line in failure.traceback.splitlines() if line.startswith("  File ")]
            cause = (failure.error, *frames)
            if frames and cause not in self._known:
                self._known.add(cause)
                log.error(
                    "batch %05d: a call failed; further failures of this kind are logged in one "
                    "line:\n%s",
                    outcome.batch.number,
                    failure.traceback,
                )


@dataclass(frozen=True, slots=True)
class TaskRuns:
    """The rules by which a job's batches become task runs.

    A task run costs Prefect about 10 ms here and 40 ms in its server, whatever its content
    (measured with 3.8). So a task run handles batches for at least ``seconds``, several if they are
    small. The more task runs a flow run has had, the longer the next ones last, so that about
    ``limit`` of them are enough for any number of batches.
    """

    job: str
    tags: Sequence[str]
    limit: int
    seconds: float
    causes: Causes = field(default_factory=Causes)

    def as_task(self, fn: Callable[..., Any], name: str) -> Task[Any, Any]:
        """The function as a Prefect task for one task run of this name.

        Without caching or persisting its result: the checkpoint decides what is done.
        """
        return Task(
            fn,
            name=self.job,
            task_run_name=name,
            tags=list(self.tags),
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=0,
            log_prints=None,  # the flow decides
        )

    def seconds_of(self, number: int) -> float:
        """The seconds for which task run ``number`` (from 0) takes batches."""
        doublings = number * _DOUBLINGS // max(self.limit, 1)
        return float(self.seconds * 2.0 ** min(doublings, 60))

    def name(self, batches: Sequence[Batch]) -> str:
        """``classify 00042 (50 items)``, ``classify 00042-00057 (16 batches, 800 items)``"""
        items = sum(map(len, batches))
        return self.name_of(batches[0].number, batches[-1].number, len(batches), items)

    def name_of(self, first: int, last: int, batches: int, items: int) -> str:
        """`name`, given the numbers of the first and the last batch."""
        counted = count(items, "item")
        if batches == 1:
            return f"{self.job} {first:05} ({counted})"
        return f"{self.job} {first:05}-{last:05} ({batches:,} batches, {counted})"


@dataclass(slots=True)
class Tally:
    """The outcome of one task run's batches, as its state shows it.

    ``isolate``: a failed batch is handled again in parts, so it is no failure yet. ``divided``
    counts those batches, and ``down`` is true if any of them failed as if the service were down.
    ``parked`` items have a result that is kept and does not fit the table.
    """

    isolate: bool
    batches: int = 0
    first: int = -1
    last: int = -1
    items: int = 0
    completed: int = 0
    failure: Failure | None = None
    failed: int = 0
    parked: int = 0
    divided: int = 0
    down: bool = False
    fatal: BaseException | None = None

    def add(self, outcome: Outcome) -> None:
        number = outcome.batch.number
        self.first = number if self.first < 0 else min(self.first, number)
        self.last = max(self.last, number)
        self.batches += 1
        self.items += len(outcome.batch)
        match outcome:
            case Fatal(error=error):
                self.fatal = self.fatal or error
            case Done() | Failed():
                for each in as_two(outcome):
                    self._add_failures(each)
                if isinstance(outcome, Done):
                    self.completed += outcome.completed
            case Dropped():
                pass

    def _add_failures(self, outcome: Done | Failed) -> None:
        ended = final_failures(outcome, isolate=self.isolate)
        final = [failure for failure in ended if not failure.parked]
        self.parked += len(ended) - len(final)
        if final:
            self.failed += len(final)
            self.failure = self.failure or final[0]
            log.error(
                "batch %05d: %d of %d items failed; the first: %s",
                *(outcome.batch.number, len(final), len(outcome.batch), describe(final[0])),
            )
        elif isinstance(outcome, Failed) and outcome.error.cause is not Cause.STOPPED:
            self.divided += 1
            self.down = self.down or outcome.error.outage
            log.info(
                "batch %05d did not succeed as a whole and will be handled again: %s",
                *(outcome.batch.number, describe(outcome.failures[0])),
            )

    def state(self) -> State[None]:
        """The task run's final state: Failed, with the cause, if any item failed."""
        text = f"{count(self.completed, 'item')} done"
        if self.batches > 1:
            text += f" in {self.batches:,} batches"
        if self.parked:
            text += f", {self.parked:,} parked: kept, but not in the table"
        if self.divided:
            text += f"; {self.divided:,} did not succeed as a whole and will be handled again"
        if self.fatal is not None:
            return states.Failed(message=f"{type(self.fatal).__name__}: {self.fatal}")
        if self.failure is not None:
            return states.Failed(
                message=f"{self.failed:,} failed: {describe(self.failure)}; {text}"
            )
        if self.divided:
            # No item has failed yet, but the UI should show that a service may be down.
            state = states.Failed if self.down else states.Completed
            return state(name="Held" if self.down else "Divided", message=f"0 failed; {text}")
        return states.Completed(message=text)


def describe(failure: Failure) -> str:
    return f"{failure.error}: {failure.message} (key {shown(failure.key)})"


def task_run_id() -> str:
    """The id of the current task run; empty outside of one."""
    context = TaskRunContext.get()
    return str(context.task_run.id) if context is not None else ""


class _Untraced(logging.Filter):
    """Drops the empty traceback that Prefect logs for a task run that returns a failed state."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info == (None, None, None):
            record.exc_info = None
        return True


_untraced = _Untraced()


def begin() -> None:
    """Begin a task run of ours: the library logs to the logger of this run."""
    logging.getLogger("prefect.task_runs").addFilter(_untraced)
    log.destination.set(get_run_logger())


def rename(name: str) -> None:
    """Rename the current task run.

    Costs no request, because the name is sent with the next state.
    """
    context = TaskRunContext.get()
    if context is not None:
        context.task_run.name = name
