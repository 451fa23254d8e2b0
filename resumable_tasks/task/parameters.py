"""Giving a function the parameters of a class of options, with errors for wrong ones.

`takes` does it for type checkers, for ``inspect.signature`` and for ``help``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from resumable_tasks.errors import UsageError
from resumable_tasks.task.arguments import RunArguments
from resumable_tasks.task.options import JobOptions

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
    """Give a method the parameters of a class of options, and their text."""

    def decorate(method: Any) -> Any:
        describe(method, parameters)
        return method

    return decorate


def describe(function: Any, parameters: Callable[..., Any]) -> None:
    """Have ``inspect.signature`` and ``help`` say of a function what a class of options says."""
    own = inspect.signature(function)
    first = list(own.parameters.values())[:1]
    options = inspect.signature(parameters).parameters.values()
    function.__signature__ = own.replace(parameters=[*first, *options])
    text, raises, rest = inspect.cleandoc(function.__doc__ or "").partition("Raises:\n")
    _, args, options_text = inspect.cleandoc(parameters.__doc__ or "").partition("Args:\n")
    if args:  # not with -OO
        text = f"{text.rstrip()}\n\n{args}{options_text.rstrip()}\n\n"
        function.__doc__ = f"{text}{raises}{rest}".rstrip() + "\n"


def check_job_options(name: str, given: Mapping[str, Any]) -> None:
    """Raise `UsageError` for an option that `resumable_task` does not have."""
    _check_known(name, given, _JOB, _RUN - {"items"}, "is of a run: give it to run() or arun()")


def check_run_arguments(name: str, given: Mapping[str, Any]) -> None:
    """Raise `UsageError` for a parameter that `ResumableTask.run` does not have."""
    _check_known(name, given, _RUN, _JOB, "is an option of the job: give it to resumable_task()")


def _check_known(
    name: str, given: Mapping[str, Any], known: frozenset[str], others: frozenset[str], which: str
) -> None:
    for option in given:
        if option in known:
            continue
        if option in _OLD:
            raise UsageError(
                f"{name}: {option}= is now {_OLD[option]}", remedy="Write that instead"
            )
        if option in others:
            raise UsageError(f"{name}: {option}= {which}", remedy="Move it there")
        import difflib

        near = difflib.get_close_matches(option, known, 1)
        hint = f": do you mean {near[0]}=?" if near else ""
        raise UsageError(
            f"{name}: there is no option {option}={hint}",
            remedy="Correct its name; help(resumable_task) lists all",
        )
