"""The parameters of a run: each one's type, default and text stand here, and nowhere else."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import KW_ONLY
from datetime import date
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.base import checks
from resumable_tasks.base.frozen import frozen
from resumable_tasks.checkpoint.settings import OnVersionChange
from resumable_tasks.engine.budget import Budget
from resumable_tasks.errors import UsageError

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.form import Place
    from resumable_tasks.engine.events import Listener, Progress

OnUnknown = Literal["ask", "resubmit"]
Wait = bool | float | Literal["reschedule"] | None


@frozen
class RunArguments:
    """The parameters of one run.

    Args:
        items: any iterable of items, including generators of any length; an async iterable; an
            Arrow table, record batch, reader or dataset; or a data frame that supports the Arrow
            PyCapsule interface. Read once, lazily. Omit with a `SqlCheckpoint`.
        checkpoint: the checkpoint's directory; by default ``.resumable/<name>/<partition or
            "default">`` under the working directory. A place in a bucket is a URL:
            ``s3://bucket/prefix``, ``gs://…``, ``az://…``. With a `SqlCheckpoint`, the rows of a
            database table are the items.
        partition: which occurrence of a repeating job this is: a string, a date, or for hourly runs
            a datetime, which names the same partition in every time zone. Becomes a folder below
            ``checkpoint``.
        takeover: take the checkpoint over from a stuck run, which can then no longer commit.
        on_version_change: what to do if the checkpoint belongs to another ``version`` of the job:
            ``"error"``, ``"reuse"`` what is completed, or ``"restart"``, which archives the
            checkpoint and is refused while a service still has work of it.
        same_key: declares that ``key`` is another function, or has moved, but gives every item the
            same key as before; completed items stay completed. A sample of the items is checked
            before any is handled, and the run ends with `CheckpointMismatch` if none of them is
            completed.
        budget: a `Budget` for this run. The limits it names replace the job's; the job's other
            limits stay.
        task_runs: approximate maximum number of task runs per flow run in Prefect; batches are
            grouped to stay below it.
        dry_run: only read the items, and report in the result's ``remaining`` how many would be
            handled, and how long that would take and cost at the pace of earlier runs. The handler
            is not called and nothing is written.
        on_progress: called with a `Progress` after every commit.
        listeners: a list of callables; each is called with every event of `resumable_tasks.events`.
        wait: for work submitted to a service: True waits until all of it is collected. A number of
            seconds, or False, submits what there is room for, collects what has ended by then, and
            ends with `Waiting`, which says when to look again. ``"reschedule"``, directly in a flow
            of a deployment, lets the flow run leave its process and resume later in another one.
            The default is ``"reschedule"`` where that is possible, and True elsewhere.
        on_unknown: what to do if it is unknown whether a service accepted a submission, and the
            submission cannot be looked up: ``"ask"`` ends the run and says what to do;
            ``"resubmit"`` submits it again, which may cost twice.
        progress: True shows a progress bar, which by default appears only in a terminal or a
            notebook; False shows neither the bar nor the lines at the start, every minute and at
            the end.
    """

    items: Any = None
    _: KW_ONLY
    checkpoint: str | os.PathLike[str] | Place | None = None
    partition: str | date | None = None
    takeover: bool = False
    on_version_change: OnVersionChange = "error"
    same_key: bool = False
    budget: Budget | None = None
    task_runs: int = 1_000
    dry_run: bool = False
    on_progress: Callable[[Progress], None] | None = None
    listeners: Collection[Listener] = ()
    wait: Wait = None
    on_unknown: OnUnknown = "ask"
    progress: bool | None = None

    def __post_init__(self) -> None:
        checks.choice("on_version_change", self.on_version_change, ("error", "reuse", "restart"))
        for name in ("same_key", "takeover", "dry_run"):
            checks.flag(name, getattr(self, name))
        checks.choice("progress", self.progress, (True, False, None))
        checks.choice("on_unknown", self.on_unknown, ("ask", "resubmit"))
        if self.wait not in (True, False, None, "reschedule") and not checks.is_seconds(self.wait):
            raise UsageError(
                f'wait={self.wait!r} is neither True, False, "reschedule" nor a number of seconds',
                remedy="Give wait= one of them",
            )
        checks.whole_number("task_runs", self.task_runs, 1)
        if self.on_progress is not None and not callable(self.on_progress):
            raise UsageError(
                f"on_progress={self.on_progress!r} is not callable",
                remedy="Give on_progress= a function that takes a Progress",
            )
        if not isinstance(self.listeners, Collection) or not all(map(callable, self.listeners)):
            raise UsageError(
                f"listeners={self.listeners!r} is not a list of callables",
                remedy="Give listeners= a list, such as [function]",
            )
        if self.budget is not None:
            checks.instance("budget", self.budget, Budget, "Budget(items=…, seconds=…, cost=…)")
