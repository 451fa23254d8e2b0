"""Batches as task runs of another process would handle them, without Prefect and processes.

The driver's side and the worker's are the real ones; between them is a pickle and a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import cloudpickle

from resumable_tasks.prefect.remote import RemoteTaskRuns
from resumable_tasks.prefect.task_runs import TaskRuns
from resumable_tasks.prefect.worker import handle_group
from resumable_tasks.prefect.workorder import WorkOrder


class Threads(TaskRuns):
    """Each task run in a thread of its own."""

    __slots__ = ()

    def as_task(self, fn: Callable[..., Any], name: str) -> Any:
        return self

    def submit(self, order: WorkOrder) -> Future[None]:
        crossed: WorkOrder = cloudpickle.loads(cloudpickle.dumps(order))
        future: Future[None] = Future()

        def work() -> None:
            try:
                handle_group(crossed)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(None)

        threading.Thread(target=work, daemon=True).start()
        return future


def runner(*_: object) -> RemoteTaskRuns:
    """Two task runs at once, each of a few batches."""
    return RemoteTaskRuns(2, Threads("job", (), 1_000, 0.01))
