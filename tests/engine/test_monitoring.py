"""What OpenTelemetry is told of a run: spans that hang together, and counts as in the journal."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import baggage, context, metrics, trace
from opentelemetry.sdk.trace import SpanProcessor

from resumable_tasks import (
    Budget,
    BudgetUsedUp,
    CheckpointUnusable,
    Failing,
    ItemFailure,
    JobFailed,
    Retry,
    current_batch,
    events,
    resumable_task,
)
from resumable_tasks.engine import monitoring
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners import tracing
from resumable_tasks.runners.bound import BoundBy
from tests import warm
from tests.engine.exporting import traced
from tests.telemetry import Seen, ids, parent

ITEMS = [{"id": i} for i in range(60)]


async def atraced(rows: list[Any]) -> list[Any]:
    return traced(rows)


def journal(place: Path, run: str) -> dict[str, int]:
    """The items of a run, as its commits in the journal name them."""
    found: Counter[str] = Counter()
    for path in sorted((place / "journal").glob("*.jsonl")):
        head, *lines = map(json.loads, path.read_text("utf-8").splitlines())
        if head["kind"] == "commit" and head["run"] == run:
            for line in lines[:-1]:
                found["parked" if "rows" in line else "failed" if "error" in line else "done"] += 1
    return dict(found)


@pytest.mark.parametrize("handler", [traced, atraced], ids=["threads", "event loop"])
def test_a_span_of_the_handler_is_in_its_call_in_its_batch_in_the_run(
    handler: Any, seen: Seen, place: Path
) -> None:
    job = resumable_task(handler, name="job", key="id", batch_size=20)
    with trace.get_tracer("program").start_as_current_span("program"):
        result = job.run(ITEMS, checkpoint=place)
        assert trace.get_current_span().name == "program"  # type: ignore[attr-defined]
    [program], [run] = seen.of("program"), seen.of("run")
    assert parent(run) == ids(program)
    assert run.name == "run job"
    batches = {ids(span): span for span in seen.of("batch")}
    calls = {ids(span): span for span in seen.of("call")}
    assert len(batches) == len(calls) == len(seen.of("mine")) == 3
    assert {parent(span) for span in seen.of("mine")} == set(calls)
    assert {parent(span) for span in calls.values()} == set(batches)
    assert {parent(span) for span in [*batches.values(), *seen.of("commit")]} == {ids(run)}
    told = {row["span"] for row in result.table().to_pylist()}
    assert told == {hex(span) for _, span in calls}
    for span in [run, *batches.values(), *calls.values(), *seen.of("commit")]:
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time


def test_processes_open_spans_in_that_of_their_batch(
    seen: Seen, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPANS_TO", str(tmp_path))
    job = resumable_task(
        traced, name="job", key="id", batch_size=20, concurrency=1, runner="processes"
    )
    token = context.attach(baggage.set_baggage("tenant", "a"))
    try:
        rows = job.run(ITEMS, checkpoint=place).table().to_pylist()
    finally:
        context.detach(token)
    assert {row["tenant"] for row in rows} == {"a"}
    [file] = (path for path in tmp_path.iterdir() if path.is_file())
    theirs = list(map(json.loads, file.read_text("utf-8").splitlines()))
    mine = [span for span in theirs if span["name"] == "mine"]
    calls = {int(s["context"]["span_id"], 16): s for s in theirs if s["name"] == "call job"}
    assert len(mine) == len(calls) == 3
    assert {int(span["parent_id"], 16) for span in mine} == set(calls)
    assert {int(row["span"], 16) for row in rows} == set(calls)
    found = {(int(s["context"]["trace_id"], 16), int(s["parent_id"], 16)) for s in calls.values()}
    assert found == {ids(span) for span in seen.of("batch")}
    assert not seen.of("call")
    assert seen.sums("call.duration") == {None: 3}


def stubborn(rows: list[Any]) -> list[Any]:
    """Items 0–9 fail, 10–14 do not fit, each first call with 20–29 fails."""
    first = rows[0]["id"]
    if first == 20 and current_batch().attempt == 1:
        raise ConnectionError("try again")
    return [
        ItemFailure(row["id"], ValueError("bad"))
        if row["id"] < 10
        else {**row, "n": "no number" if row["id"] < 15 else 1, "cost": 0.25}
        for row in rows
    ]


def test_metrics_say_what_the_journal_says(seen: Seen, place: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("id", pa.int64()), ("n", pa.int64()), ("cost", pa.float64())])
    job = resumable_task(
        stubborn,
        name="job",
        key="id",
        batch_size=10,
        schema=schema,
        cost="cost",
        retries=Retry(1, delay=0),
        rate_limit="1000/hour",
    )
    with pytest.raises(JobFailed) as caught:
        job.run([*ITEMS, {"no": "key"}], checkpoint=place)
    result = caught.value.result
    assert result is not None
    handled = seen.sums("item.handled")
    assert handled == {"done": 45, "failed": 11, "parked": 5}
    assert journal(place, result.run) == {"done": 45, "failed": 10, "parked": 5}
    assert (result.completed, result.failed, result.parked) == (45, 11, 5)
    by_error = seen.sums("item.handled", "error.type")
    assert (by_error["ValueError"], by_error["InvalidItems"]) == (10, 1)
    assert seen.sums("cost") == {None: result.cost}
    assert seen.sums("item.retried") == {None: 10}
    assert seen.sums("call.duration", "error.type") == {None: 6, "ConnectionError": 1}
    assert seen.sums("run.duration") == {"failed": 1}
    assert seen.sums("item.in_flight") == {None: 0}
    commits = [path for path in (place / "journal").glob("*.jsonl") if _is_commit(path)]
    assert seen.sums("commit.duration") == seen.sums("commit.size") == {None: len(commits)}
    assert sum(point.sum for point in seen.points()["commit.duration"]) > 0
    shards = sum(path.stat().st_size for path in (place / "shards").iterdir())
    assert sum(point.sum for point in seen.points()["commit.size"]) == shards


def _is_commit(path: Path) -> bool:
    head, *lines = map(json.loads, path.read_text("utf-8").splitlines())
    return bool(head["kind"] == "commit" and lines[:-1])


KILLED = """
import os, signal, sys
from resumable_tasks import resumable_task

def handler(rows):
    if rows[0]["id"] >= 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return rows

job = resumable_task(handler, name="job", key="id", batch_size=10, concurrency=1)
job.run([{"id": i} for i in range(60)], checkpoint=sys.argv[1])
"""


def test_of_a_killed_run_the_next_counts_its_own(seen: Seen, place: Path) -> None:
    killed = warm.run([sys.executable, "-c", KILLED, str(place)], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=10)
    skipped: list[Any] = []
    listen = [lambda _: skipped.append(seen.sums("item.skipped").get(None))]
    result = job.run(ITEMS, checkpoint=place, listeners=listen)
    assert 0 < result.skipped < 60
    assert skipped[1] == result.skipped, "known from the first commit on"
    assert seen.sums("item.handled") == journal(place, result.run) == {"done": result.completed}
    assert seen.sums("item.skipped") == {None: result.skipped}
    [run] = seen.of("run")
    assert run.attributes is not None
    assert run.attributes["resumable_tasks.items.skipped"] == result.skipped


def test_a_failed_call_says_why_and_shows_no_secret(seen: Seen, place: Path) -> None:
    def handler(rows: list[Any]) -> list[Any]:
        raise ValueError("no answer of https://me:hidden@host/x")

    job = resumable_task(handler, name="job", key="id", failing=Failing(pause_after=None))
    with pytest.raises(JobFailed):
        job.run(ITEMS[:1], checkpoint=place)
    [call] = seen.of("call")[:1]
    assert call.attributes is not None
    assert call.attributes["error.type"] == "ValueError"
    assert call.status.description == "ValueError"
    [event] = call.events
    assert event.name == "exception"
    assert event.attributes is not None
    assert "in handler" in str(event.attributes["exception.stacktrace"])
    assert "hidden" not in str(dict(event.attributes))
    [run] = seen.of("run")
    assert run.attributes is not None
    assert run.attributes["error.type"] == "JobFailed"
    assert not run.status.is_ok


def test_the_span_of_a_run_says_what_ended_it(seen: Seen, place: Path) -> None:
    def source() -> Any:
        yield from ITEMS[:20]
        raise OSError("the source has gone")

    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=10)
    with pytest.raises(OSError, match="the source has gone"):
        job.run(source(), checkpoint=place)
    [run] = seen.of("run")
    assert run.attributes is not None
    assert run.attributes["error.type"] == run.status.description == "OSError"
    assert run.attributes["resumable_tasks.outcome"] == "error"
    assert seen.sums("run.duration") == {"error": 1}
    assert run.attributes["resumable_tasks.items.completed"] == 20


def test_a_run_that_is_refused_is_seen(seen: Seen, place: Path) -> None:
    place.write_text("no checkpoint")
    job = resumable_task(lambda rows: rows, name="job", key="id")
    with pytest.raises(CheckpointUnusable):
        job.run(ITEMS, checkpoint=place)
    assert seen.sums("run.duration") == {"refused": 1}
    [run] = seen.of("run")
    assert run.attributes == {
        "resumable_tasks.job": "job",
        "resumable_tasks.outcome": "refused",
        "error.type": "CheckpointUnusable",
    }


def test_the_rest_of_a_quota_is_known_while_a_run_goes_on(seen: Seen, place: Path) -> None:
    found: list[Any] = []

    def handler(rows: list[Any]) -> list[Any]:
        by_limit = seen.sums("quota.remaining", "resumable_tasks.limit")
        found.append(by_limit)
        return rows

    job = resumable_task(
        handler, name="job", key="id", batch_size=20, concurrency=1, rate_limit="100/hour"
    )
    job.run(ITEMS, checkpoint=place)
    assert found == [{"100 calls in 3600 s": left} for left in (99, 98, 97)]
    assert "quota.remaining" not in seen.points()


def test_what_is_dropped_or_abandoned_is_not_in_flight(seen: Seen, place: Path) -> None:
    job = resumable_task(
        lambda rows: rows, name="job", key="id", batch_size=10, budget=Budget(items=20)
    )
    with pytest.raises(BudgetUsedUp):
        job.run(ITEMS, checkpoint=place)
    observer = monitoring.Observer("other")
    observer(events.RunStarted("other", "", "", found=0, failed=0, expected=2, epoch=1))
    observer.goes(Batch(1, [1, 2], b"1\n2", [1, 2]))
    progress = events.Progress(0, 0, 0, 2, 1.0)
    observer(events.RunFinished("other", "", "", how="interrupted", progress=progress))
    assert seen.sums("item.in_flight", "resumable_tasks.job") == {"job": 0, "other": 0}
    assert seen.of("batch")[-1].attributes == {
        "resumable_tasks.job": "other",
        "resumable_tasks.batch.number": 1,
        "resumable_tasks.batch.size": 2,
        "resumable_tasks.outcome": "abandoned",
    }


def test_what_a_run_waits_for_is_known_while_it_goes_on(seen: Seen) -> None:
    def progressed(what: Any, **shares: float) -> events.Progressed:
        bound = BoundBy(what, what, shares)
        progress = events.Progress(0, 0, 0, None, 1.0, bound_by=bound)
        return events.Progressed("job", "", "", progress)

    observers = [monitoring.Observer("job") for _ in range(3)]
    for observer in observers:
        observer(events.RunStarted("job", "", "", found=0, failed=0, expected=None, epoch=1))
    observers[0](progressed("quota", told=0.5))
    assert seen.sums("run.bound", "resumable_tasks.bound_by") == {"quota": 1}
    observers[0](progressed("source", source=0.75, idle=0.25))
    observers[1](progressed("source", source=0.75))
    assert seen.sums("run.bound", "resumable_tasks.bound_by") == {"source": 2}
    assert seen.sums("time.share", "resumable_tasks.place") == {"source": 0.75, "idle": 0.25}
    for observer in reversed(observers):
        progress = progressed("latency", handler=1.0).progress
        observer(events.RunFinished("job", "", "", how="done", progress=progress))
    assert seen.sums("run.bound") == {}
    attributes = [span.attributes or {} for span in seen.of("run")]
    assert {each["resumable_tasks.bound_by"] for each in attributes} == {"latency"}


class Broken(SpanProcessor):
    def __init__(self, name: str) -> None:
        self.name = name

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        if span.name.startswith(self.name):
            raise OSError("the monitor is broken")


@pytest.mark.parametrize("where", ["run", "batch", "call", "commit"])
def test_a_broken_provider_is_said_and_ends_nothing(
    where: str,
    seen: Seen,
    place: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tracing, "_said", False)
    seen.tracer_provider.add_span_processor(Broken(where))
    before = context.get_current()
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=20)
    assert job.run(ITEMS, checkpoint=place).completed == 60
    assert caplog.text.count("OSError: the monitor is broken") == 1
    assert context.get_current() == before
    assert not monitoring._running


def test_a_provider_that_gives_nothing_is_said_and_ends_nothing(
    seen: Seen, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trace, "get_tracer", lambda _: 1 / 0)
    job = resumable_task(lambda rows: rows, name="job", key="id")
    assert job.run(ITEMS, checkpoint=place).completed == 60
    assert caplog.text.count("ZeroDivisionError") == 1


def test_without_a_provider_nothing_hangs_on_a_run(place: Path) -> None:
    from resumable_tasks.runners.threads import ThreadRunner

    runner = ThreadRunner(1)
    assert monitoring.observed("job", runner) == (runner, ())
    code = f"""
import sys
from resumable_tasks import resumable_task
resumable_task(lambda rows: rows, key="id", name="j").run([{{"id": 1}}], checkpoint={str(place)!r})
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""
    done = warm.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_only_one_of_the_two_providers(
    seen: Seen, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id")
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    job.run(ITEMS, checkpoint=place)
    assert seen.sums("item.handled") == {"done": 60}
    assert not seen.spans.get_finished_spans()
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", seen.tracer_provider)
    monkeypatch.setattr(metrics._internal, "_METER_PROVIDER", None)
    job.run(ITEMS, checkpoint=place.with_name("other"))
    assert len(seen.of("run")) == 1
