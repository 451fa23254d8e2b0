"""The reading of an API goes on at its cursor, which is never ahead of the journal."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.http_api import BadHttpApi, HttpApi
from flows.http_cursor import PageCursor
from resumable_tasks import JobFailed, Snapshot
from resumable_tasks.checkpoint.directory.repair import repair
from resumable_tasks.checkpoint.store.urls import open_store
from tests.flows.test_http_ingest import (
    DATE,
    background,
    fields,
    ingest,
    keys_in_journal,
    published,
    run,
    start,
)
from tests.flows.test_http_server import Api, orders, says, serving

__all__ = ["background"]
PAGES = 20


@pytest.fixture
def api() -> Iterator[Api]:
    with serving(Api(orders(10 * PAGES))) as started:
        yield started


def source(api: Api, **others: Any) -> HttpApi:
    return HttpApi(**fields(api, resume=True, detail_url=None, retries=0, **others))


def pages_asked(api: Api) -> list[str]:
    return [each.path for each in api.asked if not each.path.startswith("/detail")]


def cursor(place: Path, date: datetime.date = DATE) -> dict[str, Any]:
    files = sorted((place / "checkpoint/http-cursor" / str(date)).glob("*.json"))
    found: dict[str, Any] = json.loads(files[-1].read_bytes().splitlines()[1]) if files else {}
    return found


def stop_at(place: Path, api: Api, page: int, **options: Any) -> None:
    """A run that ends when the API refuses this page, with all before it done."""
    api.fail(f"/link?after=c{10 * (page - 1)}&per_page=10", says(500, b"down"))
    with pytest.raises(Exception, match="HTTP 500"):
        ingest(place, source(api), batch_size=5, **options)


def all_is_there(place: Path) -> None:
    found = published(place / "out")["id"].to_pylist()
    assert sorted(found) == list(range(10 * PAGES)), "a page is lost or doubled"


def test_a_reading_that_was_ended_goes_on_at_its_page(tmp_path: Path, api: Api) -> None:
    stop_at(tmp_path, api, 12)
    kept = cursor(tmp_path)
    assert kept["page"] == 11, "the last page that was read, of which all is done"
    api.asked.clear()
    result = ingest(tmp_path, source(api))
    assert pages_asked(api)[0] == kept["url"].removeprefix(api.url)
    assert len(pages_asked(api)) == PAGES - 10
    assert (result.skipped, result.completed) == (10, 90)
    all_is_there(tmp_path)


def test_what_was_read_to_its_end_is_read_anew(tmp_path: Path, api: Api) -> None:
    ingest(tmp_path, source(api))
    assert cursor(tmp_path) == {}
    api.records = orders(10 * PAGES + 3)
    result = ingest(tmp_path, source(api))
    assert (result.skipped, result.completed) == (10 * PAGES, 3)


def test_it_never_goes_beyond_an_item_that_has_failed(tmp_path: Path, api: Api) -> None:
    given = source(api, schema={"total": "float64"})
    api.records[37]["total"] = "no number"
    with pytest.raises(JobFailed):
        ingest(tmp_path, given, batch_size=5)
    assert cursor(tmp_path)["page"] == 4
    api.records[37]["total"] = 1.5
    ingest(tmp_path, given)
    all_is_there(tmp_path)


def test_a_cursor_without_its_checkpoint_does_not_count(tmp_path: Path, api: Api) -> None:
    stop_at(tmp_path, api, 12)
    shutil.rmtree(tmp_path / "checkpoint" / str(DATE))
    ingest(tmp_path, source(api))
    all_is_there(tmp_path)


def test_a_cursor_newer_than_the_journal_does_not_count(tmp_path: Path, api: Api) -> None:
    """The checkpoint was put back from an older copy."""
    stop_at(tmp_path, api, 4)
    shutil.copytree(tmp_path / "checkpoint" / str(DATE), tmp_path / "copy")
    stop_at(tmp_path, api, 12)
    shutil.rmtree(tmp_path / "checkpoint" / str(DATE))
    shutil.copytree(tmp_path / "copy", tmp_path / "checkpoint" / str(DATE))
    ingest(tmp_path, source(api))
    all_is_there(tmp_path)


@pytest.mark.parametrize("what", ["shards", "journal"])
def test_a_cursor_from_before_a_repair_does_not_count(tmp_path: Path, api: Api, what: str) -> None:
    stop_at(tmp_path, api, 12)
    place = tmp_path / "checkpoint" / str(DATE)
    damaged = sorted((place / what).iterdir())[2]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert repair(open_store(str(place))).damages
    ingest(tmp_path, source(api))
    all_is_there(tmp_path)


def test_a_cursor_older_than_the_journal_costs_only_requests(tmp_path: Path, api: Api) -> None:
    stop_at(tmp_path, api, 4)
    shutil.copytree(tmp_path / "checkpoint/http-cursor", tmp_path / "copy")
    stop_at(tmp_path, api, 12)
    shutil.rmtree(tmp_path / "checkpoint/http-cursor")
    shutil.copytree(tmp_path / "copy", tmp_path / "checkpoint/http-cursor")
    result = ingest(tmp_path, source(api))
    assert (result.skipped, result.completed) == (90, 90)
    all_is_there(tmp_path)


@pytest.mark.parametrize("how", ["damaged", "of another version"])
def test_a_cursor_that_cannot_be_read_costs_only_requests(
    tmp_path: Path, api: Api, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    stop_at(tmp_path, api, 12)
    place = tmp_path / "checkpoint/http-cursor" / str(DATE)
    if how == "damaged":
        for path in place.glob("*.json"):
            path.write_bytes(path.read_bytes()[:-5])
    else:
        with Snapshot(place, version=2, migrate=lambda state, version: state) as newer:
            newer.state["new"] = True
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    api.asked.clear()
    ingest(tmp_path, source(api))
    assert pages_asked(api)[0] == "/link"
    all_is_there(tmp_path)
    (aside,) = place.parent.glob(f"{DATE}.*")
    assert {path.name: path.read_bytes() for path in aside.iterdir()} == before
    assert caplog.text.count("the cursor cannot be used, and all pages are read again") == 1
    assert str(aside) in caplog.text


def test_another_list_has_no_use_for_the_cursor(tmp_path: Path, api: Api) -> None:
    stop_at(tmp_path, api, 12)
    api.asked.clear()
    ingest(tmp_path, source(api, params={"q": 1}))
    assert pages_asked(api)[0] == "/link?q=1"
    all_is_there(tmp_path)


def test_a_page_that_the_api_does_not_know_any_more_is_no_error(tmp_path: Path, api: Api) -> None:
    stop_at(tmp_path, api, 12)
    api.fail(cursor(tmp_path)["url"].removeprefix(api.url), says(410, b"the cursor has expired"))
    api.asked.clear()
    ingest(tmp_path, source(api))
    assert pages_asked(api)[1] == "/link"
    all_is_there(tmp_path)


def test_a_cursor_that_cannot_be_kept_ends_no_run(
    tmp_path: Path, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from resumable_tasks import StoreError

    def full(snapshot: Snapshot, count: int = 1) -> bool:
        raise StoreError("the disk is full")

    monkeypatch.setattr(Snapshot, "step", full)
    ingest(tmp_path, source(api))
    assert caplog.text.count("the cursor is not kept any more") == 1
    all_is_there(tmp_path)


def test_pages_by_number_have_no_cursor() -> None:
    with pytest.raises(BadHttpApi, match="whose pages move"):
        HttpApi("http://h/page", pagination="page", resume=True)
    with pytest.raises(BadHttpApi, match="neither true nor false"):
        HttpApi("http://h/page", pagination="link", resume=1)  # type: ignore[arg-type]


def test_two_readings_at_once_are_refused(tmp_path: Path, api: Api) -> None:
    from resumable_tasks import CheckpointHeld

    here = tmp_path / "checkpoint"
    held = PageCursor(here / "http-cursor" / str(DATE), here / str(DATE), source(api))
    with held, pytest.raises(CheckpointHeld):
        ingest(tmp_path, source(api))


def test_killed_again_and_again_no_page_is_lost_and_none_is_doubled(
    tmp_path: Path, api: Api, background: list[Any]
) -> None:
    here = tmp_path / ".resumable/nightly_ingest"
    arguments = ("--batch-size", "3")
    api.before = lambda path: time.sleep(0.004)
    for aim in (30, 80, 130, 170):
        process = start(tmp_path, background, api, *arguments, resume=True)
        until = time.monotonic() + 60
        while len(keys_in_journal(tmp_path)) < aim:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        files = sorted((here / "http-cursor" / str(DATE)).glob("*.json"))
        state = json.loads(files[-1].read_bytes().splitlines()[1]) if files else {"page": 1}
        before = set(range(10 * (state["page"] - 1)))
        assert before <= keys_in_journal(tmp_path), "the cursor is ahead of the journal"
    assert state["page"] > 5
    done = run(tmp_path, api, "--date", str(DATE), *arguments, resume=True)
    assert done.returncode == 0, done.stderr
    found = published(tmp_path / "published/nightly_ingest")["id"].to_pylist()
    assert sorted(found) == list(range(10 * PAGES))
    assert api.count("/link") < 5 * PAGES, "every run has asked for all pages"


def test_sigterm_still_ends_the_run_in_order(
    tmp_path: Path, api: Api, background: list[Any]
) -> None:
    """The cursor's snapshot is open around it, and has its own use for the signal."""
    api.before = lambda path: time.sleep(0.01)
    process = start(tmp_path, background, api, "--batch-size", "3", resume=True)
    until = time.monotonic() + 60
    while len(keys_in_journal(tmp_path)) < 30:
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait(60) == 75


def test_a_cursor_that_rests_on_another_record_does_not_count(tmp_path: Path, api: Api) -> None:
    """One of that number is there, but it says something else."""
    stop_at(tmp_path, api, 12)
    with Snapshot(tmp_path / "checkpoint/http-cursor" / str(DATE)) as kept:
        kept.state["checksum"] = "0" * 32
    api.asked.clear()
    ingest(tmp_path, source(api))
    assert pages_asked(api)[0] == "/link"
    all_is_there(tmp_path)
