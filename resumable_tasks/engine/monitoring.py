"""OpenTelemetry: spans and metrics of a run, if the program has set a provider.

One observer is attached in two places: it listens to the run's events, and it wraps the runner, to
see batches and outcomes. All metrics, and the spans of run, batch and commit, are made here, in the
driver. The spans of calls are made where the calls are (`resumable_tasks.runners.tracing`). Without
a provider nothing is imported or attached. ``docs/monitoring.md`` lists all names.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.stopping import Stopping
from resumable_tasks.base.text import without_secrets
from resumable_tasks.engine.events import (
    Committed,
    Event,
    Listener,
    Progressed,
    RunFinished,
    RunStarted,
)
from resumable_tasks.engine.isolation import was_again
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.groups import name_of
from resumable_tasks.runners.outcome import Done, Failed, Failure, Fatal, Outcome
from resumable_tasks.runners.tracing import BATCH, ERROR_TYPE, JOB, SCOPE, failed

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Observation
    from opentelemetry.trace import Span

    from resumable_tasks.runners.bound import BoundBy
    from resumable_tasks.runners.handle import Work
    from resumable_tasks.runners.limits import Limits

OUTCOME = f"{SCOPE}.outcome"
LIMIT = f"{SCOPE}.limit"
BOUND_BY, PLACE = f"{SCOPE}.bound_by", f"{SCOPE}.place"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800)
_RUN_SECONDS = (1, 10, 60, 300, 1_800, 3_600, 4 * 3_600, 12 * 3_600, 24 * 3_600)
_BYTES = tuple(1_000 * 4**power for power in range(10))


def observed(job: str, runner: Runner) -> tuple[Runner, tuple[Listener, ...]]:
    """Return the observed runner and its listeners; without a provider, the same runner and ()."""
    observer = _observer(job)
    if observer is None:
        return runner, ()
    return _ObservedRunner(runner, observer), (observer,)


def tell_refused(job: str, error: BaseException) -> None:
    """Report a run that this error ended before its checkpoint was open."""
    if (observer := _observer(job)) is not None:
        observer.refused(error)


def _observer(job: str) -> Observer | None:
    try:
        return Observer(job) if _is_set("trace", "tracer") or _is_set("metrics", "meter") else None
    except Exception:  # noqa: BLE001 - logged; a run goes on without its monitor
        log.exception("%s: this run is not reported to OpenTelemetry", job)
        return None


def _is_set(api: str, what: str) -> bool:
    """True if the program has set a provider, which requires that it imported this API."""
    module = sys.modules.get(f"opentelemetry.{api}")
    if module is None:
        return False
    provider = getattr(module, f"get_{what}_provider")()
    # The default providers of the API itself do nothing.
    return not type(provider).__module__.startswith(module.__name__)


class _ObservedRunner(Runner):
    """A runner whose batches and outcomes the observer sees."""

    def __init__(self, runner: Runner, observer: Observer) -> None:
        super().__init__(runner.concurrency)
        self._runner, self._observer = runner, observer
        self.calls = runner.calls
        self.remote, self.needs_files = runner.remote, runner.needs_files
        self.submits, self.keep = runner.submits, runner.keep  # type: ignore[method-assign]

    @property
    def window(self) -> int:
        return self._runner.window

    @property
    def at_work(self) -> str:
        return self._runner.at_work

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: Stopping) -> None:
        observer = self._observer
        observer.limits = work.limits

        def came(outcome: Outcome) -> None:
            observer.came(outcome)
            done(outcome)

        self._runner.start(replace(work, traced=observer.job), came, stopping)

    def submit(self, batch: Batch) -> None:
        self._runner.submit(self._observer.goes(batch))

    def close(self, *, abandon: bool) -> None:
        self._runner.close(abandon=abandon)


class Observer:
    """Makes the spans and the metrics of one run, in any of its threads.

    A provider that raises is reported once, with its traceback, and not called again.
    """

    def __init__(self, job: str) -> None:
        from opentelemetry import context, trace

        self.job = job
        self.limits: Limits | None = None
        self.bound_by: BoundBy | None = None
        self._tracer = trace.get_tracer(SCOPE)
        self._meters = _Meters()
        self._attributes: dict[str, Any] = {JOB: job}
        self._context = context.get_current()
        self._run: Span | None = None
        self._leave: Callable[[], None] = lambda: None
        # The batches in flight, by number: the span and the number of items of each.
        self._out: dict[int, tuple[Span, int]] = {}
        self._skipped = self._failed = 0
        self._broken = False

    def __call__(self, event: Event) -> None:
        """Record an event."""
        match event:
            case RunStarted():
                self._try(self._started, event)
            case Committed():
                self.bound_by = event.progress.bound_by or self.bound_by
                self._try(self._committed, event)
            case Progressed():
                self.bound_by = event.progress.bound_by or self.bound_by
            case RunFinished():
                self._try(self._finished, event)
                self._leave()

    def goes(self, batch: Batch) -> Batch:
        """Record a batch that is submitted; return it with the headers of its span, if any."""
        return self._try(self._goes, batch) or batch

    def came(self, outcome: Outcome) -> None:
        """Record the outcome of a batch."""
        self._try(self._came, outcome)

    def refused(self, error: BaseException) -> None:
        """Record the error that ended the run before it began."""
        self._try(self._refused, error)

    def _try(self, do: Callable[[Any], Any], what: Any) -> Any:
        if self._broken:
            return None
        try:
            return do(what)
        except Exception:  # noqa: BLE001 - logged; a broken monitor must not end a night's run
            self._broken = True
            log.exception(
                "%s: this run is no longer reported to OpenTelemetry; it continues", self.job
            )
            return None

    def _started(self, event: RunStarted) -> None:
        from opentelemetry import context, trace

        self._run = self._span("run")
        self._run.set_attribute(f"{SCOPE}.run.id", event.run)
        self._run.set_attribute(f"{SCOPE}.checkpoint", without_secrets(event.checkpoint))
        self._run.set_attribute(f"{SCOPE}.epoch", event.epoch)
        self._context = trace.set_span_in_context(self._run)
        token = context.attach(self._context)  # the run ends in this same thread

        def leave() -> None:
            context.detach(token)
            _running.discard(self)

        self._leave = leave
        _running.add(self)

    def _goes(self, batch: Batch) -> Batch:
        from opentelemetry import propagate, trace

        span = self._span("batch")
        span.set_attribute(BATCH, batch.number)
        span.set_attribute(f"{SCOPE}.batch.size", len(batch))
        if batch.part_of is not None:
            span.set_attribute(f"{SCOPE}.batch.part_of", batch.part_of.root)
        self._out[batch.number] = span, len(batch)
        self._meters.in_flight.add(len(batch), self._attributes)
        headers: dict[str, str] = {}
        propagate.inject(headers, trace.set_span_in_context(span, self._context))
        return replace(batch, trace=headers or None)

    def _came(self, outcome: Outcome) -> None:
        out = self._out.pop(outcome.batch.number, None)
        if out is None:  # the batch was abandoned and the run has ended
            return
        span, items = out
        self._meters.in_flight.add(-items, self._attributes)
        span.set_attribute(OUTCOME, type(outcome).__name__.lower())
        if isinstance(outcome, (Done, Failed)):
            span.set_attribute(f"{SCOPE}.batch.calls", outcome.times.calls)
            self._count_calls(outcome)
        if isinstance(outcome, Done):
            _set_counts(span, outcome.completed, outcome.failures)
        elif isinstance(outcome, Failed):
            failed(span, outcome.error.name)
        elif isinstance(outcome, Fatal):
            failed(span, name_of(outcome.error))
        if not isinstance(outcome, Fatal) and outcome.cost > 0:  # false for NaN too
            self._meters.cost.add(outcome.cost, self._attributes)
        span.end()

    def _count_calls(self, outcome: Done | Failed) -> None:
        record, times = self._meters.call.record, outcome.times
        for error, seconds in times.failed:
            record(seconds, {**self._attributes, ERROR_TYPE: error})
        last = times.seconds - sum(seconds for _, seconds in times.failed)
        if times.calls > len(times.failed) and last > 0:
            error_of = {ERROR_TYPE: outcome.error.name} if isinstance(outcome, Failed) else {}
            record(last, self._attributes | error_of)
        again = max(times.calls - 1, 0) + was_again(outcome.batch)
        if again:
            self._meters.retried.add(again * len(outcome.batch), self._attributes)

    def _committed(self, event: Committed) -> None:
        span = self._span("commit", time.time_ns() - int(event.seconds * 1e9))
        span.set_attribute(f"{SCOPE}.commit.number", event.number)
        span.set_attribute(f"{SCOPE}.commit.rows", event.rows)
        span.set_attribute(f"{SCOPE}.commit.size", event.bytes)
        _set_counts(span, event.completed, event.failures)
        span.end()
        self._meters.commit.record(event.seconds, self._attributes)
        self._meters.commit_size.record(event.bytes, self._attributes)
        self._count_items("done", event.completed)
        counted = Counter((failure.parked, failure.error) for failure in event.failures)
        for (parked, error), count in counted.items():
            self._count_items("parked" if parked else "failed", count, error)
        self._count_skipped(event.progress.skipped)

    def _count_items(self, outcome: str, count: int, error: str = "") -> None:
        if count:
            error_of = {ERROR_TYPE: error} if error else {}
            self._meters.handled.add(count, self._attributes | error_of | {OUTCOME: outcome})
            self._failed += count if outcome == "failed" else 0

    def _count_skipped(self, skipped: int) -> None:
        if skipped > self._skipped:
            self._meters.skipped.add(skipped - self._skipped, self._attributes)
            self._skipped = skipped

    def _finished(self, event: RunFinished) -> None:
        progress = event.progress
        self._count_skipped(progress.skipped)
        # Items without a usable key are in no commit.
        self._count_items("failed", progress.failed - self._failed, "InvalidItems")
        assert self._run is not None
        for name in ("completed", "failed", "parked", "skipped"):
            self._run.set_attribute(f"{SCOPE}.items.{name}", getattr(progress, name))
        if progress.bound_by is not None:
            self._run.set_attribute(BOUND_BY, progress.bound_by.what)
        while self._out:
            _, (span, items) = self._out.popitem()
            self._meters.in_flight.add(-items, self._attributes)
            span.set_attribute(OUTCOME, "abandoned")
            span.end()
        # If an error ends the run, it is being raised right now.
        raised = sys.exception() if event.how == "error" else None
        error = name_of(raised) if raised is not None else ""
        self._end("JobFailed" if event.how == "failed" else error, event.how, progress.seconds)

    def _refused(self, error: BaseException) -> None:
        self._run = self._span("run")
        self._end(name_of(error), "refused", 0.0)

    def _end(self, error: str, how: str, seconds: float) -> None:
        error_of = {ERROR_TYPE: error} if error else {}
        self._meters.run.record(seconds, self._attributes | error_of | {OUTCOME: how})
        assert self._run is not None
        self._run.set_attribute(OUTCOME, how)
        if error:
            failed(self._run, error)
        self._run.end()

    def _span(self, what: str, began: int | None = None) -> Span:
        return self._tracer.start_span(
            f"{what} {self.job}", self._context, attributes=self._attributes, start_time=began
        )


def _set_counts(span: Span, completed: int, failures: Sequence[Failure]) -> None:
    parked = sum(failure.parked for failure in failures)
    span.set_attribute(f"{SCOPE}.items.completed", completed)
    span.set_attribute(f"{SCOPE}.items.failed", len(failures) - parked)
    span.set_attribute(f"{SCOPE}.items.parked", parked)


# The observers of the runs that are active in this process.
_running: set[Observer] = set()


def _quotas(_: CallbackOptions) -> Iterator[Observation]:
    from opentelemetry.metrics import Observation

    for observer in list(_running):
        for rate, left in observer.limits.left() if observer.limits is not None else ():
            yield Observation(left, {JOB: observer.job, LIMIT: str(rate)})


def _bound(_: CallbackOptions) -> Iterator[Observation]:
    from opentelemetry.metrics import Observation

    found = ((each.job, each.bound_by.what) for each in list(_running) if each.bound_by is not None)
    for (job, what), runs in Counter(found).items():
        yield Observation(runs, {JOB: job, BOUND_BY: what})


def _shares(_: CallbackOptions) -> Iterator[Observation]:
    from opentelemetry.metrics import Observation

    for observer in list(_running):
        shares = observer.bound_by.shares if observer.bound_by is not None else {}
        for place, share in shares.items():
            yield Observation(share, {JOB: observer.job, PLACE: place})


class _Meters:
    """The instruments. A meter gives the same ones to each run."""

    def __init__(self) -> None:
        from opentelemetry import metrics

        # Before a provider is set, the API's proxy meter would keep every instrument made.
        unset = not _is_set("metrics", "meter")
        meter = metrics.NoOpMeter(SCOPE) if unset else metrics.get_meter(SCOPE)
        self.handled = meter.create_counter(
            f"{SCOPE}.item.handled", "{item}", "Items that are committed: done, failed or parked"
        )
        self.skipped = meter.create_counter(
            f"{SCOPE}.item.skipped", "{item}", "Items that were completed before the run"
        )
        self.retried = meter.create_counter(
            f"{SCOPE}.item.retried",
            "{item}",
            "Items given to the handler again with their batch",
        )
        self.in_flight = meter.create_up_down_counter(
            f"{SCOPE}.item.in_flight", "{item}", "Items that the runner holds, in calls or waiting"
        )
        self.cost = meter.create_counter(
            f"{SCOPE}.cost", "{cost}", "Cost of calls, in the unit of the job's cost="
        )
        self.call = meter.create_histogram(
            f"{SCOPE}.call.duration",
            "s",
            "Duration of the handler's calls",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.commit = meter.create_histogram(
            f"{SCOPE}.commit.duration",
            "s",
            "Duration of commits",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self.commit_size = meter.create_histogram(
            f"{SCOPE}.commit.size",
            "By",
            "Bytes of the row files that a commit wrote",
            explicit_bucket_boundaries_advisory=_BYTES,
        )
        self.run = meter.create_histogram(
            f"{SCOPE}.run.duration",
            "s",
            "Duration of runs",
            explicit_bucket_boundaries_advisory=_RUN_SECONDS,
        )
        meter.create_observable_gauge(
            f"{SCOPE}.quota.remaining",
            [_quotas],
            "{unit}",
            "Calls or items that the job's own rate_limit= currently allows",
        )
        meter.create_observable_gauge(
            f"{SCOPE}.run.bound", [_bound], "{run}", "Runs in progress, by what they wait for"
        )
        meter.create_observable_gauge(
            f"{SCOPE}.time.share", [_shares], "1", "Shares of recent time, by where it is spent"
        )
