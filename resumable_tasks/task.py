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
from typing import Any, Generic, ParamSpec, TypeVar, overload

from resumable_tasks.errors import Interrupted, UsageError
from resumable_tasks.events import Listener, Progress
from resumable_tasks.fingerprints import FingerprintSpec
from resumable_tasks.interrupts import Interrupts
from resumable_tasks.keys import KeySpec
from resumable_tasks.model import ResultsMode
from resumable_tasks.options import JobOptions, OnVersionChange, RunnerName
from resumable_tasks.plan import BatchFormat, OnChange, OnDuplicate, is_read_by_iteration
from resumable_tasks.pulled import Handed
from resumable_tasks.result import RunResult
from resumable_tasks.run import Run, RunArguments
from resumable_tasks.runners.prefect.detect import current_flow_run

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
        items: Any,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        partition: str | date | None = None,
        takeover: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        listeners: Iterable[Listener] = (),
        progress: bool | None = None,
    ) -> RunResult:
        """Handle every item that the checkpoint does not know as completed.

        When this returns, every completed item's rows and key are durable, and each item's rows
        stand in the results exactly once, whatever killed earlier runs of this checkpoint.

        Args:
            items: any iterable of items, generators of any length included; an async iterable;
                an Arrow table, record batch, reader or dataset; a data frame that speaks the
                Arrow PyCapsule interface. Read once, lazily.
            checkpoint: the checkpoint's directory; by default
                ``.resumable/<name>/<partition or "default">`` under the working directory.
            partition: which occurrence of a repeating job this is, such as a date; a folder
                below ``checkpoint``.
            takeover: take the checkpoint from a run that is stuck; it can no longer commit.
            on_progress: called with a `Progress` after every commit.
            listeners: called with every event of `resumable_tasks.events`.
            progress: whether to show a bar; by default if standard error is a terminal.

        Raises:
            JobFailed: more items failed than ``tolerated_failures``; the rest is done.
            Interrupted: SIGINT or SIGTERM came; what had finished is committed.
            InvalidKey, DuplicateKey, InvalidItems, ChangedItem: the items cannot be used; names
                the position.
            CheckpointHeld, CheckpointMismatch, CheckpointDamaged, CheckpointUnusable: nothing
                was started.
            StoreError: the disk failed; what was committed before stands.
        """
        arguments = RunArguments(
            checkpoint, partition, takeover, on_progress, tuple(listeners), progress
        )
        if isinstance(items, AsyncIterable):
            import asyncio

            from resumable_tasks.pulled import in_event_loop

            if in_event_loop():
                raise UsageError(
                    f"{self.name}: items is an async iterable and an event loop is running: "
                    "`await task.arun(items, …)`"
                )
            return asyncio.run(self._arun(items, arguments))
        flow_run = current_flow_run()
        if flow_run is None:
            run = Run(self.fn, self.options, items, arguments, loop=None)
            with Interrupts(run.request_stop):
                return run.carry_out()
        handed = Handed(items) if is_read_by_iteration(items) else None
        run = Run(self.fn, self.options, handed or items, arguments, None, flow_run)
        with Interrupts(run.request_stop), flow_run.logging():
            return flow_run.accompany(run.carry_out, handed, run.request_stop)

    async def arun(
        self,
        items: Any,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        partition: str | date | None = None,
        takeover: bool = False,
        on_progress: Callable[[Progress], None] | None = None,
        listeners: Iterable[Listener] = (),
        progress: bool | None = None,
    ) -> RunResult:
        """`run`, for a running event loop: a coroutine handler runs on the caller's loop.

        Cancelled, it stops as by a signal, commits what finishes within ``grace_seconds``, and
        raises ``CancelledError``. A plain iterable is iterated over in another thread.
        """
        return await self._arun(
            items,
            RunArguments(checkpoint, partition, takeover, on_progress, tuple(listeners), progress),
        )

    async def _arun(self, items: Any, arguments: RunArguments) -> RunResult:
        import asyncio

        from resumable_tasks.pulled import Pulled

        loop = asyncio.get_running_loop()
        if isinstance(items, AsyncIterable):
            items = Pulled(items, loop)
        flow_run = current_flow_run()
        run = Run(self.fn, self.options, items, arguments, loop, flow_run)
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
    concurrency: int = 4,
    retries: int = 0,
    retry_delay: float | Sequence[float] | None = None,
    timeout: float | None = None,
    results: ResultsMode = "one",
    version: str | int = "1",
    runner: RunnerName = "auto",
    batch_format: BatchFormat = "auto",
    on_duplicate: OnDuplicate = "error",
    on_version_change: OnVersionChange = "error",
    tolerated_failures: int | float = 0,
    fail_fast: bool = False,
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
        concurrency: calls at once: threads, coroutines or processes.
        retries: further calls after one that raised.
        retry_delay: seconds before a retry, or a list of them, one for each; by default a pause
            that grows from 1 to 60 seconds, less a random part. ``retry_delay_seconds`` says the
            same.
        timeout: seconds that a call may take, after which it has failed (and is retried, if it
            may be): a coroutine is cancelled; a plain function cannot be stopped, so that it is
            only warned of. ``timeout_seconds`` says the same.
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
        fail_fast: stop at the first failed item, once what runs has ended.
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
