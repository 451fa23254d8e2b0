"""Whose checkpoint it is: a mismatch shows both sides and the ways out, and changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Changes,
    CheckpointMismatch,
    CheckpointUnusable,
    InvalidItems,
    JobFailed,
    resumable_task,
)
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store

ITEMS = [{"id": i, "uid": i} for i in range(30)]


def job(**options: Any) -> Any:
    return resumable_task(lambda rows: rows, **{"name": "job", "key": "id", **options})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            {"key": "uid"},
            r'key +checkpoint: \{"field": "id"\} +this run: \{"field": "uid"',
        ),
        ({"key": ("id",)}, "key "),
        ({"key": lambda item: item["id"]}, "lambda"),
        ({"results": "many"}, r'results +checkpoint: "one" +this run: "many"'),
        ({"name": "other"}, r'job +checkpoint: "job" +this run: "other"'),
        ({"version": 2}, "version +checkpoint: '1' +this run: '2'"),
    ],
    ids=["field", "composite", "callable", "results", "name", "version"],
)
def test_a_mismatch_shows_both_sides_and_the_ways_out(
    change: dict[str, Any], says: str, place: Path
) -> None:
    job().run(ITEMS, checkpoint=place)
    before = sorted(path.name for path in place.rglob("*"))
    with pytest.raises(CheckpointMismatch, match=f"(?s){says}.*Options: "):
        job(**change).run(ITEMS, checkpoint=place)
    assert sorted(path.name for path in place.rglob("*")) == before
    assert job(batch_size=7, concurrency=1).run(ITEMS, checkpoint=place).skipped == 30


def test_reuse_keeps_what_is_done_and_goes_on_with_the_new_version(place: Path) -> None:
    job().run(ITEMS[:20], checkpoint=place)
    newer = job(version=2)
    result = newer.run(ITEMS, checkpoint=place, on_version_change="reuse")
    assert (result.skipped, result.completed) == (20, 10)
    assert newer.run(ITEMS, checkpoint=place).skipped == 30
    with pytest.raises(CheckpointMismatch, match=r"version +checkpoint: '2'"):
        job().run(ITEMS, checkpoint=place)


def test_restart_archives_and_never_deletes(place: Path) -> None:
    job().run(ITEMS, checkpoint=place)
    newer = job(version=2)
    result = newer.run(ITEMS, checkpoint=place, on_version_change="restart")
    assert (result.skipped, result.completed) == (0, 30)
    archived = [path for path in place.parent.iterdir() if ".archived-" in path.name]
    assert len(archived) == 1
    assert len(read_checkpoint(open_store(archived[0]))[1].done) == 30
    assert newer.run(ITEMS, checkpoint=place, on_version_change="restart").skipped == 30


def test_a_format_from_the_future_is_refused(place: Path) -> None:
    job().run(ITEMS, checkpoint=place)
    manifest = json.loads((place / "job.json").read_text())
    (place / "job.json").write_text(json.dumps({**manifest, "format": 2, "new": True}))
    with pytest.raises(CheckpointMismatch, match=r"format 2.*format 1"):
        job().run(ITEMS, checkpoint=place)


def test_a_place_that_is_no_place_for_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    for place in (tmp_path / "file", tmp_path / "file" / "below", tmp_path):
        with pytest.raises(CheckpointUnusable):
            job().run(ITEMS, checkpoint=place)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "precious"


def test_the_default_place_is_under_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datetime as dt

    monkeypatch.chdir(tmp_path)
    assert job().run(ITEMS).checkpoint == str(tmp_path / ".resumable/job/default")
    day = job().run(ITEMS, partition=dt.date(2026, 11, 23))
    assert day.checkpoint == str(tmp_path / ".resumable/job/2026-11-23")
    assert day.completed == 30
    named = job().run(ITEMS, checkpoint="c", partition="eu-west")
    assert named.checkpoint == str(tmp_path / "c/eu-west")
    for bad in ("a/b", "..", "", "-x"):
        with pytest.raises(Exception, match="partition"):
            job().run(ITEMS, partition=bad)
    with pytest.raises(Exception, match="directories and buckets"):
        job().run(ITEMS, checkpoint="ftp://host/x")


@pytest.mark.parametrize(
    "wrong",
    [{"key": "idd"}, {"key": None}, {"results": "none"}, {"changes": Changes("etgg")}],
    ids=["field", "no key", "results", "changes"],
)
def test_a_first_run_that_completed_nothing_may_be_corrected(
    wrong: dict[str, Any], place: Path
) -> None:
    with pytest.raises((InvalidItems, JobFailed)):
        job(**wrong, version=2).run(ITEMS, checkpoint=place)
    right = job(changes=Changes("uid"))
    assert right.run(ITEMS, checkpoint=place, dry_run=True).remaining.items == 30
    assert right.run(ITEMS, checkpoint=place).completed == 30
    assert right.run(ITEMS, checkpoint=place).skipped == 30


def test_another_job_and_what_was_spent_are_no_mistake_to_correct(place: Path) -> None:
    with pytest.raises(InvalidItems):
        job(key="idd").run(ITEMS, checkpoint=place)
    with pytest.raises(CheckpointMismatch, match=r'job +checkpoint: "job"'):
        job(name="other").run(ITEMS, checkpoint=place)

    def fail(rows: list[Any]) -> list[Any]:
        raise ValueError("no")

    paid = place.parent / "paid"
    billed = resumable_task(fail, name="job", key="id", cost=lambda call: 1.0, fail_fast=True)
    with pytest.raises(JobFailed):
        billed.run(ITEMS, checkpoint=paid)
    with pytest.raises(CheckpointMismatch, match="key "):
        job(key="uid").run(ITEMS, checkpoint=paid)
