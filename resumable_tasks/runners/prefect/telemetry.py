"""What Prefect's UI shows of a run: artifacts and events. Best effort: it never holds a batch up.

An event goes out at every commit, by Prefect's own queue; if commits come faster than Prefect's
server can take events, several share one. Artifacts need calls of the API, which a thread of
this module makes: whoever commits only leaves word here.
"""

from __future__ import annotations

import functools
import re
import shlex
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.events import emit_event

from resumable_tasks import log
from resumable_tasks.events import Committed, Event, Progress, RunFinished, RunStarted
from resumable_tasks.model import Failure
from resumable_tasks.progress import describe
from resumable_tasks.text import clean

COMMITTED = "resumable-tasks.batch.committed"
RESOURCE = "resumable-tasks.checkpoint"
# Prefect's server takes a few hundred events a second, and drops what is more without a word.
_EVENTS_AT_ONCE = 50
_EVENTS_A_SECOND = 10.0
_UPDATE_SECONDS = 3.0
# If the API does not answer, the flow goes on without the last artifacts.
_LAST_WORD_SECONDS = 10.0
_FAILURES_SHOWN = 200
# Else Prefect gives a coroutine if the flow is a coroutine, wherever it is called.
_SYNC: dict[str, Any] = {"_sync": True}


class Telemetry:
    """A listener of one run."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._changed = threading.Condition()
        self._latest: Progress | None = None
        self._finished: RunFinished | None = None
        self._commits = _Commits()
        self._seen = _Seen()

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._seen.found, self._seen.expected = event.found, event.expected
            self._thread = threading.Thread(
                target=copy_context().run,
                args=(self._show, event),
                name="resumable-telemetry",
                daemon=True,
            )
            self._thread.start()
        elif isinstance(event, Committed):
            self._seen.add(event)
            self._commits.add(event)
            with self._changed:
                self._latest = event.progress
        elif isinstance(event, RunFinished) and self._thread is not None:
            self._commits.flush()
            with self._changed:
                self._finished = event
                self._changed.notify()
            self._thread.join(_LAST_WORD_SECONDS)

    def _show(self, started: RunStarted) -> None:
        """The thread: the progress, now and then; at the end the summary and the failures."""
        key = artifact_key(started.job)
        shown: Progress | None = None
        artifact: UUID | None = None
        total = started.expected

        def show(progress: Progress) -> None:
            nonlocal artifact
            share, text = percent(progress, total), f"{started.job}: {describe(progress)}"
            if artifact is None:
                made = create_progress_artifact(share, f"{key}-progress", text, **_SYNC)
                assert isinstance(made, UUID)
                artifact = made
            else:
                update_progress_artifact(artifact, share, text, **_SYNC)

        _try(lambda: show(Progress(0, 0, 0, total, 0.0)))
        while True:
            with self._changed:
                if self._finished is None:
                    self._changed.wait(_UPDATE_SECONDS)
                finished, latest = self._finished, self._latest
            if finished is not None:
                break
            if latest is not None and latest is not shown:
                shown = latest
                _try(functools.partial(show, latest))
        if finished.how == "done":
            total = total or finished.progress.completed + finished.progress.skipped
        _try(lambda: show(finished.progress))
        summary = self._seen.summary(finished)
        _try(
            lambda: create_markdown_artifact(summary, f"{key}-summary", started.checkpoint, **_SYNC)
        )
        if self._seen.failures:
            table = self._seen.table()
            about = f"{self._seen.failed:,} items of {started.job} failed"
            _try(lambda: create_table_artifact(table, f"{key}-failures", about, **_SYNC))


def _try(call: Callable[[], Any]) -> None:
    try:
        call()
    except Exception as error:  # noqa: BLE001 - it decides nothing, and is said
        log.warning("Prefect's API did not take an artifact: %r; the run goes on", error)


def percent(progress: Progress, total: int | None) -> float:
    """How far a run is, from 0 to 100; 0 where the items have no length."""
    if not total:
        return 0.0
    done = progress.completed + progress.skipped + progress.failed
    return min(100.0, round(100 * done / total, 1))


def artifact_key(job: str) -> str:
    """The job's name as Prefect wants the keys of artifacts: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-") or "job"


class _Commits:
    """Commits as events: each its own, as long as they are not too many."""

    def __init__(self) -> None:
        self._allowance = float(_EVENTS_AT_ONCE)
        self._at = time.monotonic()
        self._held: list[Committed] = []

    def add(self, event: Committed) -> None:
        now = time.monotonic()
        earned = (now - self._at) * _EVENTS_A_SECOND
        self._allowance, self._at = min(_EVENTS_AT_ONCE, self._allowance + earned), now
        self._held.append(event)
        if self._allowance >= 1:
            self._allowance -= 1
            self.flush()

    def flush(self) -> None:
        if not self._held:
            return
        held, self._held = self._held, []
        last = held[-1]
        emit_event(
            COMMITTED,
            resource={
                "prefect.resource.id": f"{RESOURCE}.{last.checkpoint}",
                "prefect.resource.name": last.checkpoint,
                "resumable-tasks.job": last.job,
                "resumable-tasks.run": last.run,
            },
            payload={
                "job": last.job,
                "checkpoint": last.checkpoint,
                "run": last.run,
                "commits": len(held),
                "record": last.number,
                "completed": sum(event.completed for event in held),
                "failed": sum(len(event.failures) for event in held),
                "rows": sum(event.rows for event in held),
                "bytes": sum(event.bytes for event in held),
                "completed_by_now": last.progress.completed + last.progress.skipped,
                "expected": last.progress.expected,
            },
        )


@dataclass(slots=True)
class _Seen:
    """What the summary is made of."""

    found: int = 0
    expected: int | None = None
    rows: int = 0
    bytes: int = 0
    commits: int = 0
    failed: int = 0
    failures: tuple[Failure, ...] = ()

    def add(self, event: Committed) -> None:
        self.rows += event.rows
        self.bytes += event.bytes
        self.commits += 1
        self.failed += len(event.failures)
        if len(self.failures) < _FAILURES_SHOWN:
            self.failures = (*self.failures, *event.failures)[:_FAILURES_SHOWN]

    def summary(self, finished: RunFinished) -> str:
        """The markdown artifact."""
        progress = finished.progress
        rate = f"{progress.rate:,.2g} items a second" if progress.rate else "–"
        if progress.rate and progress.rate >= 100:
            rate = f"{progress.rate:,.0f} items a second"
        place = finished.checkpoint
        return (
            f"## {finished.job}: {_HOW.get(finished.how, finished.how)}\n\n"
            "| | |\n| --- | --- |\n"
            f"| resumed | {progress.skipped:,} items |\n"
            f"| new | {progress.completed:,} items |\n"
            f"| failed | {progress.failed:,} items |\n"
            f"| rate | {rate} |\n"
            f"| time | {progress.seconds:,.1f} s |\n"
            f"| written | {self.rows:,} rows, {self.bytes:,} bytes, in {self.commits:,} commits |\n"
            f"| checkpoint | `{place}` |\n\n"
            f"```sh\nresumable status {shlex.quote(place)}\n```\n"
        )

    def table(self) -> list[dict[str, Any]]:
        """The table artifact: the first failures of the run."""
        return [
            {
                "key": clean(repr(failure.key), 200),
                "error": failure.error,
                "message": clean(failure.message, 300),
                "attempts": failure.attempts,
            }
            for failure in self.failures
        ]


_HOW = {
    "done": "done",
    "failed": "items failed",
    "interrupted": "interrupted; run again to resume",
    "error": "ended by an error; run again to resume",
}
