"""What a program and a person are told while a run goes on."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import ItemFailure, JobFailed, Progress, events, resumable_task
from resumable_tasks.engine import progress as progress_module
from resumable_tasks.engine.events import Committed, RunFinished, RunStarted

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


def test_log_lines_are_sober(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(progress_module, "_LOG_EVERY_SECONDS", 0.0)
    caplog.set_level(logging.INFO)
    job().run(ITEMS, checkpoint=place)
    assert any("100/100 done" in record.message for record in caplog.records)


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
