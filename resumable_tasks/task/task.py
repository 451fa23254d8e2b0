"""The factory: a function becomes a `ResumableTask`, whose ``run`` survives being killed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
from collections.abc import AsyncIterable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from datetime import date
from typing import Any, Generic, Literal, ParamSpec, TypeVar, overload

from resumable_tasks.base.interrupts import Interrupts
from resumable_tasks.checkpoint.sql.spec import SqlCheckpoint
from resumable_tasks.engine.events import Listener, Progress
from resumable_tasks.errors import Interrupted, UsageError
from resumable_tasks.items.fingerprints import FingerprintSpec
from resumable_tasks.items.keys import KeySpec
from resumable_tasks.items.plan import BatchFormat, OnChange, OnDuplicate, is_read_by_iteration
from resumable_tasks.items.sources import Handed
from resumable_tasks.prefect.detect import current_flow_run
from resumable_tasks.results.result import RunResult
from resumable_tasks.runners.limits import Adaptive
from resumable_tasks.runners.outcome import Outcome, ResultsMode
from resumable_tasks.runners.retries import RetryDelay, RetryOn
from resumable_tasks.task.options import JobOptions, OnVersionChange, RunnerName
from resumable_tasks.task.run import Run, RunArguments

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = {field.name for field in dataclasses.fields(JobOptions)}
_AS_PREFECT_SAYS = {"retry_delay_seconds": "retry_delay", "timeout_seconds": "timeout"}


class ResumableTask(Generic[P, R]):
    """A handler with its options. Called, it is the plain function; ``run`` makes it a job."""

    def __init__(self, fn: Callable[P, R], options: JobOptions) -> None:
        if inspect.isasyncgenfunction(fn):
            raise UsageError(f"{options.name}: an async generator is no handler; return a list")
        functools.update_wrapper(self, fn)
        self.fn = fn
        self.options = options

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        return self.fn(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<ResumableTask {self.options.name}>"

    @property
    def name(self) -> str:
        return self.options.name

    def with_options(self, **changes: Any) -> ResumableTask[P, R]:
        """The same handler with other options: any of `resumable_task`'s. Raises `UsageError`."""
        changes = _spelt(self.name, changes)
        return ResumableTask(self.fn, dataclasses.replace(self.options, **changes))

    def run(
        self,
        items: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | SqlCheckpoint | None = None,
        partition: str | date | None = None,
        takeover: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        listeners: Iterable[Listener] = (),
        progress: bool | None = None,
        max_items: int | None = None,
        max_seconds: float | None = None,
        max_cost: float | None = None,
        dry_run: bool = False,
    ) -> RunResult:
        """Handle every item that the checkpoint does not know as completed.

        When this returns, every completed item's rows and key are durable, and each item's rows
        stand in the results exactly once, whatever killed earlier runs of this checkpoint.

        Args:
            items: any iterable of items, generators of any length included; an async iterable;
                an Arrow table, record batch, reader or dataset; a data frame that speaks the
                Arrow PyCapsule interface. Read once, lazily. Left out with a `SqlCheckpoint`.
            checkpoint: the checkpoint's directory; by default
                ``.resumable/<name>/<partition or "default">`` under the working directory. Or a
                `SqlCheckpoint`: the rows of a database table are the items.
            partition: which occurrence of a repeating job this is, such as a date; a folder
                below ``checkpoint``.
            takeover: take the checkpoint from a run that is stuck; it can no longer commit.
            on_progress: called with a `Progress` after every commit.
            listeners: called with every event of `resumable_tasks.engine.events`.
            progress: whether to show a bar; by default if standard error is a terminal.
            max_items, max_seconds, max_cost: the budget of this run, instead of the job's.
            dry_run: only read the items and say, in the result's ``remaining``, how many would be
                handled, and at the pace of earlier runs in what time and at what cost. The handler
                is not called and nothing is written.

        Raises:
            JobFailed: more items failed than ``tolerated_failures``; the rest is done. Or the
                handler has failed with every batch, and the run has ended before the rest.
            Interrupted: SIGINT or SIGTERM came, a budget is used up, or nothing has succeeded for
                ``give_up_after`` seconds; what had finished is committed.
            InvalidKey, DuplicateKey, InvalidItems, ChangedItem: the items cannot be used; names
                the position.
            CheckpointHeld, CheckpointMismatch, CheckpointDamaged, CheckpointUnusable: nothing
                was started.
            StoreError: the disk failed; what was committed before stands.
        """
        arguments = RunArguments(
            checkpoint, partition, takeover, on_progress, tuple(listeners), progress, dry_run
        )
        options = self._with_budget(max_items, max_seconds, max_cost)
        if isinstance(items, AsyncIterable):
            import asyncio

            from resumable_tasks.items.sources import in_event_loop

            if in_event_loop():
                raise UsageError(
                    f"{self.name}: items is an async iterable and an event loop is running: "
                    "`await task.arun(items, …)`"
                )
            return asyncio.run(self._arun(items, options, arguments))
        flow_run = current_flow_run()
        if flow_run is None:
            run = Run(self.fn, options, items, arguments, loop=None)
            with Interrupts(run.request_stop):
                return run.carry_out()
        handed = Handed(items) if is_read_by_iteration(items) else None
        run = Run(self.fn, options, handed or items, arguments, None, flow_run)
        with Interrupts(run.request_stop), flow_run.logging():
            return flow_run.accompany(run.carry_out, handed, run.request_stop)

    async def arun(
        self,
        items: Any = None,
        *,
        checkpoint: str | os.PathLike[str] | SqlCheckpoint | None = None,
        partition: str | date | None = None,
        takeover: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        listeners: Iterable[Listener] = (),
        progress: bool | None = None,
        max_items: int | None = None,
        max_seconds: float | None = None,
        max_cost: float | None = None,
        dry_run: bool = False,
    ) -> RunResult:
        """`run`, for a running event loop: a coroutine handler runs on the caller's loop.

        Cancelled, it stops as by a signal, commits what finishes within ``grace_seconds``, and
        raises ``CancelledError``. A plain iterable is iterated over in another thread.
        """
        arguments = RunArguments(
            checkpoint, partition, takeover, on_progress, tuple(listeners), progress, dry_run
        )
        options = self._with_budget(max_items, max_seconds, max_cost)
        return await self._arun(items, options, arguments)

    def _with_budget(
        self, max_items: int | None, max_seconds: float | None, max_cost: float | None
    ) -> JobOptions:
        given = {"max_items": max_items, "max_seconds": max_seconds, "max_cost": max_cost}
        changes = {name: value for name, value in given.items() if value is not None}
        return dataclasses.replace(self.options, **changes)  # type: ignore[arg-type]

    async def _arun(self, items: Any, options: JobOptions, arguments: RunArguments) -> RunResult:
        import asyncio

        from resumable_tasks.items.sources import Pulled

        loop = asyncio.get_running_loop()
        if isinstance(items, AsyncIterable):
            items = Pulled(items, loop)
        flow_run = current_flow_run()
        run = Run(self.fn, options, items, arguments, loop, flow_run)
        with (
            Interrupts(run.request_stop, event_loop=True),
            flow_run.logging() if flow_run is not None else nullcontext(),
        ):
            # No task: an exception that ends the event loop, as Prefect's at SIGTERM, has all its
            # tasks cancelled, and what a cancelled task does in a thread cannot be waited for.
            carry_out = functools.partial(copy_context().run, _outcome, run.carry_out)
            work = loop.run_in_executor(None, carry_out)
            try:
                if flow_run is not None:
                    await flow_run.watch(work, run.request_stop)
                result, error = await asyncio.shield(work)
            except asyncio.CancelledError:
                run.request_stop("a cancel", False)
                try:
                    with _shielded():
                        await asyncio.wait([work])
                except asyncio.CancelledError:
                    run.request_stop("a second cancel", True)
                    raise
                result, error = work.result()
                if error is None or isinstance(error, Interrupted):
                    raise
        if error is not None:
            raise error if flow_run is None else flow_run.translated(error)
        assert result is not None
        return result


def _shielded() -> AbstractContextManager[Any]:
    """Where one cancel is one: a scope of anyio's cancels whoever waits in it, again and again.

    A flow's time-out is such a scope. Without this it would count as a second cancel, at which
    the batches that run are left alone.
    """
    anyio = sys.modules.get("anyio")
    return anyio.CancelScope(shield=True) if anyio is not None else nullcontext()


def _outcome(call: Callable[[], RunResult]) -> tuple[RunResult | None, BaseException | None]:
    """What a call returns or raises: a task that raises `Interrupted` would end its event loop."""
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - raised by the one who asked
        return None, error


@overload
def resumable_task(fn: Callable[P, R], /) -> ResumableTask[P, R]: ...


@overload
def resumable_task(
    fn: None = None,
    /,
    *,
    name: str | None = None,
    key: KeySpec = None,
    batch_size: int = 50,
    concurrency: int | Literal["adaptive"] | Adaptive = 4,
    retries: int = 0,
    retry_delay: RetryDelay = None,
    retry_on: RetryOn | None = None,
    timeout: float | None = None,
    isolate: bool = True,
    pause_after: int | None = 5,
    give_up_after: float = 600.0,
    rate_limit: str | Sequence[str] | None = None,
    results: ResultsMode = "one",
    version: str | int = "1",
    runner: RunnerName = "auto",
    batch_format: BatchFormat = "auto",
    on_duplicate: OnDuplicate = "error",
    on_version_change: OnVersionChange = "error",
    tolerated_failures: int | float = 0,
    fail_fast: bool = False,
    retry_failed: bool = True,
    max_attempts: int | None = None,
    keep_failed_items: bool = False,
    max_items: int | None = None,
    max_seconds: float | None = None,
    max_cost: float | None = None,
    cost: str | Callable[[Outcome], float] | None = None,
    grace_seconds: float = 25.0,
    tags: Sequence[str] = (),
    task_runs: int = 1_000,
    fingerprint: FingerprintSpec = None,
    on_change: OnChange = "redo",
) -> Callable[[Callable[P, R]], ResumableTask[P, R]]: ...


@overload
def resumable_task(fn: Callable[P, R], /, **options: Any) -> ResumableTask[P, R]: ...


def resumable_task(fn: Any = None, /, *, name: str | None = None, **options: Any) -> Any:
    """Make a function of a batch into a job that can be killed and resumed.

    A decorator, with or without options, and a plain call on a function. The function takes a
    list of items (or a ``pyarrow.RecordBatch``) and returns their results; it may be called
    again for items whose results a crash has lost, so effects outside should use the key, or
    `current_batch`'s id, as an idempotency key.

    Args:
        fn: a function or coroutine function of one batch.
        name: of the job; by default the function's.
        key: where the key of an item is found: a field's name, a tuple of names, a callable;
            None if the items are strings or integers that are their own keys.
        batch_size: items a call of the handler, at most.
        concurrency: calls at once: threads, coroutines or processes. ``"adaptive"``, or
            ``Adaptive(lowest, highest)``: begins with one (or ``lowest``), takes more while calls
            take no longer for it, and half as many when the service says that there are too many
            (HTTP 429, ``Retry-After``, a timeout); up to 32 (or ``highest``).
        retries: further calls with a batch after one that raised. A call that is told to wait
            (HTTP 429, an error or an answer with ``Retry-After``, an error with ``retry_after``)
            waits so long and uses none of them up.
        retry_delay: seconds before a retry; a list of them, one for each; a wait strategy of
            ``tenacity``; by default a pause that grows from 1 to 60 seconds, half of it random.
            ``retry_delay_seconds`` says the same.
        retry_on: the class of the errors that are retried, a tuple of them, or a callable that is
            given the error; by default all but errors of programming (``TypeError``,
            ``KeyError``, ``NameError``, `BadResult` …).
        timeout: seconds that a call may take, after which it has failed with ``TimeoutError`` (and
            is retried, if it may be): a coroutine is cancelled, a process is killed and replaced.
            A plain function on a thread cannot be stopped: it is reported as overdue, and its
            results count when they come. ``timeout_seconds`` says the same.
        isolate: a batch that still fails is halved, and so on, until the bad items stand alone and
            the others are done: some 2 log2(batch_size) calls for each bad item. False for a
            handler whose calls are dear: all items of the batch have failed then.
        pause_after: after so many batches in a row that failed with the same class of error, the
            run pauses, and tries single items until one succeeds; no item's attempts are used up
            meanwhile. None: never.
        give_up_after: seconds of such a pause, or of waiting as told, after which the run ends as
            interrupted; run again, it goes on.
        rate_limit: at most so many calls of the handler in any such time (``"60/minute"``), or so
            many items (``"600 items/minute"``), or both in a list; shared by all workers of a
            process, and divided among processes. ``"prefect:NAME"``: a slot of Prefect's global
            concurrency limit of that name, which all its flow runs share.
        results: ``"one"`` row for each item (one that is left out has failed), ``"many"``
            (0 to n rows an item), ``"none"`` (completion only).
        version: of the handler; a change is an error, or what ``on_version_change`` says.
        runner: ``"local"`` (threads, or the event loop for a coroutine function),
            ``"processes"``, ``"prefect"`` (task runs of the flow run around), or ``"auto"``:
            ``"prefect"`` in a flow run, else ``"local"``.
        batch_format: what the handler is given: ``"rows"`` (a list), ``"arrow"`` (a
            ``pyarrow.RecordBatch``), ``"auto"``: Arrow if the items are Arrow.
        on_duplicate: a key that comes twice in one run is an ``"error"``, or ``"skip"`` keeps
            the first item.
        on_version_change: ``"error"``, ``"reuse"`` what is completed, or ``"restart"``, which
            archives the checkpoint.
        tolerated_failures: how many items (int), or which share of them (float), may fail
            before the run raises `JobFailed`.
        fail_fast: stop at the first failed batch or item, once what runs has ended.
        retry_failed: whether items that failed in earlier runs are tried again.
        max_attempts: after so many attempts over all runs an item is quarantined: not tried any
            more, but counted and listed, until ``resumable retry`` releases it. A batch's calls
            count for each of its items, those that isolate the bad ones do not. By default never.
        keep_failed_items: keep the items that failed in the checkpoint, as JSON, beside the
            failure.
        max_items: how many items a run hands to the handler, at most; the run then ends as
            interrupted and says what remains. So do the next two.
        max_seconds: how long a run begins new batches.
        max_cost: what a run may spend. No batch is begun that would exceed it at the average cost
            of an item up to then.
        cost: what a call has cost: a field of the results, which is added up (``"cost"`` if there
            is a ``max_cost``), or a callable of the `Outcome` (its ``table``, ``seconds``,
            ``failures``, ``batch``).
        grace_seconds: how long running batches may take to finish after Ctrl-C or SIGTERM.
        tags: of the task runs in Prefect.
        task_runs: about how many task runs a flow run has at most; batches are grouped so that
            there are no more.
        fingerprint: by what it is seen that an item has changed since it was completed: the name
            of a field such as ``updated_at`` or ``etag``; a callable on the item; or
            ``"content"``, the whole item (a field of that name needs a callable). By default
            nothing is looked at, and what is completed stays completed.
        on_change: an item that has changed since it was completed is handled again, and its new
            rows replace the old ones (``"redo"``); or its results are kept as they are
            (``"keep"``); or it is an ``"error"``.

    Raises:
        UsageError: an option is wrong; the message says which and what it takes.
    """
    if fn is None:
        return functools.partial(_make, name=name, **options)
    return _make(fn, name=name, **options)


def _make(fn: Callable[P, R], *, name: str | None, **options: Any) -> ResumableTask[P, R]:
    if isinstance(fn, ResumableTask):
        fn = fn.fn
    if not callable(fn):
        raise UsageError(f"resumable_task takes a function, not a {type(fn).__name__}")
    name = name or str(getattr(fn, "__name__", ""))
    return ResumableTask(fn, JobOptions(name, **_spelt(name, options)))


def _spelt(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options by our names. Raises `UsageError` for one that there is not."""
    found: dict[str, Any] = {}
    for given, value in options.items():
        option = _AS_PREFECT_SAYS.get(given, given)
        if option not in _OPTIONS:
            raise UsageError(f"{name}: there is no option {given!r}")
        if option in found:
            raise UsageError(f"{name}: {given!r} and {option!r} are the same option")
        found[option] = value
    return found
