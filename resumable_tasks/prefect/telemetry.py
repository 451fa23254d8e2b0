"""Shows a run in Prefect's UI by artifacts and events. Best effort: no batch ever waits for it.

A commit only adds to a sum, under a lock that nobody holds for long. A separate thread calls the
API: once a second (less often in a long run) it sends one event for all commits since the last, and
updates the progress. At the end it sends the summary and the failures.
"""

from __future__ import annotations

import datetime
import functools
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import copy_context
from dataclasses import dataclass

from prefect.client.orchestration import get_client
from prefect.events import emit_event

from resumable_tasks.base import log
from resumable_tasks.base.text import count
from resumable_tasks.engine.events import Committed, Event, RunFinished, RunStarted
from resumable_tasks.prefect.artifacts import Artifacts, Failed, Summary
from resumable_tasks.results.result import RunResult

COMMITTED = "resumable-tasks.batch.committed"
RESOURCE = "resumable-tasks.checkpoint"
# The pause between two events or updates of the progress: a second at first, later a hundredth of
# the time so far. Prefect's server takes some hundred events a second and silently drops the rest.
_UPDATE_SECONDS = 1.0
_SLOWEST_UPDATE_SECONDS = 10.0
_CALL_SECONDS = 30.0
# How long a run that has ended waits until its summary is accepted. Less if it is interrupted: it
# may be killed soon, and must report the last state of its flow run before that.
_LAST_WORD_SECONDS = 10.0
_LAST_WORD_INTERRUPTED_SECONDS = 3.0


@dataclass(slots=True)
class _Sum:
    """The sum of several commits."""

    commits: int = 0
    completed: int = 0
    failed: int = 0
    parked: int = 0
    rows: int = 0
    bytes: int = 0
    last: Committed | None = None
    at: datetime.datetime | None = None

    def add(self, event: Committed) -> None:
        self.commits += 1
        self.completed += event.completed
        parked = sum(failure.parked for failure in event.failures)
        self.parked += parked
        self.failed += len(event.failures) - parked
        self.rows += event.rows
        self.bytes += event.bytes
        self.last, self.at = event, datetime.datetime.now(datetime.UTC)


class Telemetry:
    """The listener that shows one run."""

    def __init__(self, where: Mapping[str, str]) -> None:
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        # The commits since the last event, and those of the whole run.
        self._new, self._all = _Sum(), _Sum()
        self._failed = Failed(where)
        self._summary: Summary | None = None
        self._finished: RunFinished | None = None
        # What could not be shown, as logged already.
        self._failing: set[str] = set()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._thread = threading.Thread(
                target=copy_context().run,
                args=(self._run, event),
                name="resumable-telemetry",
                daemon=True,
            )
            self._thread.start()
        elif isinstance(event, Committed):
            with self._changed:
                self._new.add(event)
                self._all.add(event)
                self._failed.add(event.failures)
        elif isinstance(event, RunFinished) and self._thread is not None:
            with self._changed:
                self._finished = event
                self._changed.notify()
            interrupted = event.how in ("interrupted", "spent")
            self._thread.join(_LAST_WORD_INTERRUPTED_SECONDS if interrupted else _LAST_WORD_SECONDS)
            if self._thread.is_alive():
                log.warning(
                    "Prefect's API does not respond; the run's summary may be missing there"
                )

    def _run(self, started: RunStarted) -> None:
        """The thread's function."""
        try:
            # A separate client, because the flow run's is closed when the flow ends.
            with get_client({"timeout": _CALL_SECONDS}, sync_client=True) as client:
                self._show(Artifacts(client, started))
        except Exception as error:  # noqa: BLE001 - a run does not fail because it is not shown
            log.warning("cannot show this run in Prefect's UI: %r", error)

    def _show(self, artifacts: Artifacts) -> None:
        pause, began = 0.0, time.monotonic()
        finished: RunFinished | None = None
        while finished is None:
            with self._changed:
                self._changed.wait_for(lambda: self._finished is not None, pause)
                commits, self._new = self._new, _Sum()
                last, finished = self._all.last, self._finished
            if commits.commits:
                self._try("a commit", functools.partial(_emit, commits))
            if finished is None or not pause:  # at least once, because the summary links to it
                progress = last.progress if last is not None else None
                self._try("the progress", functools.partial(artifacts.show_progress, progress))
            pause = max(_UPDATE_SECONDS, (time.monotonic() - began) / 100)
            pause = min(pause, _SLOWEST_UPDATE_SECONDS)
        failed = self._failed
        if isinstance(finished.result, RunResult):  # it also has failures outside of commits
            failed = Failed(failed.where)
            failed.add((*finished.result.failures, *finished.result.parked_items))
        if failed.first:
            self._try("the table of failures", lambda: artifacts.show_failures(failed))
        self._try("the summary", lambda: self._show_summary(artifacts, finished, failed))
        self._try("the progress", lambda: artifacts.show_progress(finished.progress, finished.how))
        if failed.first:
            self._try("the table of failures", lambda: artifacts.show_failures(failed))

    def _show_summary(self, artifacts: Artifacts, finished: RunFinished, failed: Failed) -> None:
        commits = self._all
        writing = (
            f"{count(commits.rows, 'row')}, {count(commits.bytes, 'byte')}, "
            f"in {count(commits.commits, 'commit')}"
        )
        self._summary = artifacts.show_summary(finished, writing, failed)

    def published(self, dest: str, rows: int) -> None:
        """Show in the summary where the rows of this run were published."""
        if self._summary is None:
            return
        try:
            with get_client({"timeout": _CALL_SECONDS}, sync_client=True) as client:
                self._summary = self._summary.published(client, dest, rows)
        except Exception as error:  # noqa: BLE001 - the rows are published anyway
            log.warning("cannot show in Prefect's UI where this run was published: %r", error)

    def _try(self, what: str, call: Callable[[], None]) -> None:
        """Show something. Logs a failure once, until it works again."""
        try:
            call()
            self._failing.discard(what)
        except Exception as error:  # noqa: BLE001 - a run does not fail because it is not shown
            if what not in self._failing:
                log.warning("cannot show %s of this run in Prefect's UI: %r", what, error)
            self._failing.add(what)


def _emit(commits: _Sum) -> None:
    last = commits.last
    assert last is not None
    emit_event(
        COMMITTED,
        occurred=commits.at,
        resource={
            "prefect.resource.id": f"{RESOURCE}.{last.checkpoint}",
            "prefect.resource.name": last.checkpoint,
            # Automations can match these, but not the payload.
            "resumable-tasks.job": last.job,
            "resumable-tasks.run": last.run,
            "resumable-tasks.failed": str(commits.failed),
        },
        payload={
            "job": last.job,
            "checkpoint": last.checkpoint,
            "run": last.run,
            "commits": commits.commits,
            "record": last.number,
            "completed": commits.completed,
            "failed": commits.failed,
            "parked": commits.parked,
            "rows": commits.rows,
            "bytes": commits.bytes,
            "completed_by_now": last.progress.completed + last.progress.skipped,
            "failed_by_now": last.progress.failed,
            "expected": last.progress.expected,
        },
    )
