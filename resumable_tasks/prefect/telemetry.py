"""What Prefect's UI shows of a run: artifacts and events. Best effort: it never holds a batch up.

Whoever commits only leaves word here, under a lock that nobody holds for long. A thread of this
module tells Prefect: an event at every commit, the progress now and then, at the end the summary
and the failures. It alone waits for the API, with all of Prefect's patience; what is committed
meanwhile is told later, summed up.
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
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.events import emit_event
from prefect.runtime import flow_run, task_run

from resumable_tasks.base import log
from resumable_tasks.engine.events import Committed, Event, Progress, RunFinished, RunStarted
from resumable_tasks.engine.progress import describe
from resumable_tasks.prefect.markdown import block, code, literal
from resumable_tasks.runners.outcome import Failure

COMMITTED = "resumable-tasks.batch.committed"
RESOURCE = "resumable-tasks.checkpoint"
# Prefect's server takes some hundred events a second; it keeps 10,000 waiting and drops the rest
# without a word. So a run has no more than these, and half as many after every thousand.
_EVENTS_AT_ONCE = 50
_EVENTS_A_SECOND = 10.0
_EVENTS_TO_HALF = 1_000
# The progress, every three seconds at first; later, after every hundredth of the time so far.
_UPDATE_SECONDS = 3.0
_SLOWEST_UPDATE_SECONDS = 10.0
_CALL_SECONDS = 30.0
# A run that has ended waits so long for its summary to be taken. One that is interrupted may be
# killed soon, and has to tell the last state of its flow run before that.
_LAST_WORD_SECONDS = 10.0
_LAST_WORD_INTERRUPTED_SECONDS = 3.0
_FAILURES_SHOWN = 200
_HOW = {
    "done": "done",
    "failed": "items failed",
    "interrupted": "interrupted",
    "error": "ended by an error",
}
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
    rows: int = 0
    bytes: int = 0
    last: Committed | None = None
    at: datetime.datetime | None = None

    def add(self, event: Committed) -> None:
        self.commits += 1
        self.completed += event.completed
        self.failed += len(event.failures)
        self.rows += event.rows
        self.bytes += event.bytes
        self.last, self.at = event, datetime.datetime.now(datetime.UTC)

    def and_then(self, later: _Sum) -> _Sum:
        return _Sum(
            self.commits + later.commits,
            self.completed + later.completed,
            self.failed + later.failed,
            self.rows + later.rows,
            self.bytes + later.bytes,
            later.last,
            later.at,
        )


@dataclass(slots=True)
class _Word:
    """What there is to tell."""

    untold: list[_Sum] = field(default_factory=list)
    all: _Sum = field(default_factory=_Sum)
    failures: list[Failure] = field(default_factory=list)
    finished: RunFinished | None = None


class Telemetry:
    """A listener of one run."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._word = _Word()
        self._failing: set[str] = set()

    def __call__(self, event: Event) -> None:
        word = self._word
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
                if len(word.untold) < _EVENTS_AT_ONCE:
                    word.untold.append(_Sum())
                word.untold[-1].add(event)
                word.all.add(event)
                word.failures.extend(event.failures[: _FAILURES_SHOWN - len(word.failures)])
                if len(word.untold) == 1:
                    self._changed.notify()
        elif isinstance(event, RunFinished) and self._thread is not None:
            with self._changed:
                word.finished = event
                self._changed.notify()
            interrupted = event.how == "interrupted"
            self._thread.join(_LAST_WORD_INTERRUPTED_SECONDS if interrupted else _LAST_WORD_SECONDS)
            if self._thread.is_alive():
                log.warning("Prefect's API does not answer; the run's summary may be missing there")

    def _run(self, started: RunStarted) -> None:
        """The thread."""
        try:
            # A client of its own: that of the flow run is closed when the flow ends.
            with get_client({"timeout": _CALL_SECONDS}, sync_client=True) as client:
                self._tell(_Artifacts(client, started))
        except Exception as error:  # noqa: BLE001 - it decides nothing, and is said
            log.warning("this run is not shown in Prefect's UI: %r", error)

    def _tell(self, artifacts: _Artifacts) -> None:
        pace, due, began = _Pace(), 0.0, time.monotonic()
        finished: RunFinished | None = None
        while finished is None:
            untold, last, finished = self._wait(due, pace)
            for commits in untold:
                self._try("a commit", functools.partial(_emit, commits))
            now = time.monotonic()
            if finished is None and now >= due:
                progress = last.progress if last is not None else None
                self._try("the progress", functools.partial(artifacts.show_progress, progress))
                pause = max(_UPDATE_SECONDS, (now - began) / 100)
                due = time.monotonic() + min(pause, _SLOWEST_UPDATE_SECONDS)
        word = self._word  # nothing is added any more
        if word.failures:
            self._try(
                "the table of failures",
                lambda: artifacts.show_failures(word.failures, word.all.failed),
            )
        self._try("the summary", lambda: artifacts.show_summary(finished, word.all))
        self._try("the progress", lambda: artifacts.show_progress(finished.progress, finished.how))

    def _wait(
        self, due: float, pace: _Pace
    ) -> tuple[list[_Sum], Committed | None, RunFinished | None]:
        """Wait for something to tell: commits, the time for the progress, the end."""
        word = self._word
        with self._changed:
            while word.finished is None and (left := due - time.monotonic()) > 0:
                if word.untold:
                    left = min(left, pace.wait())
                    if left <= 0:
                        break
                self._changed.wait(left)
            untold: list[_Sum] = []
            if word.untold and (word.finished is not None or pace.wait() <= 0):
                untold, word.untold = word.untold, []
                if not pace.take(len(untold)):
                    untold = [functools.reduce(_Sum.and_then, untold)]
                    pace.take(1)
            return untold, word.all.last, word.finished

    def _try(self, what: str, call: Callable[[], None]) -> None:
        """Show something; that it fails is said once, until it works again."""
        try:
            call()
            self._failing.discard(what)
        except Exception as error:  # noqa: BLE001 - it decides nothing, and is said
            if what not in self._failing:
                log.warning("%s of this run is not shown in Prefect's UI: %r", what, error)
            self._failing.add(what)


class _Pace:
    """How soon the next event may go out, and how many at once."""

    def __init__(self) -> None:
        self._allowance, self._at = float(_EVENTS_AT_ONCE), time.monotonic()
        self._taken = 0

    def wait(self) -> float:
        """Seconds; 0 or less if one may go out now."""
        rate: float = _EVENTS_A_SECOND * 2.0 ** (-self._taken / _EVENTS_TO_HALF)
        now = time.monotonic()
        earned = (now - self._at) * rate
        self._allowance, self._at = min(_EVENTS_AT_ONCE, self._allowance + earned), now
        return (1 - self._allowance) / rate

    def take(self, events: int) -> bool:
        """Whether so many may go out; a single one may do so at any time."""
        if events > max(self._allowance, 1):
            return False
        self._allowance -= events
        self._taken += events
        return True


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
            f"{_HOW.get(finished.how, finished.how)}: {progress.skipped:,} resumed, "
            f"{progress.completed:,} new, {progress.failed:,} failed"
            f"\n\n{code(finished.checkpoint)}"
        )
        self._create("summary", "markdown", text, summary(finished, commits))

    def show_failures(self, failures: list[Failure], failed: int) -> None:
        started = self._started
        text = f"{failed:,} items of {literal(started.job)} failed"
        if failed > len(failures):
            more = failed - len(failures)
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
    """How far a run is, from 0 to 100; 0 as long as it is not known how many items there are."""
    if how == "done":
        return 100.0
    handled = progress.completed + progress.skipped + progress.failed
    # A run that has failed has been at all items; there may have been no telling how many.
    expected = handled if progress.expected is None and how == "failed" else progress.expected
    return min(100.0, round(100 * handled / expected, 1)) if expected else 0.0


def artifact_key(job: str) -> str:
    """The job's name as Prefect wants the keys of artifacts: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-") or "job"


def summary(finished: RunFinished, commits: _Sum) -> str:
    """The markdown artifact."""
    progress = finished.progress
    rate = progress.rate
    shown = "–" if rate is None else f"{rate:,.0f}" if rate >= 100 else f"{rate:,.2g}"
    counts = {
        "resumed": f"{progress.skipped:,} items",
        "new": f"{progress.completed:,} items",
        "failed": f"{progress.failed:,} items",
        "rate": f"{shown} items a second",
        "time": f"{progress.seconds:,.1f} s",
        "written": f"{commits.rows:,} rows, {commits.bytes:,} bytes, "
        f"in {commits.commits:,} commits",
    }
    handled = progress.completed + progress.skipped + progress.failed
    if progress.expected is not None and handled < progress.expected and finished.how != "done":
        counts["not handled"] = f"{progress.expected - handled:,} items"
    lines = [
        f"## {literal(finished.job)}: {_HOW.get(finished.how, finished.how)}",
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
