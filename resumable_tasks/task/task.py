"""The factory: a function becomes a `ResumableTask`, whose ``run`` survives being killed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable
from types import MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, cast

from resumable_tasks.errors import UsageError
from resumable_tasks.runners.submitted.kind import is_submitted
from resumable_tasks.task.arguments import RunArguments
from resumable_tasks.task.options import JobOptions, described
from resumable_tasks.task.parameters import (
    check_by_name,
    check_call,
    check_is_handler,
    check_job_options,
    check_run_arguments,
    check_takes_a_batch,
    describe,
    name_of,
    takes,
    with_parameters,
)

Function = Callable[..., Any]

if TYPE_CHECKING:
    import os
    from datetime import date

    # A type variable with a default avoids an overload of `resumable_task`. So a type checker's
    # message names the wrong argument, instead of saying that no overload matches.
    from typing_extensions import TypeVar

    from resumable_tasks.checkpoint.form import Place
    from resumable_tasks.results.result import RunResult

    F = TypeVar("F", bound="Function | _Service", default="Decorator")
    G = TypeVar("G", bound=Function)
else:
    from typing import TypeVar

    F = TypeVar("F", bound="Function | _Service")
    G = TypeVar("G", bound=Function)
Options = ParamSpec("Options")

# Names that users of Prefect's or Celery's tasks look for.
_RUNS = "run(items) does this; in a flow it submits the batches as task runs"
_INSTEAD = {
    "submit": f"{_RUNS}. Several jobs at once: await each one's arun(items), in asyncio.gather",
    "map": f"{_RUNS}. Give it the whole iterable",
    "delay": f"{_RUNS}. To start it elsewhere, deploy the flow that calls it",
    "apply_async": f"{_RUNS}. To start it elsewhere, deploy the flow that calls it",
    "serve": "serve the flow that calls run(items)",
    "result": "run(items) returns when all is done; its result has counts and table()",
    "fetch": "run(items) returns when all is done; its result has counts and table()",
}


class _Service(Protocol):
    """`Submitted`, with any further parameters of its methods."""

    @property
    def submit(self) -> Callable[..., Any]: ...

    @property
    def poll(self) -> Callable[..., Any]: ...

    @property
    def collect(self) -> Callable[..., Any]: ...


class ResumableTask(Generic[F]):
    """A handler with its options. Calling it calls the plain function; ``run`` runs the job."""

    if TYPE_CHECKING:

        @property
        def __call__(self) -> F: ...

    else:

        def __call__(self, *args, **kwargs):
            check_call(self.name, self.fn, self.options.batch_size, args, kwargs)
            return self.fn(*args, **kwargs)

    def __init__(self, fn: F, options: JobOptions) -> None:
        if not is_submitted(fn):  # a service may report its costs itself
            options.check_has_field(options.known_cost)
        # An object's own attributes must not become the job's.
        wrapper, wrapped = cast("Any", self), cast("Any", fn)
        functools.update_wrapper(
            wrapper, wrapped, updated=() if is_submitted(fn) else ("__dict__",)
        )
        self.fn: Any = fn
        self.options = options

    def __get__(self, instance: Any, owner: type | None = None) -> ResumableTask[Any]:
        """The job of a method: of this instance, at the same checkpoint as any other's."""
        if instance is None or not inspect.isfunction(self.fn):
            return self
        return ResumableTask(MethodType(self.fn, instance), self.options)

    def __getattr__(self, name: str) -> Any:
        instead = _INSTEAD.get(name)
        job = self.__dict__.get("__name__", type(self).__name__)
        if instead is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise AttributeError(f"{job} is a resumable task, which has no .{name}(): {instead}")

    def __repr__(self) -> str:
        return f"<ResumableTask {self.options.name}>"

    def _repr_html_(self) -> str:
        from resumable_tasks.base.html import table

        return table(f"resumable task {self.name}", described(self.options))

    @property
    def name(self) -> str:
        return self.options.name

    @takes(JobOptions)
    def with_options(self, **options: Any) -> ResumableTask[F]:
        """Return the same handler with other options: any of those of `resumable_task`.

        Raises:
            UsageError: an option is wrong; the message says which and what it accepts.
        """
        check_job_options(self.name, options, self.fn)
        return ResumableTask(self.fn, dataclasses.replace(self.options, **options))

    def with_parameters(self, **parameters: Any) -> ResumableTask[F]:
        """Return the same job with a handler that receives these parameters with each batch.

        The checkpoint does not depend on them. If another value changes the results, as a model's
        name may, give the job another ``version`` or the run another checkpoint.

        Raises:
            UsageError: the handler has no such parameter.
        """
        fn: Any = with_parameters(self.name, self.fn, parameters)
        return ResumableTask(fn, self.options)

    @takes(RunArguments)
    def run(self, items: Any = None, *more: Any, **given: Any) -> RunResult:
        """Handle every item that is not yet completed in the checkpoint.

        On return, the rows and key of every completed item are durable, and the results contain
        each item's rows exactly once, whatever killed earlier runs of this checkpoint.

        Raises:
            JobFailed: more items failed than ``tolerated_failures``; the rest is done. Or the
                handler failed with every batch, and the run ended early.
            Interrupted: SIGINT or SIGTERM arrived, a budget is used up, or nothing succeeded for
                ``give_up_after`` seconds; finished batches are committed.
            InvalidKey, DuplicateKey, InvalidItems, ChangedItem: the items cannot be used; the
                message names the position.
            CheckpointHeld, CheckpointMismatch, CheckpointDamaged, CheckpointUnusable: nothing
                was started.
            StoreError: the disk failed; earlier commits are safe.
        """
        options, arguments = self._settled(items, more, given)
        from resumable_tasks.task import running

        return running.run(self.fn, options, arguments)

    @takes(RunArguments)
    async def arun(self, items: Any = None, *more: Any, **given: Any) -> RunResult:
        """Run as `run` does, in a running event loop: a coroutine handler runs on it.

        If cancelled, the run stops as for a signal, commits what finishes within ``grace_seconds``,
        and raises ``CancelledError``. A plain iterable is iterated over in another thread.
        """
        options, arguments = self._settled(items, more, given)
        from resumable_tasks.task import running

        return await running.arun(self.fn, options, arguments)

    def cancel_submissions(
        self,
        *,
        checkpoint: str | os.PathLike[str] | Place | None = None,
        partition: str | date | None = None,
    ) -> int:
        """Ask the service to end all submissions of this checkpoint, and return their number.

        Nothing that is paid for is lost: the next run collects what is done by then and submits the
        rest again. Safe while a run is at work. An error from the service ends the call; call again
        to cancel the others.

        Args:
            checkpoint: as for `run`.
            partition: as for `run`.

        Raises:
            UsageError: the handler has no ``cancel``, or there is no such checkpoint.
            CheckpointDamaged: the checkpoint cannot be read.
        """
        from resumable_tasks.task.cancelling import cancel

        return cancel(self.fn, self.name, checkpoint, partition)

    def _settled(
        self, items: Any, more: tuple[Any, ...], given: dict[str, Any]
    ) -> tuple[JobOptions, RunArguments]:
        """The settings of this run: the job's options with the run's budget, and the arguments."""
        check_by_name(f"{self.name}.run(items, checkpoint=…)", more)
        check_run_arguments(self.name, given, self.fn)
        check_takes_a_batch(self.name, self.fn)
        from resumable_tasks.items.mistaken import refuse

        refuse(items)
        arguments, options = RunArguments(items, **given), self.options
        if arguments.budget is not None:
            budget = options.budget.overridden_by(arguments.budget)
            options = dataclasses.replace(options, budget=budget)
        return options, arguments


class Decorator(Protocol):
    """`resumable_task` called without a function: a decorator that takes it."""

    def __call__(self, fn: G, /) -> ResumableTask[G]: ...


class _Factory(Protocol[Options]):
    def __call__(
        self, fn: F = ..., /, *args: Options.args, **options: Options.kwargs
    ) -> ResumableTask[F]: ...


def _factory(options: Callable[Options, Any]) -> Callable[[Function], _Factory[Options]]:
    def decorate(function: Any) -> Any:
        describe(function, options)
        return function

    return decorate


@_factory(JobOptions)
def resumable_task(fn: Any = None, /, *more: Any, **options: Any) -> Any:
    """Make a function that handles a batch into a job that can be killed and resumed.

    Works as a decorator, with or without options, and as a plain call on a function. The function,
    or coroutine function, takes a list of items (or a ``pyarrow.RecordBatch``) and returns their
    results. After a crash it may be called again for items whose results were lost, so external
    effects should use the key, or the id from `current_batch`, as an idempotency key.

    Raises:
        UsageError: an option is wrong; the message says which and what it accepts.
    """
    check_by_name('@resumable_task(key="id")', more)
    if fn is None:
        return functools.partial(resumable_task, **options)
    if isinstance(fn, ResumableTask):
        fn = fn.fn
    check_is_handler(fn)
    name = options.pop("name", None) or name_of(fn)
    if not name and is_submitted(fn):
        raise UsageError(
            f"a job made from {type(fn).__name__}(…) has no default name, and its checkpoint needs "
            "one",
            remedy='Give name=, such as resumable_task(…, name="label")',
        )
    check_job_options(name, options, fn)
    return ResumableTask(fn, JobOptions(name=name, **options))
