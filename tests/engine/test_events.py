"""What a program and a person are told while a run goes on."""

from __future__ import annotations

import io
import logging
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import ItemFailure, JobFailed, Progress, events, resumable_task
from resumable_tasks.base import log
from resumable_tasks.engine import minutes
from resumable_tasks.engine import progress as progress_module
from resumable_tasks.engine.events import Committed, Progressed, RunFinished, RunStarted

ITEMS = [{"id": i} for i in range(100)]


def job(**options: Any) -> Any:
    return resumable_task(lambda rows: rows, **{"name": "job", "key": "id", **options})


def test_events_tell_the_whole_run(place: Path) -> None:
    seen: list[Any] = []
    job().run(ITEMS[:30], checkpoint=place)
    result = job(batch_size=10).run(ITEMS, checkpoint=place, listeners=[seen.append])
    assert isinstance(seen[0], RunStarted)
    assert (seen[0].found, seen[0].expected, seen[0].epoch) == (30, 100, 2)
    commits = [event for event in seen if isinstance(event, Committed)]
    assert sum(event.completed for event in commits) == 70
    assert sum(event.rows for event in commits) == 70
    assert [event.number for event in commits] == sorted(event.number for event in commits)
    assert isinstance(seen[-1], RunFinished)
    assert seen[-1].how == "done"
    assert {(e.job, e.checkpoint, e.run) for e in seen} == {("job", str(place), result.run)}


def test_an_event_of_a_commit_comes_after_it_is_durable(place: Path) -> None:
    def check(event: Any) -> None:
        if isinstance(event, Committed):
            names = [path.name for path in (place / "journal").iterdir()]
            assert f"{event.number:020d}.jsonl" in names

    job().run(ITEMS, checkpoint=place, listeners=[check])


@pytest.mark.parametrize(
    "key", ["id", ("a", "id"), lambda row: f"k{row['id']}"], ids=["field", "fields", "callable"]
)
def test_an_event_names_the_keys_that_were_committed_and_no_others(key: Any, place: Path) -> None:
    items = [{"a": "x", "id": i} for i in range(40)]
    job(key=key, batch_size=10).run(items[:10], checkpoint=place)
    seen: list[Any] = []
    with pytest.raises(JobFailed):
        resumable_task(
            lambda rows: [
                ItemFailure(
                    ("x", 33) if key == ("a", "id") else ("k33" if callable(key) else 33), ""
                )
                if row["id"] == 33
                else row
                for row in rows
            ],
            name="job",
            key=key,
            batch_size=10,
        ).run(items, checkpoint=place, listeners=[seen.append])
    found = [each for event in seen if isinstance(event, events.Committed) for each in event.keys]
    make: Any = (
        key if callable(key) else (lambda row: ("x", row["id"]) if key != "id" else row["id"])
    )
    assert sorted(found) == sorted(make(row) for row in items[10:] if row["id"] != 33)


def test_progress_counts_up_to_the_end(place: Path) -> None:
    seen: list[Progress] = []
    job(batch_size=10).run(ITEMS, checkpoint=place, on_progress=seen.append)
    assert [p.completed for p in seen] == sorted(p.completed for p in seen)
    assert (seen[-1].completed, seen[-1].expected) == (100, 100)
    assert seen[-1].rate is not None
    assert seen[-1].eta == 0


def test_a_broken_listener_is_said_and_ends_nothing(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls: list[Any] = []

    def broken(event: Any) -> None:
        calls.append(event)
        raise ValueError("my display broke")

    result = job(batch_size=10).run(ITEMS, checkpoint=place, listeners=[broken])
    assert result.completed == 100
    assert len(calls) == 1
    assert "my display broke" in caplog.text


def test_the_log_says_where_what_was_found_and_how_it_ended(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job().run(ITEMS[:30], checkpoint=place)
    caplog.clear()
    job().run(ITEMS, checkpoint=place)
    text = caplog.text
    assert f"checkpoint {place}: 30 items are done and will be skipped" in text
    assert "100 of 100 items done (30 before, 70 now)" in text
    assert all(record.name == "resumable_tasks" for record in caplog.records)


def test_a_summary_of_failures_comes_with_an_example(place: Path) -> None:
    def handler(rows: list[Any]) -> Any:
        raise ValueError(f"bad {rows[0]['id'] // 50}")

    with pytest.raises(JobFailed, match=r"(?s)100 × ValueError: bad .*e\.g\. key"):
        resumable_task(handler, name="job", key="id").run(ITEMS, checkpoint=place)


def test_the_bar_shows_what_happens(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    job().run(ITEMS[:30], checkpoint=place)
    job().run(ITEMS, checkpoint=place, progress=True)
    assert "100/100 done, 30 of them resumed" in terminal.getvalue()


@pytest.fixture
def quick_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(minutes, "SECONDS", 0.02)


def slow(rows: list[Any]) -> list[Any]:
    time.sleep(0.03)
    return rows


@pytest.mark.usefixtures("quick_minutes")
def test_once_a_minute_the_log_has_a_line_also_while_nothing_is_committed(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    seen: list[Any] = []

    def tell(event: Any) -> None:
        seen.append(event)
        if len(seen) == 4:
            go_on.set()

    def handler(rows: list[Any]) -> list[Any]:
        assert go_on.wait(20)
        return rows

    go_on = threading.Event()
    resumable_task(handler, name="job", key="id").run(ITEMS, checkpoint=place, listeners=[tell])
    assert [type(event) for event in seen[:4]] == [RunStarted, Progressed, Progressed, Progressed]
    assert isinstance(seen[-1], RunFinished)
    lines = [record.message for record in caplog.records if "/100 done" in record.message]
    assert lines[:3] == ["job: 0/100 done"] * 3
    assert sum("items done" in record.message for record in caplog.records) == 1


@pytest.fixture
def unheard(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Callable[[], str]]:
    """Nobody has set up any logging, pytest included. What is on standard error."""
    logger = logging.Logger("resumable_tasks")
    monkeypatch.setattr(log, "logger", logger)
    monkeypatch.setattr("resumable_tasks.task.run.in_temporary_folder", lambda path: False)
    token = log.destination.set(logger)
    yield lambda: capsys.readouterr().err
    log.destination.reset(token)


@pytest.mark.usefixtures("quick_minutes")
@pytest.mark.parametrize("terminal", [False, True])
def test_a_run_is_not_silent_where_nobody_has_set_up_logging(
    place: Path, unheard: Callable[[], str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    if terminal:
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "200")
    job().run(ITEMS[:30], checkpoint=place, progress=False)
    resumable_task(slow, name="job", key="id", batch_size=10).run(ITEMS, checkpoint=place)
    printed = unheard()
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]|[^\n]*\r", "", printed)
    lines = [line for line in text.splitlines() if re.match(r"\d\d:\d\d:\d\d job: ", line)]
    assert lines[0].endswith(f" job: checkpoint {place}: 30 items are done")
    assert re.search(r"\d+/100 done", lines[1])
    assert " job: done: 100/100 done, 30 of them resumed, " in lines[-1]
    assert "; bound by " in lines[-1]
    assert lines[-1].endswith(f"; checkpoint {place}")
    assert ("━━━" in printed) == terminal


@pytest.mark.usefixtures("quick_minutes")
def test_progress_false_is_silence(place: Path, unheard: Callable[[], str]) -> None:
    job().run(ITEMS, checkpoint=place, progress=False)
    assert unheard() == ""


@pytest.mark.parametrize("how", ["level", "handler", "disabled"])
def test_who_has_set_up_logging_is_told_there_and_nowhere_else(
    place: Path, unheard: Callable[[], str], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    if how == "level":
        log.logger.setLevel(logging.WARNING)
    elif how == "handler":
        log.logger.addHandler(logging.NullHandler())
    else:
        monkeypatch.setattr(logging.root.manager, "_disable", logging.INFO)
    job().run(ITEMS, checkpoint=place)
    assert unheard() == ""


def test_the_last_line_says_how_a_run_has_ended_and_no_secret(unheard: Callable[[], str]) -> None:
    lines = progress_module.Lines()
    for how in ("failed", "interrupted", "spent", "error"):
        lines(RunFinished("job", "s3://u:pa55@host/\x1b[1m", "run", how, Progress(1, 2, 0, 9, 61)))
    text = unheard()
    assert "job: items failed: 1/9 done, 2 failed, " in text
    for how in ("interrupted", "its budget is used up", "ended by an error"):
        assert f" job: {how}: " in text
    assert "pa55" not in text
    assert "\x1b" not in text


def test_a_program_without_standard_error_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(log, "heard", lambda: False)
    monkeypatch.setattr(sys, "stderr", None)
    assert job().run(ITEMS, checkpoint=place).completed == 100
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("progress", "text"),
    [
        (Progress(0, 0, 0, None, 0.0), "0 done"),
        (
            Progress(1_110, 3, 600, 4_000, 26.5),
            "1,710/4,000 done, 600 of them resumed, 3 failed, 42/s, 54 s left",
        ),
        (Progress(1, 0, 0, 10_000, 2.0), "1/10,000 done, 0.5/s, 5 h 33 min left"),
    ],
)
def test_how_progress_reads(progress: Progress, text: str) -> None:
    assert progress_module.describe(progress) == text
