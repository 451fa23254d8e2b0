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
        items: any iterable of items, generators of any length included; an async iterable;
            an Arrow table, record batch, reader or dataset; a data frame that speaks the
            Arrow PyCapsule interface. Read once, lazily. Left out with a `SqlCheckpoint`.
        checkpoint: the checkpoint's directory; by default
            ``.resumable/<name>/<partition or "default">`` under the working directory. A place in
            a bucket is a URL: ``s3://bucket/prefix``, ``gs://…``, ``az://…``. Or a
            `SqlCheckpoint`: the rows of a database table are the items.
        partition: which occurrence of a repeating job this is: a text, a date, or for hourly runs
            a datetime, which is the same in every time zone; a folder below ``checkpoint``.
        takeover: take the checkpoint from a run that is stuck; it can no longer commit.
        on_version_change: if the checkpoint is of another ``version`` of the job: ``"error"``,
            ``"reuse"`` what is completed, or ``"restart"``, which archives the checkpoint, and is
            refused while a service has work of it.
        same_key: ``key`` is another function, or has moved, and gives every item the key that it
            had: what is completed stays so. A sample of the items is looked at before any is
            handled, and the run ends with `CheckpointMismatch` if none of them is completed.
        budget: a `Budget` for this run. A limit that it names counts instead of the job's; the
            job's others stay.
        task_runs: about how many task runs a flow run has at most, in Prefect; batches are grouped
            so that there are no more.
        dry_run: only read the items and say, in the result's ``remaining``, how many would be
            handled, and at the pace of earlier runs in what time and at what cost. The handler
            is not called and nothing is written.
        on_progress: called with a `Progress` after every commit.
        listeners: a list of callables; each is called with every event of `resumable_tasks.events`.
        wait: of work that is submitted to a service: wait until all of it is collected. A number of
            seconds, or False: submit what there is room for, collect what has ended by then, and
            end with `Waiting`, which says when to look again. ``"reschedule"``, directly in a
            flow of a deployment: the flow run leaves its process, and comes back by itself in
            another one. By default that where it is possible, and True elsewhere.
        on_unknown: whether a service has accepted a submission is unknown, and it cannot be looked
            for: ``"ask"`` ends the run with what to do, ``"resubmit"`` submits it again, which may
            be paid twice.
        progress: True shows a bar, which by default only a terminal and a notebook do; False
            shows neither a bar nor the lines at the start, once a minute and at the end.
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
                f"on_progress={self.on_progress!r} is no callable",
                remedy="Give on_progress= a function of a Progress",
            )
        if not isinstance(self.listeners, Collection) or not all(map(callable, self.listeners)):
            raise UsageError(
                f"listeners={self.listeners!r} is no list of callables",
                remedy="Give listeners= a list, such as [function]",
            )
        if self.budget is not None:
            checks.instance("budget", self.budget, Budget, "Budget(items=…, seconds=…, cost=…)")
