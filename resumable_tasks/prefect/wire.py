"""Sending work from the driver to other processes: the handler, the context, the pool."""

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
    """Pickle the work for this many processes.

    A handler of an importable module is pickled by name, any other by its code. Raises `UsageError`
    if that is impossible.
    """
    handler, module = work.handler, str(getattr(work.handler, "__module__", None))
    # The module names of scripts, and of files that Prefect loads by path, exist only here.
    if not module.startswith("__") and has_name(handler):
        handler = HandlerReference(handler)
    elif module.startswith("__prefect_loader") and module in sys.modules:
        cloudpickle.register_pickle_by_value(sys.modules[module])
    try:
        data = bytes(cloudpickle.dumps(shippable(work, handler, processes)))
    except Exception as error:
        raise UsageError(
            f"the handler cannot be sent to another process: {error}. Let it create or import what "
            "it needs (a client, a lock, a connection) when called"
        ) from error
    if len(data) > _LARGE:
        log.warning(
            "the handler has %.0f MB, which are sent with every task run: let it load what it "
            "needs when called",
            len(data) / 1e6,
        )
    return data


def lean_context() -> AbstractContextManager[Any]:
    """A context of the surrounding flow run without the flow's function.

    Prefect sends the flow with every task run: a script's flow with everything that it refers to,
    including the items, and a module's flow by a name that workers may not know.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None:
        return nullcontext()
    flow = Flow(no_flow, name=context.flow.name, log_prints=context.flow.log_prints)
    return context.model_copy(update={"flow": flow})


# Several runs of one flow share its pool.
_renewing = threading.Lock()


def renew_pool() -> None:
    """Replace the process pool, if there is one, and kill the processes of the old one.

    A pool that has lost a process accepts nothing any more. The others are killed because Prefect
    waits for each of them, here and at the end of the flow, even if it hangs.
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
