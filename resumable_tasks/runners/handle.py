"""Calls the handler with one batch, in the same steps for threads, coroutines and processes.

`calls` yields the steps (call, pause, call again) until there is an outcome. `execute` carries them
out on a thread, `resumable_tasks.runners.eventloop.aexecute` on an event loop, and a lane of
`resumable_tasks.runners.processes` through its pipe.
"""

from __future__ import annotations

import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.signals import by_a_signal
from resumable_tasks.base.steps import drive
from resumable_tasks.base.stopping import NEVER, Stopping
from resumable_tasks.errors import BadResult, MissingResult, UsageError, WorkerLost
from resumable_tasks.items.batch import Batch, Cause, ErrorKind
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners import failures
from resumable_tasks.runners import match as rows
from resumable_tasks.runners.bound import HANDLER, Trail
from resumable_tasks.runners.cost import cost_of, cost_of_failed, is_stream, readable
from resumable_tasks.runners.environment import of_the_environment
from resumable_tasks.runners.given import Given
from resumable_tasks.runners.groups import name_of
from resumable_tasks.runners.http_signs import looks_like_an_outage
from resumable_tasks.runners.kept import Kept, may_keep
from resumable_tasks.runners.limits import Entry, Limits
from resumable_tasks.runners.outcome import (
    WRITE,
    CallOutcome,
    Cost,
    CurrentBatch,
    Done,
    Dropped,
    Failed,
    Failure,
    Fatal,
    Outcome,
    ResultsMode,
    Shard,
    Times,
)
from resumable_tasks.runners.retries import Attempts, GiveUp, RetryPolicy
from resumable_tasks.runners.usage import Load
from resumable_tasks.runners.values.columns import INFERRED, Columns

if TYPE_CHECKING:
    import pyarrow as pa

# The arguments are those of `CurrentBatch.report`. `Current`: the batch, the attempt, the reports.
Reports = Callable[[Mapping[str, int | None], Mapping[str, str] | None], None]
Current = tuple[Batch, int, Reports | None]
current: ContextVar[Current] = ContextVar("resumable_tasks_current_batch")


def current_batch() -> CurrentBatch:
    """Return the batch that this handler call handles: its id, its keys and the attempt.

    Raises `UsageError` outside a handler.
    """
    try:
        batch, attempt, take = current.get()
    except LookupError:
        raise UsageError(
            "current_batch() works only inside a handler; none is running",
            remedy="Call it in the thread that handles the batch",
        ) from None
    return CurrentBatch(batch.id, tuple(batch.keys), attempt, take)


@frozen
class Work:
    """Everything a worker needs to handle a batch. Can be sent to another process.

    ``writer``: set if workers write their own shards, because their rows would be too large to send
    back. ``cost``: a field of the rows, or a callable on a call's outcome. ``isolate``: a failed
    batch will be handled again in parts. ``traced``: the job's name in the spans of its calls, ""
    without tracing. ``trails``: the trails of the batches that this process is handling, by number.
    """

    handler: Callable[[Any], Any]
    scheme: KeyScheme
    results: ResultsMode
    retry: RetryPolicy
    timeout: float | None = None
    limits: Limits | None = None
    cost: Cost | None = None
    writer: Callable[[pa.Table, int], Shard] | None = None
    columns: Columns = INFERRED
    isolate: bool = True
    traced: str = ""
    trails: dict[int, Trail] | None = None


@frozen
class Pause:
    """A step: wait for ``seconds``. The answer is None, or `Dropped` if the run stops.

    ``spent``: the cost of the calls so far.
    """

    batch: Batch
    seconds: float
    spent: float = 0.0


@frozen
class Raised:
    """An answer: the call failed with this error. ``number`` counts attempts from 1.

    ``returned``: the rows it yielded before it failed, or the value that could not be matched to
    the items. ``spent``: the cost of earlier calls that is in no other answer.
    """

    error: BaseException
    number: int
    times: Times
    returned: Any = None
    spent: float = 0.0


@dataclass(slots=True)
class Call:
    """A step: call the handler with this batch. The answer is `Raised`, or an outcome.

    ``strict``: as for `match`. ``kept``: the rows of earlier calls; this call is made with the
    items that are left.
    """

    work: Work
    batch: Batch
    number: int
    entry: Entry | None = None
    strict: bool = False
    kept: Kept | None = None
    _gave: list[Any] = field(default_factory=list, init=False)
    _began: float = field(default=0.0, init=False)
    _at: float = field(default=0.0, init=False)
    _given: Given | None = field(default=None, init=False)

    def begin(self) -> Any:
        """Prepare a call of the handler in this context; return the items to call it with."""
        left = self.batch if self.kept is None else self.kept.left
        current.set((left, self.number, self._reports))
        self._given = Given(left.items)
        self._at, self._began = time.monotonic(), time.perf_counter()
        return self._given.items

    @property
    def _reports(self) -> Reports | None:
        if self.work.limits is None or self.entry is None:
            return None
        return partial(self.work.limits.report, self.entry)

    def times(self) -> Times:
        """Return the times of this call, which has just ended."""
        return Times(time.perf_counter() - self._began, self._at, time.monotonic(), 1)

    def read(self, value: Any, stopping: Stopping) -> Any:
        """Return the handler's value, with a generator read to its end.

        An error of the generator is raised. Raises `BetweenRows` if the run stops while the rows so
        far can be kept; `raised` then has them in its answer.
        """
        if type(value) is list or not isinstance(value, Iterator) or is_stream(value):
            return readable(value)
        for row in value:
            self._gave.append(row)
            if stopping.is_set() and self._may_end:
                if hasattr(value, "close"):
                    value.close()
                raise BetweenRows
        return self._gave

    async def aread(self, value: Any, stopping: Stopping) -> Any:
        """`read` for the awaitable or the async generator of a coroutine handler."""
        if not isinstance(value, AsyncIterator):
            return self.read(await value, stopping)
        async for row in value:
            self._gave.append(row)
            if stopping.is_set() and self._may_end:
                if hasattr(value, "aclose"):
                    await value.aclose()
                raise BetweenRows
        return self._gave

    @property
    def _may_end(self) -> bool:
        """True if the rows of a generator so far can be kept without the rest."""
        return may_keep(self._gave, self.work.scheme, self.work.results)

    def returned(self, value: Any) -> Done | Fatal | Raised:
        """Return the answer for a value that the handler returned and that was `read`."""
        times = self.times()
        try:
            return self._matched(value, times)
        except BaseException as error:  # noqa: BLE001 - becomes the items' failure
            return self._failed(Raised(error, self.number, times, value))

    def raised(self, error: BaseException) -> Raised | Fatal:
        """Return the answer for an error that the handler raised: a failure of the items.

        Every error counts as such, except a signal that ends the run: Rust extensions raise a
        ``BaseException`` for a bad document, and ``sys.exit`` in a handler must not end the run.
        """
        return self._failed(Raised(error, self.number, self.times(), self._gave or None))

    def _failed(self, raised: Raised) -> Raised | Fatal:
        return Fatal(self.batch, raised.error) if _ends_the_run(raised.error) else raised

    def _matched(self, value: Any, times: Times) -> Done | Fatal:
        work, batch = self.work, self.batch
        given, found = self._given, value
        if self.kept is not None and self.kept.rows:
            given, found = None, self.kept.and_also(value)
        matched = rows.match(
            found, batch, work.scheme, work.results, work.columns, given, self.strict
        )
        failed: tuple[Failure, ...] = ()
        left_out: tuple[int, ...] = ()
        if matched.failed:
            failed = failures.records(batch, matched.failed, self.number)
            missing = {key for key, error in matched.failed if isinstance(error, MissingResult)}
            left_out = tuple(at for at, key in enumerate(batch.keys) if key in missing)
        if matched.parked:
            failed += failures.parked(batch, matched.parked, self.number)
        table = matched.unwritten
        cost = 0.0
        if work.cost is not None:
            cost = cost_of(
                work.cost, CallOutcome(batch, matched.table_shown, failed, times.seconds, value)
            )
        schema = table.schema if table is not None else None
        shard = None
        if table is not None and work.writer is not None:
            began = time.monotonic()
            try:
                shard, table = work.writer(matched.table, matched.completed), None
                times = replace(times, waits={WRITE: time.monotonic() - began})
            except Exception as error:  # noqa: BLE001 - a full disk is not the items' fault
                return Fatal(batch, error)
        return Done(
            *(batch, matched.done, matched.completed, table, shard, schema),
            *(failed, left_out, cost, times, matched.rows),
        )


class BetweenRows(Exception):
    """The run stops, and a generator was closed after it had yielded a row."""


@frozen
class Enter:
    """A step: wait until the limits let a call begin.

    The answer is the `Entry`, `Dropped` if the run stops, or `Fatal` if a limit is broken.
    ``left``: the part of the batch for the call. ``waits`` receives the seconds waited.
    """

    batch: Batch
    left: Batch
    waits: dict[str, float]


Step = Enter | Call | Pause
Answer = Entry | Outcome | Raised | None


def calls(
    work: Work, batch: Batch, first: int = 1, spent: float = 0.0
) -> Generator[Step, Answer, Outcome]:
    """Yield the steps of handling a batch; return its outcome. Never raises.

    ``first``: the number of the first attempt, if an earlier worker has made some. ``spent``: the
    cost of those.
    """
    trail = Trail()
    if work.trails is not None:
        work.trails[batch.number] = trail
    return trail.told_in((yield from _calls(work, batch, first, spent, trail)))


def _calls(
    work: Work, batch: Batch, first: int, spent: float, trail: Trail
) -> Generator[Step, Answer, Outcome]:
    attempts, earlier = Attempts(_policy(work, batch), first), Times()
    kept, last = Kept(batch, work.scheme, work.results, work.columns), None
    while True:
        answer = yield from _one_call(work, batch, attempts.number, trail, kept)
        if not isinstance(answer, Raised):
            return _with_earlier(_or_kept(answer, work, last, kept), earlier, spent)
        last, attempts.number = answer, answer.number
        kept.add(answer.returned)
        stopped = isinstance(answer.error, BetweenRows)
        try:
            pause = attempts.pause_after(answer.error) if len(kept.left) and not stopped else None
        except GiveUp as why:
            if not kept.rows:
                spent += failed_call(work, batch, answer).cost
                return Dropped(batch, str(why), spent)
            pause = None  # some rows came: the run gives up only after a call without any
        except Exception as broken:  # noqa: BLE001 - Retry(delay=…) may be user code
            return Fatal(batch, broken)
        if pause is None and not stopped:
            return _with_earlier(_broken_off(work, batch, answer, kept), earlier, spent)
        failed = () if stopped else ((name_of(answer.error), answer.times.seconds),)
        earlier = replace(answer.times, failed=failed).after(earlier)
        if work.cost is not None:  # the cost of a call counts although it is repeated
            spent += failed_call(work, batch, answer).cost
        if pause is not None:
            trail.enter(attempts.pauses_for)
            stopped = isinstance((yield Pause(batch, pause, spent)), Dropped)
            trail.leave()
        if stopped:
            return _with_earlier(_or_kept(Dropped(batch), work, last, kept), earlier, spent)


def _or_kept(answer: Outcome, work: Work, last: Raised | None, kept: Kept) -> Outcome:
    """Return the answer; for a dropped batch, the rows of earlier calls if any were kept."""
    if last is None or not kept.rows or not isinstance(answer, Dropped):
        return answer
    uncounted = replace(last, times=Times())
    return _broken_off(replace(work, cost=None), answer.batch, uncounted, kept, stopped=True)


def _broken_off(
    work: Work, batch: Batch, last: Raised, kept: Kept, *, stopped: bool = False
) -> Done | Failed | Fatal:
    """Return the outcome of a batch whose last call has failed, with the rows that were kept.

    ``stopped``: the run stops, so nothing is known about the remaining items.
    """
    failed = failed_call(work, kept.left, last)
    if not kept.rows:
        return failed
    # The cost of the rows was counted with the calls that returned them.
    done = Call(replace(work, cost=None), batch, last.number, kept=kept).returned([])
    if not isinstance(done, Done):
        return done if isinstance(done, Fatal) else failed_call(work, batch, last)
    times = replace(last.times, waits=done.times.waits)
    done = replace(done, cost=failed.cost, times=times)
    if not done.left_out and stopped:
        return done
    if not done.left_out:
        log.warning(
            "batch %d: the handler gave all rows, which count, and then failed with %s: %s",
            *(batch.number, name_of(last.error), last.error),
        )
        return done
    missing = {batch.keys[at] for at in done.left_out}
    others = tuple(each for each in done.failures if each.key not in missing)
    of_left = tuple(replace(each, error_of="batch") for each in failed.failures)
    left_by = replace(failed.error, cause=Cause.STOPPED) if stopped else failed.error
    return replace(done, failures=others + of_left, left_by=left_by)


def _one_call(
    work: Work, batch: Batch, number: int, trail: Trail, kept: Kept
) -> Generator[Step, Answer, Outcome | Raised]:
    if work.limits is None:
        trail.enter(HANDLER)
        answer = yield from _called(work, batch, number, kept)
        trail.leave()
    else:
        entry = yield Enter(batch, kept.left, trail.waits)
        if not isinstance(entry, Entry):
            assert isinstance(entry, (Dropped, Fatal))
            return entry
        answer = None
        trail.enter(HANDLER)
        try:
            answer = yield from _called(work, batch, number, kept, entry)
        finally:
            trail.leave()
            work.limits.leave(entry, answer.error if isinstance(answer, Raised) else None)
    assert answer is not None
    assert not isinstance(answer, Entry)
    return answer


def _called(
    work: Work, batch: Batch, number: int, kept: Kept, entry: Entry | None = None
) -> Generator[Step, Answer, Answer]:
    """Make one call of the handler, in its own span if the batch has one."""
    if not work.traced or batch.trace is None:
        return (yield Call(work, batch, number, entry, kept=kept))
    from resumable_tasks.runners.tracing import begin

    answer, end = None, begin(work.traced, batch, number)
    try:
        answer = yield Call(work, batch, number, entry, kept=kept)
    finally:
        end(answer)
    return answer


def _policy(work: Work, batch: Batch) -> RetryPolicy:
    """Return the retry policy for a batch.

    A part of a failed batch is only searched for bad items, so it is not retried; a single item is
    not retried for the error of its batch.
    """
    policy, part = work.retry, batch.part_of
    if part is None or part.error is None or part.error.cause is Cause.LEFT_OUT:
        return policy
    return replace(policy, times=0) if len(batch) > 1 else policy.without(part.error.name)


def _with_earlier(outcome: Outcome, earlier: Times, spent: float) -> Outcome:
    if spent and isinstance(outcome, Dropped):
        return replace(outcome, cost=spent + outcome.cost)
    if (earlier.calls or spent) and isinstance(outcome, (Done, Failed)):
        times = outcome.times.after(earlier)
        return replace(outcome, cost=spent + outcome.cost, times=times)
    return outcome


def execute(
    work: Work,
    batch: Batch,
    stopping: Stopping = NEVER,
    first: int = 1,
    running: dict[int, float] | None = None,
) -> Outcome:
    """Call a plain handler with a batch. Never raises; errors are in the outcome.

    During a call, ``running`` has its start time, by the number of the batch.
    """

    def do(step: Step) -> Answer:
        match step:
            case Call():
                with Noted(running, batch):
                    return _watched(step, stopping)
            case Pause():
                return Dropped(batch) if stopping.wait(step.seconds) else None
            case Enter():
                return enter(work, step, stopping)

    return drive(calls(work, batch, first), do)


class Noted:
    """While the context is active, ``running`` has the start time of the call with this batch."""

    __slots__ = ("_number", "_running")

    def __init__(self, running: dict[int, float] | None, batch: Batch) -> None:
        self._running, self._number = running, batch.number

    def __enter__(self) -> None:
        if self._running is not None:
            self._running[self._number] = time.monotonic()

    def __exit__(self, *_: object) -> None:
        if self._running is not None:
            del self._running[self._number]


def enter(work: Work, step: Enter, stopping: Stopping) -> Entry | Dropped | Fatal:
    """Answer `Enter` on this thread."""
    assert work.limits is not None
    batch = step.batch
    try:
        return work.limits.enter(Load.of(step.left), stopping, step.waits) or Dropped(batch)
    except Exception as broken:  # noqa: BLE001 - a broken limit is not an item's fault
        return Fatal(batch, broken)


def call_handler(
    call: Call, stopping: Stopping = NEVER, ended: Callable[[], None] | None = None
) -> Outcome | Raised:
    """Answer `Call` on this thread. The caller enforces the timeout.

    ``ended`` is called when the handler has returned, before its rows are matched.
    """
    items = call.begin()
    try:
        value = call.read(call.work.handler(items), stopping)
    except BaseException as error:  # noqa: BLE001 - becomes the items' failure
        return call.raised(error)
    if ended is not None:
        ended()
    return call.returned(value)


def _ends_the_run(error: BaseException) -> bool:
    """True for a signal: Ctrl-C, the stop of a nested run, or one of a host or of Prefect."""
    if isinstance(error, (KeyboardInterrupt, GeneratorExit)) or by_a_signal(error):
        return True
    return any(kind.__name__ == "PrefectSignal" for kind in type(error).__mro__)


def _watched(call: Call, stopping: Stopping) -> Outcome | Raised:
    if call.work.timeout is None:
        return call_handler(call, stopping)
    watch = _warn_when_overdue(call.work.timeout, call.batch)
    try:
        return call_handler(call, stopping)
    finally:
        watch.cancel()


def failed_whole(
    work: Work, batch: Batch, error: BaseException, attempts: int, times: Times | None = None
) -> Failed:
    """Return the outcome of a batch that failed as a whole."""
    return Failed(
        batch,
        ErrorKind(
            name_of(error),
            Cause.WORKER_LOST if isinstance(error, WorkerLost) else Cause.RAISED,
            transient=work.retry.is_transient(error),
            outage=looks_like_an_outage(error),
            shape=isinstance(error, BadResult) and error.of_shape,
            environment=of_the_environment(error),
        ),
        failures.whole_batch(batch, error, attempts),
        times=times or Times(0.0, now := time.monotonic(), now),
    )


def failed_call(work: Work, batch: Batch, call: Raised) -> Failed:
    """Return the outcome of a batch whose last call failed, with the cost of that call."""
    failed = failed_whole(work, batch, call.error, call.number, call.times)
    if work.cost is None:
        return failed
    known = CallOutcome(batch, None, failed.failures, call.times.seconds, call.returned)
    return replace(failed, cost=call.spent + cost_of_failed(work.cost, known))


def _warn_when_overdue(timeout: float, batch: Batch) -> threading.Timer:
    """Start a timer that warns when a call exceeds its timeout: a thread cannot be stopped."""
    watch = threading.Timer(
        timeout,
        log.warning,
        (
            "batch %d is overdue: its call is still running after timeout=%g s; only a coroutine "
            'handler, or runner="processes", can be stopped on time',
            batch.number,
            timeout,
        ),
    )
    watch.daemon = True
    watch.start()
    return watch
