"""The linked artifacts of a run in Prefect's UI: its progress, failures and summary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.runtime import flow_run, task_run
from prefect.utilities.urls import url_for

from resumable_tasks.base.text import count, duration, rate, shell_words, without_secrets
from resumable_tasks.engine.events import HOW, Progress, RunFinished, RunStarted
from resumable_tasks.engine.progress import describe
from resumable_tasks.items.keys import written
from resumable_tasks.prefect.markdown import block, code, literal
from resumable_tasks.results.result import RunResult
from resumable_tasks.runners.outcome import Failure

FAILURES_SHOWN = 200
_KINDS_SHOWN, _KINDS_KEPT = 10, 100
_TRACEBACK_LINES = 30
_TO_RESUME = (
    "Completed work is safe. Start the flow again with the same checkpoint, or retry this flow "
    "run: only missing items are handled."
)


@dataclass(slots=True)
class Failed:
    """The failures of a run: the number of each class of error, and the first failures.

    ``where`` maps the id of a batch to that of its task run.
    """

    where: Mapping[str, str]
    first: list[Failure] = field(default_factory=list)
    failed: int = 0
    parked: int = 0
    # Class of error → number of failures, and the first of them.
    kinds: dict[str, tuple[int, Failure]] = field(default_factory=dict)

    def add(self, failures: Iterable[Failure]) -> None:
        for failure in failures:
            self.parked += failure.parked
            self.failed += not failure.parked
            if len(self.first) < FAILURES_SHOWN:
                self.first.append(failure)
            if failure.error in self.kinds or len(self.kinds) < _KINDS_KEPT:
                number, example = self.kinds.get(failure.error, (0, failure))
                self.kinds[failure.error] = number + 1, example


class Artifacts:
    """The artifacts of one run in the surrounding flow run and task run."""

    def __init__(self, client: SyncPrefectClient, started: RunStarted) -> None:
        self._client = client
        self._started = started
        self._ids: dict[str, UUID] = {}
        self._shown: tuple[float, str] | None = None

    def show_progress(self, progress: Progress | None, how: str = "") -> None:
        progress = progress or Progress(0, 0, 0, self._started.expected, 0.0)
        # Names the checkpoint, because a flow run may run one job for several dates.
        text = f"{describe(progress)}\n\n{code(self._started.checkpoint)}{self._links('progress')}"
        wanted = percent(progress, how), text
        if wanted == self._shown:
            return
        share = wanted[0]
        if "progress" not in self._ids:
            self._create("progress", "progress", text, share)
        else:
            update = ArtifactUpdate(description=text, data=share)
            self._client.update_artifact(self._ids["progress"], update)
        self._shown = wanted

    def show_summary(self, finished: RunFinished, writing: str, failed: Failed) -> Summary:
        """Show the summary. Returns it, so that later facts can be added."""
        text = f"{outline(finished)}\n\n{code(finished.checkpoint)}"
        data = f"{summary(finished, writing, failed)}{self._links('summary')}"
        return Summary(self._create("summary", "markdown", text, data), data)

    def show_failures(self, failed: Failed) -> None:
        """Show the table of failures. Shown again after the summary, it links to that."""
        started = self._started
        text = f"{count(failed.failed, 'item')} of {literal(started.job)} failed"
        if failed.parked:
            text += f", {failed.parked:,} parked (kept, but not in the table)"
        more = failed.failed + failed.parked - len(failed.first)
        text += (
            f". The first {len(failed.first):,} are shown; {more:,} more are listed by"
            if more
            else ":"
        )
        text += f" {code(f'resumable failures {shell_words(started.checkpoint)}')}"
        text += self._links("failures")
        if "failures" in self._ids:
            self._client.update_artifact(self._ids["failures"], ArtifactUpdate(description=text))
            return
        rows = [
            {
                "key": literal(written(failure.key), 200),
                "error": literal(failure.error, 200),
                "attempts": failure.attempts,
                "message": literal(failure.message, 300),
                "task run": task_run_of(failure, failed) or "",
            }
            for failure in failed.first
        ]
        self._create("failures", "table", text, json.dumps(rows))

    def _links(self, beside: str) -> str:
        """Links from one artifact to the existing others; Prefect itself links to the run."""
        page = url_for("flow-run", flow_run.id) if flow_run.id else None
        if page is None:
            return ""
        home = page.partition("runs/flow-run/")[0]
        links = [
            f"[{name}]({home}artifacts/artifact/{number})"
            for name, number in self._ids.items()
            if name != beside
        ]
        return "\n\n" + " · ".join(links) if links else ""

    def _create(self, suffix: str, kind: str, description: str, data: str | float) -> UUID:
        artifact = ArtifactCreate(
            key=f"{artifact_key(self._started.job)}-{suffix}",
            type=kind,
            description=description,
            data=data,
            flow_run_id=flow_run.id,
            task_run_id=task_run.id,
        )
        self._ids[suffix] = self._client.create_artifact(artifact).id
        return self._ids[suffix]


@dataclass(frozen=True, slots=True)
class Summary:
    """A shown summary, to which text can be added."""

    id: UUID
    text: str

    def published(self, client: SyncPrefectClient, dest: str, rows: int) -> Summary:
        """Add the place where the rows were published."""
        line = f"\n\npublished: {count(rows, 'row')} in {code(without_secrets(dest))}"
        longer = Summary(self.id, self.text + line)
        client.update_artifact(self.id, ArtifactUpdate(data=longer.text))
        return longer


def task_run_of(failure: Failure, failed: Failed) -> str | None:
    """The page of the task run in which an item failed; None if unknown."""
    found = failed.where.get(failure.batch)
    return url_for("task-run", found) if found is not None else None


def percent(progress: Progress, how: str = "") -> float:
    """The progress of a run from 0 to 100; 0 while the number of items is unknown."""
    if how == "done":
        return 100.0
    handled = progress.handled + progress.skipped
    # A run that failed has handled all items, even if their number was not known before.
    expected = handled if progress.expected is None and how == "failed" else progress.expected
    return min(100.0, round(100 * handled / expected, 1)) if expected else 0.0


def artifact_key(job: str) -> str:
    """The job's name as an artifact key, for which Prefect allows lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-") or "job"


def outline(finished: RunFinished) -> str:
    """``done: 1,710 of 1,713 items done (600 before, 1,110 now), 3 failed``"""
    how = HOW.get(finished.how, finished.how)
    result = finished.result
    return f"{how}: {result.summary if result is not None else describe(finished.progress)}"


def summary(finished: RunFinished, writing: str, failed: Failed) -> str:
    """The text of the markdown artifact. ``writing`` says what was written."""
    counts = {name: count(number, "item") for name, number in numbers(finished).items()}
    counts |= about(finished) | {"written": writing}
    lines = [
        f"## {literal(finished.job)}: {HOW.get(finished.how, finished.how)}",
        "",
        *([] if finished.how == "done" else [_TO_RESUME, ""]),
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in counts.items()),
        "",
        # Not in the table, because its cells end at any | even in code.
        f"checkpoint: {code(finished.checkpoint)}",
        "",
        block(f"resumable status {shell_words(finished.checkpoint)}"),
        *errors(failed),
    ]
    return "\n".join(lines)


def numbers(finished: RunFinished) -> dict[str, int]:
    """The counts of items; the first is the sum of the others."""
    progress, result = finished.progress, finished.result
    found = {"resumed": progress.skipped, "new": progress.completed, "failed": progress.failed}
    others = {"parked": progress.parked}
    items = progress.expected or 0
    if isinstance(result, RunResult):
        found = {"resumed": result.skipped, "new": result.completed, "failed": result.failed}
        others = {
            "with a service": result.out,
            "parked": result.parked,
            "quarantined, not tried": result.quarantined,
            "duplicates, skipped": result.duplicates,
        }
        items = max(result.total, 0 if result.read_all else items)
    known = sum(found.values()) + sum(others.values())
    others["not handled"] = max(0, items - known)
    return {"all": max(items, known)} | found | {name: n for name, n in others.items() if n}


def about(finished: RunFinished) -> dict[str, str]:
    """The facts about a run: what it took, and what it has left."""
    progress, result = finished.progress, finished.result
    found = {"retried": count(finished.retried, "batch")} if finished.retried else {}
    found["rate"] = "–" if progress.rate is None else rate(progress.rate)
    found["time"] = duration(progress.seconds)
    if progress.bound_by is not None:
        found["bound by"] = literal(progress.bound_by.sentence)
    if isinstance(result, RunResult):
        if result.cost is not None:
            found["cost"] = f"{result.cost:,.4g}"
        if result.remaining is not None:
            found["remaining"] = str(result.remaining)
    return found


def errors(failed: Failed) -> list[str]:
    """The classes of error, each with its count, an example, and a traceback."""
    kinds = sorted(failed.kinds.items(), key=lambda kind: -kind[1][0])
    lines = ["", "### Errors"] if kinds else []
    for error, (number, first) in kinds[:_KINDS_SHOWN]:
        page = task_run_of(first, failed)
        where = f", in [this task run]({page})" if page else ""
        lines += [
            "",
            f"**{number:,} ×** {literal(error, 80)}: {literal(first.message, 300)} "
            f"(first: {literal(written(first.key), 80)}{where})",
        ]
        if trace := first.traceback.rstrip():
            few = trace.splitlines()[-_TRACEBACK_LINES:]
            lines += ["", block(few, "text")]
    if len(kinds) > _KINDS_SHOWN:
        lines += ["", f"Other classes of error: {len(kinds) - _KINDS_SHOWN:,}."]
    return lines
