"""The flow run around a run: its logger, identity and runner, and Prefect's signals."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from prefect.context import FlowRunContext, TaskRunContext
from prefect.exceptions import Abort
from prefect.logging import get_run_logger
from prefect.task_runners import ThreadPoolTaskRunner

from resumable_tasks.base import log
from resumable_tasks.engine.events import Listener
from resumable_tasks.errors import (
    CheckpointHeld,
    CheckpointUnusable,
    Interrupted,
    Unfinished,
    UsageError,
    Waiting,
)
from resumable_tasks.items.sources import Handed, accompany
from resumable_tasks.prefect import leaving, remote, threads
from resumable_tasks.prefect.cancels import CancelWatch
from resumable_tasks.prefect.limits import GlobalLimit
from resumable_tasks.prefect.task_runs import Causes, TaskRuns
from resumable_tasks.prefect.telemetry import Telemetry
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.limits import Gate

T = TypeVar("T")

_POLL_SECONDS = 0.2


class FlowRun:
    """The flow run, or a task run in one, in which a job runs."""

    def __init__(self) -> None:
        context = FlowRunContext.get()
        if context is None or context.flow_run is None:
            raise UsageError(
                "no flow run is active here",
                remedy="Call it in a Prefect @flow function",
            )
        self._context = context
        self.id = str(context.flow_run.id)
        self.in_task_run = TaskRunContext.get() is not None
        self._cancels: CancelWatch | None = None
        self.leaves_while_waiting = False
        self._causes = Causes()
        self._telemetry = Telemetry(self._causes.where)

    @property
    def identity(self) -> dict[str, str]:
        """The facts about this flow run that the checkpoint records with the run."""
        return {"flow_run": self.id}

    @property
    def scheduled(self) -> bool:
        """True if a schedule has started this flow run, and this is its first try."""
        flow_run = self._context.flow_run
        return flow_run is not None and bool(flow_run.auto_scheduled) and flow_run.run_count <= 1

    @property
    def why_it_stays(self) -> str | None:
        """The reason why it cannot leave its process while a service works; None if it can."""
        return leaving.why_not(self._context)

    @property
    def is_deployed(self) -> bool:
        """True if a worker or ``serve`` has started this process."""
        return "PREFECT__FLOW_RUN_ID" in os.environ

    def check_place(self, place: str) -> None:
        """Raise `CheckpointUnusable` if the checkpoint would vanish with a worker's directory."""
        if "://" in place or os.path.isabs(os.path.expanduser(place)):
            return
        here, temporary = os.getcwd(), os.path.realpath(tempfile.gettempdir())
        if self.is_deployed and os.path.realpath(here).startswith(temporary + os.sep):
            raise CheckpointUnusable(
                f"checkpoint {place!r} is relative to {here}, a temporary folder of the worker, "
                "which is deleted after this flow run together with the checkpoint: give an "
                "absolute path"
            )

    def runner(
        self,
        job: str,
        tags: Sequence[str],
        concurrency: int,
        task_runs: int,
        loop: asyncio.AbstractEventLoop | None,
    ) -> Runner:
        """The runner that handles batches as task runs of the flow's own task runner."""
        here = isinstance(self._context.task_runner, ThreadPoolTaskRunner)
        seconds = threads.SECONDS if here else remote.SECONDS
        runs = TaskRuns(job, tags, task_runs, seconds, self._causes)
        if here:
            return threads.ThreadTaskRuns(concurrency, runs, loop)
        return remote.RemoteTaskRuns(concurrency, runs)

    def gates(self, names: Sequence[str]) -> tuple[Gate, ...]:
        """Prefect's global concurrency limits with these names. Raises `UsageError`."""
        return tuple(GlobalLimit(name).checked() for name in names)

    def telemetry(self) -> Listener:
        """The listener that shows the run in Prefect's UI."""
        return self._telemetry

    def published(self, dest: str, rows: int) -> None:
        """Show in Prefect's UI where the rows of the run were published."""
        self._telemetry.published(dest, rows)

    def show_report(self, job: str, url: str, path: str) -> None:
        """Link to a report in Prefect's UI."""
        from resumable_tasks.prefect.links import show_report

        show_report(job, url, path)

    def accompany(
        self, work: Callable[[], T], items: Handed | None, request_stop: Callable[[str, bool], None]
    ) -> T:
        """Do the work in another thread, while this one supplies items and handles signals.

        Prefect ends a flow run by an exception that it raises anywhere in the main thread: at a
        cancel, SIGTERM, a timeout, or a suspension. See `sources.accompany`. The handler of SIGTERM
        must stay Prefect's own, because otherwise Prefect takes a cancel for a crash.
        """
        self._cancels = CancelWatch(self.id, request_stop)
        with self._cancels:
            result, failure, signal = accompany(work, items, request_stop, self.raise_if_suspended)
        if signal is not None:
            self.tell_of(failure)
            raise signal from failure
        if failure is not None:
            raise self.translated(failure) from failure.__cause__
        return result  # type: ignore[return-value]

    async def watch(
        self, work: asyncio.Future[Any], request_stop: Callable[[str, bool], None]
    ) -> None:
        """`accompany` for an event loop: return when the work has ended or must stop.

        Raises ``CancelledError`` as any awaiting code would, and ``Pause`` once all is committed.
        """
        self._cancels = CancelWatch(self.id, request_stop)
        with self._cancels:
            while not work.done():
                await asyncio.wait([work], timeout=_POLL_SECONDS)
                try:
                    self.raise_if_suspended()
                except BaseException as pause:
                    request_stop(type(pause).__name__, False)
                    await asyncio.wait([work])
                    raise pause from work.result()[1]

    @contextmanager
    def logging(self) -> Iterator[None]:
        """Within this block, log to the logger of this run, which the UI shows."""
        token = log.destination.set(get_run_logger())
        try:
            yield
        finally:
            log.destination.reset(token)

    def tell_of(self, error: BaseException | None) -> None:
        """Log how the run was interrupted, where Prefect is given only the signal that did it."""
        if isinstance(error, Interrupted):
            log.warning("%s", error)

    def raise_if_suspended(self) -> None:
        """Raise Prefect's ``Pause`` once the flow run was suspended from outside."""
        request = getattr(self._context, "flow_run_suspension_request", None)
        if request is not None:
            request.raise_if_requested()

    def translated(self, error: BaseException) -> BaseException:
        """The error in the form for Prefect.

        A run that ended early by itself becomes Failed, because Prefect would take `Interrupted`
        for a crash and rerun it at once. A cancelled run becomes Cancelled.

        If a flow run is executed twice under one id, the execution without the checkpoint must not
        overwrite the other's state. It leaves by Prefect's ``Abort``, which changes no state.
        Prefect does not log the reason, so this method does.
        """
        if isinstance(error, Interrupted) and self._cancels is not None and self._cancels.cancelled:
            log.warning("%s", error)
            self._cancels.confirm()
            return Abort("this flow run was cancelled")
        if isinstance(error, Waiting) and self.leaves_while_waiting:
            return self._left(error)
        if isinstance(error, Interrupted) and error.by_itself:
            return Unfinished(str(error), result=error.result, exit_code=error.exit_code)
        if not isinstance(error, CheckpointHeld) or error.holder.get("flow_run") != self.id:
            return error
        by = error.holder.get("pid"), error.holder.get("host")
        if by == (os.getpid(), os.uname().nodename):
            # This same execution uses one checkpoint twice: a mistake, so the flow fails.
            return error
        why = (
            f"this flow run is already being executed by pid {by[0]} on {by[1]}; this second "
            "execution ends here and does not change the state"
        )
        log.warning("%s: %s", why, error)
        return Abort(why)

    def _left(self, waiting: Waiting) -> BaseException:
        """Arrange that Prefect starts the flow run again. Returns its ``Abort``."""
        assert waiting.look_again_at is not None
        at = waiting.look_again_at.isoformat(timespec="seconds")
        kept = leaving.leave(self.id, waiting.look_again_at, waiting.what)
        if kept:
            log.error("this flow run cannot leave until %s: %s", at, kept)
            return Unfinished(str(waiting), result=waiting.result, exit_code=waiting.exit_code)
        log.info("%s. This process ends; another one will check then", waiting.what)
        return Abort(f"waits for a service until {at}")
