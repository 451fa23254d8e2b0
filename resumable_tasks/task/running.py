"""Carries out a run in the caller's thread or event loop, with signals, in or outside a flow run.

Loaded only when a job runs, so a program that only defines one pays nothing for it, nor for
``asyncio`` without coroutines.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import AsyncIterable, Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from typing import Any
from weakref import WeakKeyDictionary

from resumable_tasks.base.signals import Interrupts
from resumable_tasks.errors import Interrupted, UsageError
from resumable_tasks.items.reading import is_read_by_iteration
from resumable_tasks.items.sources import Fed, Handed, Pulled, accompany, in_event_loop
from resumable_tasks.prefect.detect import current_flow_run
from resumable_tasks.results.result import RunResult
from resumable_tasks.task.arguments import RunArguments
from resumable_tasks.task.options import JobOptions
from resumable_tasks.task.run import Run


def run(fn: Callable[..., Any], options: JobOptions, arguments: RunArguments) -> RunResult:
    """Carry out a run in this thread."""
    if (picture := _drawn(options, arguments)) is not None:
        return picture
    if isinstance(arguments.items, AsyncIterable):
        if in_event_loop():
            raise UsageError(
                f"{options.name}: items is an async iterable and an event loop is running: "
                "`await task.arun(items, …)`",
                remedy="Use `await task.arun(items, …)`",
            )
        from resumable_tasks.runners.eventloop import long_lived

        # Handlers run on this loop too, so that a client can serve both.
        pulled = Pulled(arguments.items, long_lived())
        arguments = dataclasses.replace(arguments, items=pulled)
    flow_run = current_flow_run()
    handed = None
    if flow_run is not None or options.linger is not None:
        handed = _handed(arguments.items)
    if handed is not None:
        arguments = dataclasses.replace(arguments, items=handed)
    job_run = Run(fn, options, arguments, flow_run=flow_run)
    if flow_run is None:
        with Interrupts(job_run.request_stop, grace_seconds=options.grace_seconds):
            return _carried_out(job_run, handed)
    interrupts = Interrupts(job_run.request_stop, grace_seconds=options.grace_seconds)
    with interrupts, flow_run.logging():
        return flow_run.accompany(job_run.carry_out, handed, job_run.request_stop)


def _drawn(options: JobOptions, arguments: RunArguments) -> RunResult | None:
    """The stand-in for a result while Prefect only draws the flow; otherwise None."""
    if "prefect.utilities.visualization" not in sys.modules:
        return None
    from resumable_tasks.prefect.drawing import drawn

    return drawn(options.name, arguments.items)


def _carried_out(job_run: Run, handed: Handed | None) -> RunResult:
    """Carry out a run; this thread reads its ``handed`` items, if there are any."""
    if handed is None:
        return job_run.carry_out()
    result, failure, signal = accompany(job_run.carry_out, handed, job_run.request_stop)
    if signal is not None:
        raise signal from failure
    if failure is not None:
        raise failure
    assert result is not None
    return result


def _handed(items: Any) -> Handed | None:
    """The items wrapped for this thread to read them, if reading them runs user code."""
    if isinstance(items, Fed) or not is_read_by_iteration(items):
        return None
    return Handed(items)


async def arun(fn: Callable[..., Any], options: JobOptions, arguments: RunArguments) -> RunResult:
    """Carry out a run for the running event loop, in another thread."""
    import asyncio

    if (picture := _drawn(options, arguments)) is not None:
        return picture
    loop = asyncio.get_running_loop()
    if isinstance(arguments.items, AsyncIterable):
        arguments = dataclasses.replace(arguments, items=Pulled(arguments.items, loop))
    handed = _handed(arguments.items) if options.linger is not None else None
    if handed is not None:
        arguments = dataclasses.replace(arguments, items=handed)
    flow_run = current_flow_run()
    job_run = Run(fn, options, arguments, loop=loop, flow_run=flow_run)
    with (
        Interrupts(job_run.request_stop, event_loop=True, grace_seconds=options.grace_seconds),
        flow_run.logging() if flow_run is not None else nullcontext(),
    ):
        # Not a task: an exception that ends the event loop, as Prefect's at SIGTERM, cancels all
        # tasks, and nobody could wait for the thread of a cancelled task.
        call = functools.partial(_carried_out, job_run, handed)
        carry_out = functools.partial(copy_context().run, _outcome, call)
        work = loop.run_in_executor(None, carry_out)
        on_loop = _on_loops.setdefault(loop, {})
        on_loop[work] = job_run
        try:
            if flow_run is not None:
                await flow_run.watch(work, job_run.request_stop)
            result, error = await asyncio.shield(work)
            if error is not None and not isinstance(error, Exception):
                await _others_that_stop(on_loop)
        except asyncio.CancelledError:
            job_run.request_stop("a cancel", False)
            try:
                with _shielded():
                    await asyncio.wait([work])
            except asyncio.CancelledError:
                job_run.request_stop("a second cancel", True)
                raise
            result, error = work.result()
            if error is None or isinstance(error, Interrupted):
                if flow_run is not None:
                    flow_run.tell_of(error)
                raise
        finally:
            del on_loop[work]
        if error is not None:
            raise error if flow_run is None else flow_run.translated(error)
    assert result is not None
    return result


# The runs of each event loop, by the futures of their ends.
_on_loops: WeakKeyDictionary[Any, dict[Any, Run]] = WeakKeyDictionary()


async def _others_that_stop(on_loop: dict[Any, Run]) -> None:
    """Wait for the other runs that the same signal stops.

    The first run's `Interrupted` ends the event loop, and the calls of the others with it.
    """
    import asyncio

    if works := [
        work for work, other in on_loop.items() if other.asked_to_stop and not work.done()
    ]:
        await asyncio.wait(works)


def _shielded() -> AbstractContextManager[Any]:
    """A shield in which one cancel counts once.

    A scope of anyio, such as a flow's timeout, repeats its cancel at every wait. That would count
    as a second request to stop, which abandons the running batches.
    """
    anyio = sys.modules.get("anyio")
    return anyio.CancelScope(shield=True) if anyio is not None else nullcontext()


def _outcome(call: Callable[[], RunResult]) -> tuple[RunResult | None, BaseException | None]:
    """The result or error of a call. Returns errors, since `Interrupted` would end the loop."""
    try:
        return call(), None
    except BaseException as error:  # noqa: BLE001 - raised by the caller
        return None, error
