"""Chooses the runner of one run by its handler, its options, and the surrounding flow run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.errors import UsageError
from resumable_tasks.prefect.detect import require_prefect
from resumable_tasks.runners.base import Runner, is_coroutine_function
from resumable_tasks.runners.submitted.kind import is_submitted
from resumable_tasks.runners.threads import ThreadRunner
from resumable_tasks.task.arguments import RunArguments, Wait
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
    """The runner of one run. Raises `UsageError` if the options do not fit the handler."""
    if is_submitted(handler) and options.runner != "local":
        return _submitting(handler, options, arguments, flow_run)
    if not callable(handler):
        raise UsageError(
            f'{options.name}: runner="local" calls the handler and waits for its results, but '
            f"{type(handler).__name__} has no __call__(items)",
            remedy="Leave runner= out: its batches are then submitted",
        )
    options.check_has_field(options.known_cost)
    if options.runner == "prefect" and flow_run is None:
        require_prefect('runner="prefect"')
        raise UsageError(
            f'{options.name}: runner="prefect" needs a flow run, and none is active: call it in a '
            'Prefect @flow function, or leave runner="auto"'
        )
    # Within a task run of the user's own, batches are not task runs; they run on our threads.
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


def _submitting(
    handler: Any, options: JobOptions, arguments: RunArguments, flow_run: FlowRun | None
) -> Runner:
    if options.runner != "auto" or options.adaptive is not None:
        raise UsageError(
            f"{options.name}: work submitted to a service runs in the driver's own threads, with a "
            "fixed number of submissions at once",
            remedy="Leave runner= out, and give concurrency= a number",
        )
    from resumable_tasks.runners.submitted.check import check_service
    from resumable_tasks.runners.submitted.runner import SubmittedRunner

    check_service(
        options.name,
        handler,
        batch_size=options.batch_size,
        timeout=options.timeout,
        of_money=options.budget.of_money,
    )
    wait = _wait_seconds(options.name, arguments.wait, flow_run)
    return SubmittedRunner(options.most_at_once, wait=wait, ask=arguments.on_unknown == "ask")


def _wait_seconds(name: str, wait: Wait, flow_run: FlowRun | None) -> float | None:
    """The seconds that the run waits for a service; None: until the end. Raises `UsageError`."""
    if wait not in (None, "reschedule"):
        return None if wait is True else float(wait)
    why_not = "no flow run is active" if flow_run is None else flow_run.why_it_stays
    if flow_run is not None and why_not is None:
        flow_run.leaves_while_waiting = True
        return 0.0
    if wait == "reschedule":
        raise UsageError(
            f'{name}: wait="reschedule" needs a job that runs directly in a flow of a deployment, '
            f"but {why_not}",
            remedy="Leave wait= out: the run then waits in its process",
        )
    if flow_run is not None and flow_run.is_deployed:
        log.warning(
            "%s: %s, so this process waits until the service has finished. If the job runs "
            "directly in the deployment's flow, it leaves the process meanwhile",
            *(name, why_not),
        )
    return None
