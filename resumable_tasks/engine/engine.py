"""The only loop: batches out to the runner, outcomes in, one committer.

::

    caller's thread    plan → wait for room → submit            `feeder`
    runner's threads   handler → rows matched to keys → outcome
    committer thread   all outcomes that wait → one commit → events   `committer`

How many batches may be out at once (submitted and not yet committed) is bounded, which bounds both
memory and what a crash costs. What becomes of a batch that failed is decided by `failing`; its
parts go out again from the committer's thread.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from resumable_tasks.base.signals import ItemsLeft, by_a_signal
from resumable_tasks.checkpoint.form import Checkpoint
from resumable_tasks.engine.budget import Spending
from resumable_tasks.engine.committer import Committer, Rules
from resumable_tasks.engine.events import Committed, Listeners, Progress, RunFinished
from resumable_tasks.engine.feeder import Feeder
from resumable_tasks.engine.flight import Flight, Stop
from resumable_tasks.engine.window import Window
from resumable_tasks.errors import CommitStateUnknown
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.outcome import Failure

_ABANDON_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a run: how it came about.

    ``stopped`` says what has ended it before its items, if anything has: a signal, a budget, an
    outage; ``asked`` whether somebody asked for it, ``by_budget`` whether it was the budget.
    ``why_failed`` is set where the job itself was at fault. ``completed`` items, ``failures`` and
    what is ``parked`` are committed; ``abandoned`` batches were still running. ``spent`` and
    ``cost_each`` (an item) are in the unit of the job's cost. ``retried`` batches needed more than
    one call with the same items.
    """

    stopped: str | None
    asked: bool
    by_budget: bool
    why_failed: str | None
    completed: int
    failures: tuple[Failure, ...]
    parked: tuple[Failure, ...]
    abandoned: tuple[Batch, ...]
    spent: float
    cost_each: float | None
    seconds: float
    retried: int


def no_response(url: str) -> CommitStateUnknown:
    """The error for a checkpoint whose last commit is not waited for any longer."""
    return CommitStateUnknown(
        f"{url} does not respond. The next run finds out whether the last commit landed; run the "
        "same command again"
    )


class Engine:
    """One run. ``run`` is called once."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        runner: Runner,
        work: Work,
        listeners: Listeners,
        *,
        expected: int | None,
        rules: Rules,
        spending: Spending,
    ) -> None:
        self._checkpoint = checkpoint
        self._runner = runner
        self._work = work
        self._listeners = listeners
        self._expected = expected
        self._grace_seconds = rules.grace_seconds
        self._spending = spending
        self._flight = Flight()
        self._stop = Stop()
        window = Window(runner, checkpoint.found.write_seconds)
        self._committer = Committer(
            checkpoint,
            runner.submit,
            work,
            self._flight,
            self._stop,
            spending,
            window,
            rules,
            self.tell,
        )
        self._feeder = Feeder(
            checkpoint.planner,
            runner,
            self._flight,
            self._stop,
            spending,
            window,
            self._committer.failing.may_begin,
            self._committer.wake,
            None if work.timeout is None else work.timeout + rules.grace_seconds,
        )
        self._began = time.monotonic()

    def run(self, items: Iterable[Any]) -> Ending:
        """Handle and commit all batches of these items, or as many as there is time for.

        Raises what the items raise, what a commit raises, and what is fatal in a handler; all
        that had finished by then is committed first, as far as it can be. What ends the program,
        such as a host's ``SystemExit`` at its signal, is raised once running calls have had their
        grace.
        """
        self._began = time.monotonic()
        self._runner.start(self._work, self._committer.take, self._stop.event)
        self._committer.start()
        abandoned: list[Batch] = []
        drained = all_of_them = False
        try:
            all_of_them = self._feeder.feed(items)
            drained = self._drain()
        except ItemsLeft:  # by a signal, which the run has been told of
            drained = self._drain()
        except BaseException as error:  # the items' own, or a host that ends the program
            if not isinstance(error, Exception) or by_a_signal(error):
                self.request_stop(type(error).__name__)
            drained = self._drain()
            raise
        finally:
            abandoned = [] if drained else self._unfinished()
            self._stop.event.set()
            self._runner.close(abandon=not drained)
            answered = self._committer.join(None if drained else _ABANDON_SECONDS)
        if not answered:
            raise no_response(self._checkpoint.url)
        ended_by = self._committer.broken or self._committer.tally.fatal
        if ended_by is not None:
            raise ended_by
        return self._ending(all_of_them, abandoned)

    def _drain(self) -> bool:
        return self._feeder.drain(lambda: self._committer.broken is not None)

    def _unfinished(self) -> list[Batch]:
        """The batches that are being handled, as far as the runner tells."""
        out = dict(self._flight.out)
        return [out[number] for number in list(self._runner.calls) if number in out] or [
            *out.values()
        ]

    def _ending(self, all_of_them: bool, abandoned: list[Batch]) -> Ending:
        tally, stop = self._committer.tally, self._stop
        # A budget that is used up has ended nothing where nothing is left.
        complete = all_of_them and not tally.left and not abandoned and not stop.asked
        return Ending(
            None if complete else stop.why,
            stop.asked,
            stop.by_budget,
            tally.why_failed,
            tally.completed,
            tuple(tally.failures),
            tuple(tally.parked),
            tuple(abandoned),
            self._spending.spent,
            self._spending.cost_each,
            time.monotonic() - self._began,
            self.retried,
        )

    @property
    def retried(self) -> int:
        """The number of batches that needed more than one call with the same items, so far."""
        return len(self._committer.failing.retried)

    def tell_end(self, how: str) -> None:
        """Tell the listeners that this run has ended, and how."""
        self.tell(RunFinished, how=how, progress=self.progress(), retried=self.retried)

    @property
    def stopping(self) -> bool:
        """True once the run takes no more items."""
        return self._stop.begun

    def request_stop(self, reason: str, at_once: bool = False) -> None:
        """Ask the run to stop: soon, or at once, which leaves running batches alone.

        Safe in a signal handler and in any thread.
        """
        grace_seconds = 0.0 if at_once else self._grace_seconds
        # Here too: a commit that waits for others, such as for a lock, keeps the queue waiting.
        self._stop.ask(grace_seconds)
        self._committer.request_stop(reason, grace_seconds)

    def progress(self) -> Progress:
        """The progress of the run."""
        tally = self._committer.tally
        return Progress(
            tally.completed,
            len(tally.failures),
            self._checkpoint.planner.skipped,
            self._expected,
            time.monotonic() - self._began,
            len(tally.parked),
        )

    def tell(self, kind: type[Any], **fields: Any) -> None:
        """Tell the listeners an event of this run."""
        if kind is Committed:
            fields["progress"] = self.progress()
        checkpoint = self._checkpoint
        self._listeners.tell(
            kind(job=checkpoint.job, checkpoint=checkpoint.url, run=checkpoint.run, **fields)
        )
