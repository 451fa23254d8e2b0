"""The wire from the driver to other processes: the handler, the context, the pool."""

from __future__ import annotations

import sys
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import cloudpickle
from prefect import Flow
from prefect.context import FlowRunContext
from prefect.task_runners import ProcessPoolTaskRunner

from resumable_tasks.base import log
from resumable_tasks.errors import UsageError
from resumable_tasks.prefect.workorder import no_flow
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.pickling import HandlerReference, has_name, shippable

_LARGE = 10_000_000


def pickled(work: Work, processes: int) -> bytes:
    """The work as it crosses, to so many processes.

    A handler of a module crosses by its name, any other by its code.
    Raises `UsageError` if it can't.
    """
    handler, module = work.handler, str(getattr(work.handler, "__module__", None))
    # Scripts, and files that Prefect loads by their path, have names that mean nothing elsewhere.
    if not module.startswith("__") and has_name(handler):
        handler = HandlerReference(handler)
    elif module.startswith("__prefect_loader") and module in sys.modules:
        cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        data = bytes(cloudpickle.dumps(shippable(work, handler, processes)))
    except Exception as error:
        raise UsageError(
            f"the handler cannot be sent to another process: {error}. Let it make or import what "
            "it needs (a client, a lock, a connection) when it is called"
        ) from error
    if len(data) > _LARGE:
        log.warning(
            "the handler takes %.0f MB, which are sent with every task run: let it load what it "
            "needs when it is called",
            len(data) / 1e6,
        )
    return data


def lean_context() -> AbstractContextManager[Any]:
    """The surrounding flow run, without the flow's function.

    Prefect sends the flow with every task run: that of a script with all that it refers to, the
    items among it, that of a module by a name that workers may not know.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None:
        return nullcontext()
    flow = Flow(no_flow, name=context.flow.name, log_prints=context.flow.log_prints)
    return context.model_copy(update={"flow": flow})


# Several runs of one flow share its pool.
_renewing = threading.Lock()


def renew_pool() -> None:
    """Have a new process pool, if it is one, and kill the processes of the old.

    One that has lost a process takes nothing any more. And Prefect waits for each, here and at the
    end of the flow, whatever it is at.
    """
    context = FlowRunContext.get()
    if context is None or not isinstance(context.task_runner, ProcessPoolTaskRunner):
        return
    with _renewing:
        executor = context.task_runner._executor
        if executor is not None:
            for process in list((executor._processes or {}).values()):
                process.kill()
        context.task_runner.__exit__(None, None, None)
        context.task_runner.__enter__()
