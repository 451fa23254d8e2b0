"""Shows a run in Prefect's UI by artifacts and events. Best effort: no batch ever waits for it.

A commit only adds to a sum, under a lock that nobody holds for long. A thread of this module calls
the API: once a second (less often as a run gets longer) it sends one event for all commits since
the last, and updates the progress; at the end come the summary and the failures.
"""

from __future__ import annotations

import datetime
import functools
import json
import re
import shlex
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events import emit_event
from prefect.runtime import flow_run, task_run

from resumable_tasks.base import log
from resumable_tasks.base.text import count, duration, rate
from resumable_tasks.engine.events import HOW, Committed, Event, Progress, RunFinished, RunStarted
from resumable_tasks.engine.progress import describe
from resumable_tasks.prefect.markdown import block, code, literal
from resumable_tasks.runners.outcome import Failure

COMMITTED = "resumable-tasks.batch.committed"
RESOURCE = "resumable-tasks.checkpoint"
# The pause between two events, and updates of the progress: a second at first; later a hundredth of
# the time so far. Prefect's server takes some hundred events a second, and drops what is too much
# without a word.
_UPDATE_SECONDS = 1.0
_SLOWEST_UPDATE_SECONDS = 10.0
_CALL_SECONDS = 30.0
# A run that has ended waits so long for its summary to be accepted. One that is interrupted may be
# killed soon, and has to report the last state of its flow run before that.
_LAST_WORD_SECONDS = 10.0
_LAST_WORD_INTERRUPTED_SECONDS = 3.0
_FAILURES_SHOWN = 200
_TO_RESUME = (
    "What is done is safe. Start the flow again with the same checkpoint, or retry this flow run: "
    "only what is missing is handled."
)


@dataclass(slots=True)
class _Sum:
    """Commits, added up."""

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
    """A listener of one run."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        # Since the last event, and of the whole run.
        self._new, self._all = _Sum(), _Sum()
        self._failures: list[Failure] = []
        self._finished: RunFinished | None = None
        # What could not be shown, and was warned of.
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
                self._failures.extend(event.failures[: _FAILURES_SHOWN - len(self._failures)])
        elif isinstance(event, RunFinished) and self._thread is not None:
            with self._changed:
                self._finished = event
                self._changed.notify()
            interrupted = event.how in ("interrupted", "spent")
            self._thread.join(_LAST_WORD_INTERRUPTED_SECONDS if interrupted else _LAST_WORD_SECONDS)
            if self._thread.is_alive():
                log.warning("Prefect's API does not answer; the run's summary may be missing there")

    def _run(self, started: RunStarted) -> None:
        """The thread."""
        try:
            # A client of its own: that of the flow run is closed when the flow ends.
            with get_client({"timeout": _CALL_SECONDS}, sync_client=True) as client:
                self._show(_Artifacts(client, started))
        except Exception as error:  # noqa: BLE001 - a run does not fail because it is not shown
            log.warning("this run is not shown in Prefect's UI: %r", error)

    def _show(self, artifacts: _Artifacts) -> None:
        pause, began = 0.0, time.monotonic()
        finished: RunFinished | None = None
        while finished is None:
            with self._changed:
                self._changed.wait_for(lambda: self._finished is not None, pause)
                commits, self._new = self._new, _Sum()
                last, finished = self._all.last, self._finished
            if commits.commits:
                self._try("a commit", functools.partial(_emit, commits))
            if finished is None:
                progress = last.progress if last is not None else None
                self._try("the progress", functools.partial(artifacts.show_progress, progress))
            pause = max(_UPDATE_SECONDS, (time.monotonic() - began) / 100)
            pause = min(pause, _SLOWEST_UPDATE_SECONDS)
        if self._failures:
            self._try(
                "the table of failures",
                lambda: artifacts.show_failures(self._failures, self._all),
            )
        self._try("the summary", lambda: artifacts.show_summary(finished, self._all))
        self._try("the progress", lambda: artifacts.show_progress(finished.progress, finished.how))

    def _try(self, what: str, call: Callable[[], None]) -> None:
        """Show something; a failure is logged once, until it works again."""
        try:
            call()
            self._failing.discard(what)
        except Exception as error:  # noqa: BLE001 - a run does not fail because it is not shown
            if what not in self._failing:
                log.warning("%s of this run is not shown in Prefect's UI: %r", what, error)
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
            # What the trigger of an automation can match; it does not look into the payload.
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


class _Artifacts:
    """The artifacts of one run, of the flow run and task run around."""

    def __init__(self, client: SyncPrefectClient, started: RunStarted) -> None:
        self._client = client
        self._started = started
        self._progress: UUID | None = None
        self._shown: tuple[float, str] | None = None

    def show_progress(self, progress: Progress | None, how: str = "") -> None:
        progress = progress or Progress(0, 0, 0, self._started.expected, 0.0)
        # The checkpoint too: a flow run may run one job several times, for several dates.
        text = f"{describe(progress)}\n\n{code(self._started.checkpoint)}"
        wanted = percent(progress, how), text
        if wanted == self._shown:
            return
        share = wanted[0]
        if self._progress is None:
            self._progress = self._create("progress", "progress", text, share)
        else:
            self._client.update_artifact(
                self._progress, ArtifactUpdate(description=text, data=share)
            )
        self._shown = wanted

    def show_summary(self, finished: RunFinished, commits: _Sum) -> None:
        progress = finished.progress
        text = (
            f"{HOW.get(finished.how, finished.how)}: {progress.skipped:,} resumed, "
            f"{progress.completed:,} new, {progress.failed:,} failed"
            f"{f', {progress.parked:,} parked' if progress.parked else ''}"
            f"\n\n{code(finished.checkpoint)}"
        )
        self._create("summary", "markdown", text, summary(finished, commits))

    def show_failures(self, failures: list[Failure], all_of_them: _Sum) -> None:
        started, failed, parked = self._started, all_of_them.failed, all_of_them.parked
        text = f"{count(failed, 'item')} of {literal(started.job)} failed"
        if parked:
            text += f", {parked:,} parked (kept, and not in the table)"
        if failed + parked > len(failures):
            more = failed + parked - len(failures)
            text += f". The first {len(failures):,} are shown; {more:,} more are listed by"
        else:
            text += ":"
        text += " " + code(f"resumable failures {shlex.quote(started.checkpoint)}")
        rows = [
            {
                "key": literal(repr(failure.key), 200),
                "error": literal(failure.error, 200),
                "attempts": failure.attempts,
                "message": literal(failure.message, 300),
            }
            for failure in failures
        ]
        self._create("failures", "table", text, json.dumps(rows))

    def _create(self, suffix: str, kind: str, description: str, data: str | float) -> UUID:
        artifact = ArtifactCreate(
            key=f"{artifact_key(self._started.job)}-{suffix}",
            type=kind,
            description=description,
            data=data,
            flow_run_id=flow_run.id,
            task_run_id=task_run.id,
        )
        return self._client.create_artifact(artifact).id


def percent(progress: Progress, how: str = "") -> float:
    """The progress of a run from 0 to 100; 0 while the number of items is unknown."""
    if how == "done":
        return 100.0
    handled = progress.handled + progress.skipped
    # A run that has failed has been at all items; there may have been no telling how many.
    expected = handled if progress.expected is None and how == "failed" else progress.expected
    return min(100.0, round(100 * handled / expected, 1)) if expected else 0.0


def artifact_key(job: str) -> str:
    """The job's name as Prefect wants the keys of artifacts: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-") or "job"


def summary(finished: RunFinished, commits: _Sum) -> str:
    """The markdown artifact."""
    progress = finished.progress
    counts = {
        "resumed": count(progress.skipped, "item"),
        "new": count(progress.completed, "item"),
        "failed": count(progress.failed, "item"),
        **({"parked": count(progress.parked, "item")} if progress.parked else {}),
        **({"retried": count(finished.retried, "batch")} if finished.retried else {}),
        "rate": "–" if progress.rate is None else rate(progress.rate),
        "time": duration(progress.seconds),
        **({"bound by": literal(progress.bound_by.sentence)} if progress.bound_by else {}),
        "written": f"{count(commits.rows, 'row')}, {count(commits.bytes, 'byte')}, "
        f"in {count(commits.commits, 'commit')}",
    }
    handled = progress.handled + progress.skipped
    if progress.expected is not None and handled < progress.expected and finished.how != "done":
        counts["not handled"] = count(progress.expected - handled, "item")
    lines = [
        f"## {literal(finished.job)}: {HOW.get(finished.how, finished.how)}",
        "",
        *([] if finished.how == "done" else [_TO_RESUME, ""]),
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in counts.items()),
        "",
        # Not in the table, whose cells end at any | even in code.
        f"checkpoint: {code(finished.checkpoint)}",
        "",
        block(f"resumable status {shlex.quote(finished.checkpoint)}"),
    ]
    return "\n".join(lines)
