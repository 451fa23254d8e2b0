"""Groups of batches; each group is one task run in another process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle

from resumable_tasks.checkpoint.directory.outbox import Outbox
from resumable_tasks.errors import UsageError
from resumable_tasks.items.batch import Batch
from resumable_tasks.prefect.task_runs import TaskRuns
from resumable_tasks.prefect.wire import renew_pool
from resumable_tasks.prefect.workorder import WorkOrder, handle


@dataclass(slots=True, eq=False)
class Group:
    """The batches of one task run, by number; ``missing`` ones have no outcome yet."""

    number: int
    order: WorkOrder
    batches: tuple[int, ...]
    missing: dict[int, Batch]
    isolated: bool = False
    future: Any = None
    ended: bool = False
    complete_since: float | None = None


class Submitter:
    """Makes groups of batches and submits them to Prefect, each as a task run.

    ``work``: the pickled work. ``started``: the number of groups made. ``pool_is_spent``: the
    process pool accepts nothing any more, or still runs abandoned work; it is replaced before the
    next group is submitted, or at the end.
    """

    def __init__(self, runs: TaskRuns, work: bytes, outbox: Outbox) -> None:
        self._runs = runs
        self._outbox = outbox
        self.work = work
        self.started = 0
        self.pool_is_spent = False

    def group(self, batches: list[Batch], isolated: bool) -> Group:
        """Make one more group, not yet submitted."""
        number, outbox = self.started, self._outbox
        self.started += 1
        order = WorkOrder(
            name=(outbox.token, number),
            outbox=cloudpickle.dumps(outbox),
            work=self.work,
            batches=[(b.number, b.keys, b.lines, b.items, _more_of(b), b.trace) for b in batches],
        )
        missing = {batch.number: batch for batch in batches}
        return Group(number, order, tuple(missing), missing, isolated)

    def submit(self, group: Group, ended: Callable[[Group], None]) -> None:
        """Submit a group; ``ended`` is called with it, in any thread, once its task run has ended.

        Raises `UsageError` if Prefect cannot send it.
        """
        if self.pool_is_spent:
            renew_pool()
            self.pool_is_spent = False
        self._outbox.expect(group.number)
        task = self._runs.as_task(handle, self._runs.name(list(group.missing.values())))
        try:
            group.future = task.submit(group.order)
        except (TypeError, AttributeError, RecursionError) as error:
            raise UsageError(
                f"Prefect cannot send a task run to another process: {error}. The flow's "
                "parameters are sent along and must be picklable",
                remedy="Give the flow other parameters, or run it on threads",
            ) from error
        group.future.add_done_callback(lambda _: ended(group))


def _more_of(batch: Batch) -> bytes:
    return bytes(cloudpickle.dumps((batch.part_of, batch.weights)))
