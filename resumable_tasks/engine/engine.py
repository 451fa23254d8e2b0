"""The only loop: batches out to the runner, outcomes in, one committer.

::

    caller's thread    plan → wait for room → submit            `feeder`
    runner's threads   handler → rows matched to keys → outcome
    committer thread   all outcomes that wait → one commit → events   `committer`

The number of batches in flight (submitted and not yet committed) is bounded, which bounds both
memory and the cost of a crash. `failing` decides what happens to a failed batch; the committer's
thread submits its parts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.signals import ItemsLeft, by_a_signal
from resumable_tasks.checkpoint.form import Checkpoint
from resumable_tasks.engine.bound import Meter
from resumable_tasks.engine.budget import Spending
from resumable_tasks.engine.events import (
    Committed,
    Listeners,
    Progress,
    Progressed,
    RunFinished,
)
from resumable_tasks.engine.flight import Flight, Stop, Tally, begin_to_stop
from resumable_tasks.engine.minutes import each_minute
from resumable_tasks.engine.rules import Rules
from resumable_tasks.errors import CommitStateUnknown
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.plan import Waiting
from resumable_tasks.items.reading import made_ahead
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.bound import BoundBy
from resumable_tasks.runners.outcome import Failure

if TYPE_CHECKING:
    from resumable_tasks.engine.committer import Committer
    from resumable_tasks.runners.handle import Work
    from resumable_tasks.runners.limits import Limits

_ABANDON_SECONDS = 5.0


@frozen
class Ending:
    """How a run ended.

    ``stopped``: what ended the run before all items were handled (a signal, a budget, an outage),
    or None. ``asked``: the stop was requested. ``by_budget``: the budget ended the run.
    ``why_failed``: set if the job itself was at fault. ``completed`` items, ``failures`` and
    ``parked`` items are committed; ``abandoned`` batches were still running. ``spent`` and
    ``cost_each`` (per item) are in the unit of the job's cost. ``retried``: the number of batches
    that needed more than one call with the same items. ``bound_by``: what limited the run's speed,
    or None if it handled nothing. ``again_at``: when to check on the batches that are with a
    service (Unix time in seconds).
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
    bound_by: BoundBy | None
    again_at: float | None = None


def no_response(url: str) -> CommitStateUnknown:
    """Return the error for a checkpoint whose last commit got no answer in time."""
    return CommitStateUnknown(
        f"{url} does not respond. The next run finds out whether the last commit landed; run the "
        "same command again"
    )


class Engine:
    """One run; call ``run`` once.

    ``work`` returns what the workers need. It is called only when there is a batch to handle, so
    that a run with nothing left to do starts no worker and imports no code for handling and
    committing.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        runner: Runner,
        work: Callable[[], Work],
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
        self._rules = rules
        self._spending = spending
        self._flight = Flight(Meter(runner.concurrency, self._at_once))
        self._stop = Stop()
        # Requests to stop that arrived before there was a committer to take them.
        self._requests: list[tuple[str, float]] = []
        self._committer: Committer | None = None
        self._limits: Limits | None = None
        self._began = time.monotonic()

    def run(self, items: Iterable[Any]) -> Ending:
        """Handle and commit the batches of these items until all are done or the run stops.

        Raises any error of the items, of a commit, and any fatal error of a handler. Finished
        batches are committed first, if commits still work. An exception that ends the program
        (such as the ``SystemExit`` of a host's signal handler) is raised after running calls have
        had their grace period.
        """
        self._began = time.monotonic()
        batches = self._flight.meter.reading(self._planned(items))
        first, all_of_them = self._first(batches)
        if first is None and not (all_of_them and self._checkpoint.submissions):
            return self._ending(Tally(), all_of_them, [])
        with each_minute(lambda: self.tell(Progressed)):
            return self._work_through(batches if first is None else chain([first], batches))

    def _planned(self, items: Iterable[Any]) -> Iterator[Batch | Waiting]:
        planner = self._checkpoint.planner
        batches: Iterable[Batch | Waiting] = planner.batches(items)
        if made_ahead(items):
            batches = list(batches)
            planner.check_bad()
        yield from batches

    def _first(self, batches: Iterable[Batch | Waiting]) -> tuple[Batch | None, bool]:
        """Return the first batch (None if there is none, or the run stops), and whether all
        items were read.
        """
        try:
            for batch in batches:
                if self.stopping:
                    break
                if isinstance(batch, Batch):
                    return batch, False
        except ItemsLeft:  # because of a signal, which has already requested the stop
            self._begin_to_stop()
            return None, False
        except BaseException as error:  # raised by the items, or by a host that ends the program
            if not isinstance(error, Exception) or by_a_signal(error):
                self.request_stop(type(error).__name__)
            self._begin_to_stop()
            raise
        self._begin_to_stop()
        return None, not (self._stop.begun or self._checkpoint.planner.cut_short)

    def _begin_to_stop(self) -> None:
        """Act on the stop requests so far, in the caller's thread, while no batch runs."""
        over = self._spending.over
        if over is not None and not self._requests:
            self._requests.append((self._stop.note_budget(over), self._rules.grace_seconds))
        for reason, grace_seconds in self._requests:
            begin_to_stop(self._stop, reason, grace_seconds, 0, self.tell)

    def _work_through(self, batches: Iterable[Batch | Waiting]) -> Ending:
        """Handle and commit these batches and those that earlier runs left with a service."""
        from resumable_tasks.engine.committer import Committer
        from resumable_tasks.engine.feeder import Feeder
        from resumable_tasks.engine.window import Window

        checkpoint, runner, work = self._checkpoint, self._runner, self._measured_work()
        window = Window(runner, checkpoint.found.write_seconds)
        committer = Committer(
            checkpoint,
            runner.submit,
            work,
            self._flight,
            self._stop,
            self._spending,
            window,
            self._rules,
            self.tell,
        )
        feeder = Feeder(
            checkpoint.planner,
            runner,
            self._flight,
            self._stop,
            self._spending,
            window,
            committer.failing.may_begin,
            committer.wake,
            None if work.timeout is None else work.timeout + self._rules.grace_seconds,
        )
        self._committer = committer
        for request in self._requests:
            committer.request_stop(*request)
        runner.keep(committer.record, committer.rests, checkpoint.url)
        runner.start(work, committer.take, self._stop.event)
        committer.start()

        drain = partial(feeder.drain, lambda: committer.broken is not None)
        abandoned: list[Batch] = []
        drained = all_of_them = False
        try:
            all_of_them = feeder.feed(self._resumed(feeder.resume, batches))
            drained = drain()
        except ItemsLeft:  # because of a signal, which has already requested the stop
            drained = drain()
        except BaseException as error:  # raised by the items, or by a host that ends the program
            if not isinstance(error, Exception) or by_a_signal(error):
                self.request_stop(type(error).__name__)
            drained = drain()
            raise
        finally:
            abandoned = [] if drained else self._unfinished()
            self._stop.event.set()
            runner.close(abandon=not drained)
            answered = committer.join(None if drained else _ABANDON_SECONDS)
        if not answered:
            raise no_response(checkpoint.url)
        ended_by = committer.broken or committer.tally.fatal
        if ended_by is not None:
            raise ended_by
        return self._ending(committer.tally, all_of_them, abandoned)

    def _resumed(
        self, resume: Callable[[Iterable[Batch]], None], batches: Iterable[Batch | Waiting]
    ) -> Iterator[Batch | Waiting]:
        """Yield these batches after resuming the submissions that earlier runs left behind."""
        planner, submissions = self._checkpoint.planner, self._checkpoint.submissions
        if not submissions:
            yield from batches
            return
        from resumable_tasks.engine.withservice import ToSendAgain, left_behind

        apart = [each for each in submissions if self._runner.needs_items(each)]
        resume(left_behind(planner, each) for each in submissions if each not in apart)
        to_send = ToSendAgain(planner, apart)
        for batch in batches:
            resume(to_send.whole())
            yield batch
        resume(to_send.whole())
        resume(to_send.others())

    def _measured_work(self) -> Work:
        work = replace(self._work(), trails=self._flight.meter.trails)
        self._limits = work.limits
        return work

    def _unfinished(self) -> list[Batch]:
        """Return the batches being handled, or all in flight if the runner does not report them."""
        out = dict(self._flight.out)
        return [out[number] for number in list(self._runner.calls) if number in out] or [
            *out.values()
        ]

    def _ending(self, tally: Tally, all_of_them: bool, abandoned: list[Batch]) -> Ending:
        stop = self._stop
        # If nothing is left to do, a used-up budget has not ended the run.
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
            self._flight.meter.over_the_run(),
            self._committer.at_rest.again_at if self._committer is not None else None,
        )

    def _at_once(self) -> str:
        """Describe what limits the number of concurrent calls."""
        limits = self._limits.at_once if self._limits is not None else ""
        return limits or self._runner.at_work

    @property
    def retried(self) -> int:
        """The number of batches so far that needed more than one call with the same items."""
        return len(self._committer.failing.retried) if self._committer is not None else 0

    def tell_end(self, how: str, result: object) -> None:
        """Tell the listeners how this run ended, and its result."""
        progress = replace(self.progress(), bound_by=self._flight.meter.over_the_run())
        self.tell(RunFinished, how=how, progress=progress, retried=self.retried, result=result)

    @property
    def stopping(self) -> bool:
        """True once the run begins no more batches."""
        if self._stop.begun or self._committer is not None:
            return self._stop.begun
        return bool(self._requests) or self._spending.over is not None

    def request_stop(self, reason: str, at_once: bool = False) -> None:
        """Ask the run to stop after running batches have finished, or ``at_once`` without them.

        Safe in a signal handler and in any thread.
        """
        grace_seconds = 0.0 if at_once else self._rules.grace_seconds
        # Set the deadline here too: a commit that waits (for a lock, say) holds up the queue.
        self._stop.ask(grace_seconds)
        # Append first: another thread reads the list once it has made the committer. A request
        # that arrives in between is made twice, which is harmless.
        self._requests.append((reason, grace_seconds))
        if self._committer is not None:
            self._committer.request_stop(reason, grace_seconds)

    def progress(self) -> Progress:
        """The progress of the run."""
        tally = self._committer.tally if self._committer is not None else Tally()
        planner = self._checkpoint.planner
        return Progress(
            tally.completed,
            len(tally.failures) + len(planner.bad),
            planner.skipped,
            self._expected,
            time.monotonic() - self._began,
            len(tally.parked),
            self._flight.meter.lately(),
        )

    def tell(self, kind: type[Any], **fields: Any) -> None:
        """Send an event of this run to the listeners."""
        if kind in (Committed, Progressed):
            fields["progress"] = self.progress()
        checkpoint = self._checkpoint
        self._listeners.tell(
            kind(job=checkpoint.job, checkpoint=checkpoint.url, run=checkpoint.run, **fields)
        )
