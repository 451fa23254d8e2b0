"""What is out is told wherever a checkpoint is looked at."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from resumable_tasks import Waiting
from resumable_tasks.checkpoint.directory import past
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.engine import events, progress
from tests.cli.test_cli import cli, document
from tests.submitted.jobs import assert_all_paid_once, job, left_out
from tests.submitted.service import FileService, items


def partly(folder: Path) -> Path:
    """60 items out in two submissions, 10 collected, 11 to do."""
    service = FileService(folder / "home", takes=None)
    whole = job(service, batch_size=10)
    service.takes = 0
    whole.run(items(10), checkpoint=folder / "c")
    service.takes = None
    with pytest.raises(Waiting) as ended:
        job(service, concurrency=2).run(items(81), checkpoint=folder / "c", wait=False)
    result = ended.value.result
    assert result is not None
    assert result.summary == (
        "10 of 81 items done (10 before, 0 now), 60 out in 2 submissions, 11 to do, 0 failed"
    ), str(ended.value)
    assert "; 60 items out in 2 submissions; remaining: 11 items" in str(ended.value)
    return folder / "c"


def test_status_says_what_is_out(tmp_path: Path) -> None:
    place = partly(tmp_path)
    found = document("status", place)
    assert (found["completed"], found["out"], found["submissions"]) == (10, 60, 2)
    assert found["out_since"]
    text = cli("status", place).stdout
    assert "  out          60 items in 2 submissions (oldest " in text
    assert ", 11 to do" in text
    assert "next: run the same command again: it collects the open submissions" in text


def test_ls_has_a_column_only_where_something_is_out(tmp_path: Path) -> None:
    partly(tmp_path)
    (line,) = [line for line in cli("ls", tmp_path).stdout.split("\n") if "interrupted" in line]
    assert line.split()[:4] == ["interrupted", "10", "0", "60"]
    assert "out,submissions" in cli("ls", tmp_path, "--csv").stdout
    assert_all_paid_once(tmp_path, 81)
    assert "OUT" not in cli("ls", tmp_path).stdout


def test_watch_says_what_is_out(tmp_path: Path) -> None:
    place = partly(tmp_path)
    assert ", 60 items out in 2 submissions (oldest " in cli("watch", place).stdout
    assert json.loads(cli("watch", place, "--json").stdout)["out"] == 60


def test_plan_counts_what_is_out_as_out(tmp_path: Path) -> None:
    place = partly(tmp_path)
    found = document("plan", place)
    assert (found["items"], found["completed"], found["out"], found["remaining"]) == (
        81,
        10,
        60,
        11,
    )
    assert "  out          60 items in 2 submissions" in cli("plan", place).stdout


def test_a_dry_run_does_not_count_what_is_out_as_to_be_handled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = partly(tmp_path)
    before = sorted(place.rglob("*"))
    with caplog.at_level(logging.INFO, "resumable_tasks"):
        result = job(FileService(tmp_path / "home")).run(items(81), checkpoint=place, dry_run=True)
    assert result.remaining is not None
    assert (result.remaining.items, result.out, result.submissions) == (11, 60, 2)
    assert "60 items out in 2 submissions" in caplog.text
    assert sorted(place.rglob("*")) == before
    some = job(FileService(tmp_path / "home")).run(items(15), checkpoint=place, dry_run=True)
    assert some.remaining is not None
    assert (some.remaining.items, some.out, some.skipped) == (0, 5, 10), "of these items, five"


def test_a_run_says_what_it_finds_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    left_out(tmp_path)
    with caplog.at_level(logging.INFO, "resumable_tasks"):
        assert_all_paid_once(tmp_path)
    assert "70 items out in 3 submissions (oldest " in caplog.text


def test_a_result_says_it_through_json_and_in_a_notebook(tmp_path: Path) -> None:
    from pydantic import TypeAdapter

    from resumable_tasks import RunResult

    service = FileService(tmp_path / "home", takes=None)
    with pytest.raises(Waiting) as ended:
        job(service).run(items(20), checkpoint=tmp_path / "c", wait=False)
    result = ended.value.result
    adapter = TypeAdapter(RunResult)
    again = adapter.validate_json(adapter.dump_json(result))  # type: ignore[arg-type]
    assert (again.out, again.submissions) == (20, 1)
    assert "with a service" in again._repr_html_()


def test_history_says_what_a_run_has_left_out(tmp_path: Path) -> None:
    found = document("history", partly(tmp_path))
    assert [(run["how"], run["out"]) for run in found] == [("done", 0), ("interrupted", 60)]


def test_what_was_decided_by_hand_stands_in_the_history(tmp_path: Path) -> None:
    left_out(tmp_path)
    place = tmp_path / "c"
    one, other, _ = [each["token"] for each in document("submissions", place)["each"]]
    cli("submissions", place, "withdraw", one, "--yes")
    cli("submissions", place, "attach", other, '{"number": 2}', "--yes")
    found = document("history", place)
    assert [(run["number"], run["how"]) for run in found] == [
        (1, "interrupted"),
        (None, "withdraw"),
        (None, "attach"),
    ]
    assert found[1]["items"] in (10, 30)
    assert "a submission was attached by hand" in cli("status", place).stdout


def test_a_run_that_died_has_worked_until_its_last_submission(tmp_path: Path) -> None:
    """Its claim and its submissions are all that it has recorded."""
    left_out(tmp_path)
    place = tmp_path / "c"
    last = document("status", place)["records"] - 1
    (place / "journal" / f"{last:020d}.jsonl").unlink()  # the record of its end
    (run,) = document("history", place)
    assert (run["how"], run["seconds"] > 0) == ("died", True)
    seen = past.Past()
    past.read(LocalStore(place), seen)
    (same,) = seen.runs
    assert round(same.until - same.began, 3) == run["seconds"]


def test_show_says_in_which_submission_an_item_is(tmp_path: Path) -> None:
    left_out(tmp_path)
    place = tmp_path / "c"
    found = document("show", place, "3")
    (token,) = [
        each["token"]
        for each in document("submissions", place)["each"]
        if each["token"] == found["submission"]["token"]
    ]
    assert (found["status"], found["submission"]["state"]) == ("out", "submitted")
    assert [event["what"] for event in found["events"]] == ["out"]
    text = cli("show", place, "3").stdout
    assert "status       out: a service has it; the next run collects it" in text
    assert f"submission   {token}, submitted" in text
    cli("submissions", place, "withdraw", token, "--yes")
    again = document("show", place, "3")
    assert (again["status"], again["submission"]) == ("missing", None)
    assert [event["what"] for event in again["events"]] == ["out", "withdrawn"]
    FileService(tmp_path / "home").end_all()
    job(FileService(tmp_path / "home")).run(items(70), checkpoint=place)
    done = document("show", place, "3")
    assert done["status"] == "completed"
    assert [each["what"] for each in done["events"]] == ["out", "withdrawn", "out", "completed"]


def test_the_report_lists_what_is_out(tmp_path: Path) -> None:
    place = partly(tmp_path)
    cli("report", place, "-o", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    for each in document("submissions", place)["each"]:
        assert each["token"] in page
    assert "60 items out in 2 submissions" in page
    assert_all_paid_once(tmp_path, 81)
    cli("report", place, "-o", tmp_path / "r.html")
    assert "With a service" not in (tmp_path / "r.html").read_text()


def test_lines_say_it_at_the_start_and_at_the_end(tmp_path: Path) -> None:
    service = FileService(tmp_path / "home", takes=None)
    seen: list[str] = []

    def listen(event: events.Event) -> None:
        seen.append(progress.said_of(event) or "")

    for _ in range(2):
        with pytest.raises(Waiting):
            job(service).run(items(40), checkpoint=tmp_path / "c", wait=False, listeners=[listen])
    started = [line for line in seen if "svc: checkpoint " in line]
    ended = [line for line in seen if "svc: interrupted: " in line]
    assert started[0].endswith(": new")
    assert "0 items are done, 40 items out in 2 submissions (oldest " in started[1]
    assert all("0/40 done, 40 items out in 2 submissions, in " in line for line in ended)
    assert len(ended) == 2
