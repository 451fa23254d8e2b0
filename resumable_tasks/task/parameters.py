"""Gives a function the parameters of an options class, with errors for wrong ones.

`takes` does this for type checkers, ``inspect.signature`` and ``help``.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sized
from inspect import Parameter
from typing import Any, Concatenate, ParamSpec, TypeVar

from resumable_tasks.checkpoint.settings import Failing
from resumable_tasks.engine.budget import Budget
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import shorten
from resumable_tasks.runners.submitted.kind import (
    is_class_of_submitted,
    is_submitted,
    lacking,
)
from resumable_tasks.task.arguments import RunArguments
from resumable_tasks.task.options import JobOptions

# Default checkpoints are in this folder, each in a folder with its job's name.
HOME = ".resumable"
_FAILING = "failing=Failing({}=…)"
_BUDGET = "budget=Budget({}=…)"
_OLD = {
    "retry_delay": "retries=Retry(times, delay=…)",
    "retry_delay_seconds": "retries=Retry(times, delay=…)",
    "retry_on": "retries=Retry(times, on=…)",
    "timeout_seconds": "timeout=",
    "isolate": _FAILING.format("isolate"),
    "pause_after": _FAILING.format("pause_after"),
    "give_up_after": _FAILING.format("give_up_after"),
    "max_attempts": _FAILING.format("max_attempts"),
    "retry_failed": _FAILING.format("retry_failed"),
    "keep_failed_items": _FAILING.format("keep_items"),
    "max_items": _BUDGET.format("items"),
    "max_seconds": _BUDGET.format("seconds"),
    "max_cost": _BUDGET.format("cost"),
    "fingerprint": "changes=Changes(by=…)",
    "on_change": "changes=Changes(by, then=…)",
}
_IN_THE_FLOW = "Give it to the @flow that calls the job; its batches are task runs of that flow"
_CHECKPOINT = "Leave it out: the checkpoint decides what is done"
# Names that other libraries use for options of a job.
_MEANT = {
    **dict.fromkeys(("max_workers", "workers", "n_jobs", "threads", "parallel"), "concurrency"),
    **dict.fromkeys(("chunksize", "chunk_size", "size"), "batch_size"),
    **dict.fromkeys(("max_retries", "tries", "attempts"), "retries"),
    **dict.fromkeys(("output", "path", "dir", "directory", "folder", "place"), "checkpoint"),
    **dict.fromkeys(("id", "key_field", "keys", "by"), "key"),
}
_PREFECTS = {
    "log_prints": _IN_THE_FLOW,
    "on_failure": _IN_THE_FLOW,
    "on_completion": _IN_THE_FLOW,
    "task_runner": _IN_THE_FLOW,
    "cache_policy": _CHECKPOINT,
    "cache_key_fn": _CHECKPOINT,
    "cache_expiration": _CHECKPOINT,
    "persist_result": _CHECKPOINT,
    "result_storage": _CHECKPOINT,
    "result_serializer": _CHECKPOINT,
    "retry_condition_fn": "Use retries=Retry(times, on=…), which says which errors are retried",
    "retry_jitter_factor": "Leave it out: retry pauses are randomised by default",
    "return_state": "Leave it out: run() returns the result, or raises JobFailed with the result",
    "wait_for": "Leave it out: run() returns when all is done, so the next line waits",
}


def _fields_of_settings() -> dict[str, str]:
    """The fields of settings objects that are not options, and where each belongs."""
    from resumable_tasks.items.fingerprints import Changes
    from resumable_tasks.runners.limits import Adaptive
    from resumable_tasks.runners.retries import Retry

    found = {}
    for option, kind in (
        ("failing", Failing),
        ("budget", Budget),
        ("retries", Retry),
        ("changes", Changes),
        ("concurrency", Adaptive),
    ):
        for field in dataclasses.fields(kind):
            how = f"is a field of another option: give {option}={kind.__name__}(…, {field.name}=…)"
            found[field.name] = how
    return {name: how for name, how in found.items() if name not in _MEANT}


_JOB = frozenset(field.name for field in dataclasses.fields(JobOptions))
_RUN = frozenset(field.name for field in dataclasses.fields(RunArguments))

Parameters = ParamSpec("Parameters")
First = TypeVar("First")
Result = TypeVar("Result")


def takes(
    parameters: Callable[Parameters, Any],
) -> Callable[
    [Callable[Concatenate[First, ...], Result]], Callable[Concatenate[First, Parameters], Result]
]:
    """Give a method the parameters of an options class, and their documentation."""

    def decorate(method: Any) -> Any:
        describe(method, parameters)
        return method

    return decorate


def describe(function: Any, parameters: Any) -> None:
    """Give a function the signature and documentation of an options class."""
    own = inspect.signature(function)
    first = list(own.parameters.values())[:1]
    options = map(_parameter, dataclasses.fields(parameters))
    function.__signature__ = own.replace(parameters=[*first, *options])
    text, raises, rest = inspect.cleandoc(function.__doc__ or "").partition("Raises:\n")
    _, args, options_text = inspect.cleandoc(parameters.__doc__ or "").partition("Args:\n")
    if args:  # not with -OO
        text = f"{text.rstrip()}\n\n{args}{options_text.rstrip()}\n\n"
        function.__doc__ = f"{text}{raises}{rest}".rstrip() + "\n"


def _parameter(field: dataclasses.Field[Any]) -> Parameter:
    """The field as `inspect.signature` shows it; that would compile the class's ``__init__``."""
    kind = Parameter.KEYWORD_ONLY if field.kw_only else Parameter.POSITIONAL_OR_KEYWORD
    default = Parameter.empty if field.default is dataclasses.MISSING else field.default
    return Parameter(field.name, kind, default=default, annotation=field.type)


def check_job_options(name: str, given: Mapping[str, Any], fn: Any = None) -> None:
    """Raise `UsageError` for an option that `resumable_task` does not have."""
    elsewhere = dict.fromkeys(_RUN - _JOB, "is a parameter of a run: give it to run() or arun()")
    _check_known(given, name, _JOB, _of_handler(name, fn) | elsewhere)


def check_run_arguments(name: str, given: Mapping[str, Any], fn: Any = None) -> None:
    """Raise `UsageError` for a parameter that `ResumableTask.run` does not have."""
    job = dict.fromkeys(
        _JOB - _RUN,
        "is an option of the job: give it to resumable_task(), or for this run to "
        f"{name}.with_options({{0}}=…).run(…)",
    )
    _check_known(given, name, _RUN, _of_handler(name, fn) | job)


def _of_handler(name: str, fn: Any) -> dict[str, str]:
    how = f"is a parameter of the handler: give it by {name}.with_parameters({{0}}=…)"
    return dict.fromkeys(list(_parameters(fn))[1:], how)


def _parameters(fn: Any) -> Mapping[str, Parameter]:
    try:
        return inspect.signature(fn).parameters
    except (TypeError, ValueError):  # raised for some functions written in C
        return {}


def _takes_any_name(fn: Any) -> bool:
    """True for a function with ``**more``, or whose parameters cannot be known."""
    kinds = [parameter.kind for parameter in _parameters(fn).values()]
    return Parameter.VAR_KEYWORD in kinds or not kinds


def _check_known(
    given: Mapping[str, Any], name: str, known: frozenset[str], elsewhere: dict[str, str]
) -> None:
    """Refuse an unknown option; ``elsewhere`` says where known ones belong."""
    for option in given:
        if option in known:
            continue
        if option in _OLD:
            raise UsageError(f"{name}: {option}= is now {_OLD[option]}", remedy="Use that instead")
        elsewhere = _fields_of_settings() | elsewhere
        if option in elsewhere:
            raise UsageError(
                f"{name}: {option}= {elsewhere[option].format(option)}", remedy="Move it there"
            )
        if option in _PREFECTS:
            raise UsageError(
                f"{name}: {option}= is a Prefect option, which a job does not have",
                remedy=_PREFECTS[option],
            )
        import difflib

        near = [_MEANT[option]] if option in _MEANT else []
        near = near or difflib.get_close_matches(option, [*known, *elsewhere], 1)
        hint = f": did you mean {near[0]}=?" if near else ""
        if near and near[0] in elsewhere:
            hint += f" That {elsewhere[near[0]].format(near[0])}"
        raise UsageError(
            f"{name}: there is no option {option}={hint}",
            remedy="Correct its name; help(resumable_task) lists all",
        )


def check_takes_a_batch(name: str, fn: Callable[..., Any]) -> None:
    """Raise `UsageError` for a handler that cannot be called with only a batch."""
    if is_submitted(fn):
        return
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(None)
    except TypeError as error:
        taken = f"{name}{signature}"[:200]
        which = f"{name}: a handler is called with a list of items, but {taken} takes none"
        if next(iter(signature.parameters), "") in ("self", "cls"):
            raise UsageError(
                f"{which}: {error}",
                remedy=f"Call it on an instance, as object.{name}.run(…)",
            ) from None
        raise UsageError(
            f"{which}: {error}",
            remedy=f"Give parameters other than the items by {name}.with_parameters(…).run(…)"
            if len(signature.parameters) > 1
            else "Give the handler one parameter, the list of items",
        ) from None


def name_of(fn: Callable[..., Any]) -> str:
    """The name of a function, also of a partial one; "" if it has none."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    return str(getattr(fn, "__name__", ""))


def check_by_name(call: str, more: tuple[Any, ...]) -> None:
    """Raise `UsageError` for positional arguments that must be given by name."""
    if more:
        raise UsageError(
            f"{shorten(more[0])} is given without a parameter name",
            remedy=f"Give all but the first by name, as in {call}",
        )


def check_is_handler(fn: Any) -> None:
    """Raise `UsageError` if `resumable_task` cannot make a job of this."""
    if type(fn).__module__.partition(".")[0] == "prefect":
        raise UsageError(
            f"resumable_task takes a plain function, not a Prefect {type(fn).__name__}",
            remedy="Leave @task or @flow out: in a flow, each batch becomes a task run "
            "automatically",
        )
    if is_class_of_submitted(fn):
        raise UsageError(
            f"resumable_task takes an object with submit, poll and collect, but {fn.__name__} is a "
            "class",
            remedy=f"Create an object: resumable_task({fn.__name__}(…), name=…)",
        )
    if callable(fn) or is_submitted(fn):
        return
    if callable(getattr(fn, "submit", None)):
        raise UsageError(
            f"{type(fn).__name__} has submit but no {' and no '.join(lacking(fn))}: the results of "
            "its work cannot be fetched",
            remedy="Give it poll(handle) and collect(handle); see help(resumable_tasks.Submitted)",
        )
    if isinstance(fn, str):
        remedy = 'Give options by name, as in @resumable_task(key="id")'
    elif isinstance(fn, classmethod):
        remedy = "Write @classmethod above @resumable_task"
    else:
        remedy = "Give it the function that handles a batch"
    from resumable_tasks.items.mistaken import kind_of

    raise UsageError(f"resumable_task takes a function, not {kind_of(fn)}", remedy=remedy)


def check_call(
    name: str,
    fn: Callable[..., Any],
    batch_size: int,
    args: tuple[Any, ...],
    given: Mapping[str, Any],
) -> None:
    """Check whether a call of the plain function was meant as a run.

    Raises `UsageError` for options of a run; warns of more items than a batch has.
    """
    wrong = (_RUN & given.keys()) - _parameters(fn).keys()
    if wrong and not _takes_any_name(fn):
        raise UsageError(
            f"{name}: {min(wrong)}= is a parameter of a run, but calling a job calls the plain "
            "function",
            remedy=f"Write {name}.run(items, {min(wrong)}=…)",
        )
    if args and isinstance(args[0], Sized) and len(args[0]) > batch_size:
        from resumable_tasks.base import log

        log.warning(
            "%s was called as the plain function, with %s items at once: no checkpoint is kept. "
            "%s.run(items) handles them in batches of %s and keeps a checkpoint",
            name,
            f"{len(args[0]):,}",
            name,
            f"{batch_size:,}",
        )


def with_parameters(
    name: str, fn: Callable[..., Any], given: Mapping[str, Any]
) -> Callable[..., Any]:
    """The handler with these parameters bound. Raises `UsageError` for an unknown one."""
    own = list(_parameters(fn))[1:]
    for option in given:
        if option in own or _takes_any_name(fn):
            continue
        where = "an option of the job: give it to resumable_task() or with_options()"
        what = where if option in _JOB else f"not a parameter of the handler, which has {own}"
        raise UsageError(f"{name}: {option}= is {what}", remedy="Correct its name, or move it")
    return functools.partial(fn, **given)
