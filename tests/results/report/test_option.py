"""`report=`: each run writes its page when it ends, and its end stays what it is."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Budget, Interrupted, ItemFailure, JobFailed, UsageError, resumable_task

pytest.importorskip("jinja2", reason="needs the extra report")

ITEMS = [{"id": n} for n in range(20)]


def handle(rows: list[Any]) -> list[Any]:
    return [ItemFailure(row["id"], "bad") if row["id"] == 100 else row for row in rows]


def job(**options: Any) -> Any:
    return resumable_task(handle, name="job", key="id", batch_size=5, concurrency=1, **options)


def status(path: Path) -> str:
    found = re.search(r'<span class="pill [\w-]+">([^<]+)<', path.read_text("utf-8"))
    assert found
    return found[1]


def torn() -> Iterator[dict[str, int]]:
    yield from ITEMS[:10]
    raise OSError("the source has gone")


def test_each_end_is_in_the_report(place: Path, tmp_path: Path) -> None:
    path = tmp_path / "reports" / "last.html"
    with pytest.raises(OSError, match="has gone"):
        job(report=path).run(torn(), checkpoint=place)
    assert status(path) == "incomplete"
    with pytest.raises(Interrupted):
        job(report=path, budget=Budget(items=5)).run(ITEMS, checkpoint=place)
    assert status(path) == "budget used up"
    with pytest.raises(JobFailed):
        job(report=str(path)).run([*ITEMS, {"id": 100}], checkpoint=place)
    assert status(path) == "items failed"
    job(report=path).run(ITEMS, checkpoint=place)
    assert status(path) == "done"
    assert [each.name for each in path.parent.iterdir()] == ["last.html"]


def test_in_a_folder_it_has_the_name_of_the_job_and_its_partition(
    place: Path, tmp_path: Path
) -> None:
    once = job().with_options(report=tmp_path / "reports")
    once.run(ITEMS, checkpoint=place)
    once.run(ITEMS, checkpoint=place, partition=date(2026, 11, 23))
    once.run(ITEMS, checkpoint=place, partition=date(2026, 11, 24), dry_run=True)
    names = sorted(each.name for each in (tmp_path / "reports").iterdir())
    assert names == ["job-2026-11-23.html", "job.html"]


def test_one_that_cannot_be_written_is_told_and_changes_no_end(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken.html").mkdir()
    with caplog.at_level(logging.WARNING):
        run = job(report=tmp_path / "taken.html").run(ITEMS, checkpoint=place)
    assert run.completed == 20
    assert "was not written" in caplog.text
    with pytest.raises(JobFailed):
        job(report=tmp_path / "taken.html").run([{"id": 100}], checkpoint=place)


def test_what_cannot_be_is_refused_before_the_first_call(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sqlalchemy = pytest.importorskip("sqlalchemy")
    from resumable_tasks import SqlCheckpoint

    def refused(report: Any, said: str, **more: Any) -> None:
        with pytest.raises(UsageError, match=said):
            job(report=report).run(**{"items": ITEMS, "checkpoint": place, **more})
        assert not place.exists()

    refused("", "is empty")
    refused(3, "neither a path nor a URL")
    refused(place / "report.html", "would be inside the checkpoint")
    refused(place, "would be inside the checkpoint")
    refused("http://host/report.html", "only directories and buckets are supported")
    url = f"sqlite:///{tmp_path / 'table.db'}"
    engine = sqlalchemy.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("create table t (id integer primary key)"))
    engine.dispose()
    refused(
        "r.html",
        "has no journal",
        items=None,
        checkpoint=SqlCheckpoint(url, table="t", key="id", results_table="r"),
    )
    monkeypatch.setitem(sys.modules, "jinja2", None)
    from resumable_tasks.results.report import page

    page._environment.cache_clear()
    refused("report.html", r'pip install "resumable-tasks\[report\]"')


def test_a_report_in_a_bucket_of_a_checkpoint_in_one(bucket: Any) -> None:
    pytest.importorskip("obstore")
    job(report="s3://test/reports").run(ITEMS, checkpoint=bucket.url)
    assert b"20</b>" in bucket.server.stored()["reports/job.html"]
