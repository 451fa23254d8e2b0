"""The runner of one run, by its handler, its options, and the flow run around it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import UsageError
from resumable_tasks.prefect.detect import require_prefect
from resumable_tasks.runners.base import Runner, is_coroutine_function
from resumable_tasks.runners.submitted.kind import is_submitted
from resumable_tasks.runners.threads import ThreadRunner
from resumable_tasks.task.arguments import RunArguments
from resumable_tasks.task.options import JobOptions

if TYPE_CHECKING:
    import asyncio

    from resumable_tasks.prefect.flow_run import FlowRun


def runner_of(
    handler: Callable[..., Any],
    options: JobOptions,
    arguments: RunArguments,
    flow_run: FlowRun | None,
    loop: asyncio.AbstractEventLoop | None,
) -> Runner:
    """The runner of one run. Raises `UsageError` where the options do not go with the handler."""
    if is_submitted(handler) and options.runner != "local":
        return _submitting(handler, options, arguments)
    options.check_has_field(options.known_cost)
    if options.runner == "prefect" and flow_run is None:
        require_prefect('runner="prefect"')
        raise UsageError(
            f'{options.name}: runner="prefect", and no flow run is going on: call it in a '
            'function that is a Prefect @flow, or leave runner="auto"'
        )
    # In a task run of the user's own, that one is the task run; its threads are ours.
    in_flow = flow_run is not None and not flow_run.in_task_run
    if options.runner == "prefect" or (options.runner == "auto" and in_flow):
        assert flow_run is not None
        return flow_run.runner(
            options.name,
            options.tags,
            options.most_at_once,
            arguments.task_runs,
            loop,
        )
    if options.runner == "processes":
        if is_coroutine_function(handler):
            raise UsageError(
                f"{options.name}: a coroutine handler cannot run in processes",
                remedy="Leave runner= out, or make the handler a plain function",
            )
        from resumable_tasks.runners.processes import ProcessRunner

        return ProcessRunner(options.most_at_once)
    if is_coroutine_function(handler):
        from resumable_tasks.runners.eventloop import AsyncRunner

        return AsyncRunner(options.most_at_once, loop)
    return ThreadRunner(options.most_at_once)


def _submitting(handler: Any, options: JobOptions, arguments: RunArguments) -> Runner:
    if options.runner != "auto" or options.adaptive is not None:
        raise UsageError(
            f"{options.name}: work that is submitted to a service runs in the driver's own "
            "threads, with a fixed number of submissions at once",
            remedy="Leave runner= out, and give concurrency= a number",
        )
    _check_price(handler, options)
    from resumable_tasks.runners.submitted.runner import SubmittedRunner

    return SubmittedRunner(
        options.most_at_once, wait=arguments.wait_seconds, ask=arguments.on_unknown == "ask"
    )


def _check_price(handler: Any, options: JobOptions) -> None:
    if options.budget.of_money and not callable(getattr(handler, "price", None)):
        raise UsageError(
            f"{options.name}: a budget of money counts what is out by its expected cost, which "
            f"{type(handler).__name__} does not tell",
            remedy="Give it a method price(items) that returns the expected cost of a submission "
            "(OpenAIBatch and AnthropicBatch: prices=), or leave cost= and total= out of the "
            "budget",
        )
