"""Whole runs on a real HTTP API: killed, resumed, throttled, refused. The server counts."""

from __future__ import annotations

import datetime
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

pytest.importorskip("httpx")

from flows import http_ingest
from flows._prefect import Unreachable
from flows.http_ingest import ingest
from resumable_tasks import CheckpointMismatch, InvalidItems, JobFailed, RunResult, UsageError
from tests import warm
from tests.flows.api import Api, Fault, Handler, drips, drops, halves, orders, says, serving

REPOSITORY = Path(__file__).parents[2]
DATE = datetime.date(2026, 11, 23)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
ENVIRONMENT.pop("PREFECT_API_URL", None)
THIRD = "/link?after=c20"


@pytest.fixture
def api() -> Iterator[Api]:
    """35 orders, on pages of 10."""
    with serving(Api(orders(35))) as started:
        yield started


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses of the flow's own choice are short; those that the API asks for are kept to."""
    monkeypatch.setattr(http_ingest, "_PAUSE", 0.001)


def take(place: Path, api: Api, path: str = "/link", **options: Any) -> RunResult:
    """A date in this process."""
    given = {"date": DATE, "checkpoint": str(place / "checkpoint"), "out": str(place / "out")}
    return ingest(f"{api.url}{path}", **{**given, **options})


def command(api: Api, *arguments: str) -> list[str]:
    detail = ("--detail", f"{api.url}/detail/{{key}}")
    return [
        *(sys.executable, "-m", "flows.http_ingest", f"{api.url}/link", *detail),
        *("--date", str(DATE), "--batch-size", "5", "--concurrency", "2", *arguments),
    ]


def run(cwd: Path, api: Api, *arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(
        command(api, *arguments),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def rows(place: Path) -> pa.Table:
    return pads.dataset(place, partitioning="hive").to_table()


def ids(place: Path) -> list[Any]:
    return sorted(rows(place)["id"].to_pylist())


def done_in(cwd: Path) -> set[int]:
    """The keys in the journal. No code of the library is asked."""
    records = (cwd / ".resumable/http_ingest" / str(DATE) / "journal").glob("*.jsonl")
    texts = [record.read_text("utf-8") for record in records]
    return {int(key) for text in texts for key in re.findall(r'^\{"key":(\d+)', text, re.M)}


@pytest.fixture
def background() -> Iterator[list[warm.Program]]:
    started: list[warm.Program] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(cwd: Path, background: list[warm.Program], api: Api) -> warm.Program:
    process = warm.start(
        command(api),
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    background.append(process)
    return process


def wait_until(what: Any, process: warm.Program) -> None:
    until = time.monotonic() + 60
    while not what():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < until, "it does not get on"
        time.sleep(0.005)


def quiet(api: Api) -> None:
    """What a process had asked before it was killed may arrive a little later."""
    asked = -1
    while asked != len(api.asked):
        asked = len(api.asked)
        time.sleep(0.3)


def test_killed_again_and_again_every_record_is_there_once_and_none_is_asked_for_again(
    api: Api, tmp_path: Path, background: list[warm.Program]
) -> None:
    api.records = orders(300)
    api.before = lambda path: time.sleep(0.005 * path.startswith("/detail"))
    done: set[int] = set()
    for aim in (40, 110, 200):
        asked = len(api.asked)
        process = start(tmp_path, background, api)
        wait_until(lambda aim=aim: len(done_in(tmp_path)) >= aim, process)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        quiet(api)
        again = {int(each.path.split("/")[-1]) for each in api.asked[asked:] if "det" in each.path}
        assert not again & done, "a record that is done was asked for again"
        done = done_in(tmp_path)
        assert aim <= len(done) < 300
    assert not (tmp_path / "published").exists()
    asked = len(api.asked)

    resumed = run(tmp_path, api)

    assert resumed.returncode == 0, resumed.stderr
    said = f"300 records on {DATE}: {300 - len(done)} handled now, {len(done)} resumed, 0 failed"
    assert resumed.stdout.startswith(said)
    details = [each.path for each in api.asked[asked:] if each.path.startswith("/detail")]
    assert sorted(details) == sorted(f"/detail/{i}" for i in range(300) if i not in done)
    # All pages are asked for again, and those that were read before are not sent again.
    pages = [each for each in api.asked[asked:] if each.path.startswith("/link")]
    assert len(pages) == 30
    assert sum(each.status == 304 for each in pages) >= 20
    found = rows(tmp_path / "published/http_ingest").sort_by("id").to_pylist()
    assert [row["id"] for row in found] == list(range(300))
    for row, record in zip(found, api.records, strict=True):
        assert json.loads(row["record"]) == {**record, "detail": f"detail of {record['id']}"}


def test_sigterm_while_it_has_to_wait_ends_it_with_75_and_what_was_done_is_kept(
    api: Api, tmp_path: Path, background: list[warm.Program]
) -> None:
    api.always[THIRD] = says(429, retry_after="500")
    process = start(tmp_path, background, api)
    wait_until(lambda: len(done_in(tmp_path)) == 20 and api.count(THIRD), process)
    process.terminate()
    assert process.wait(timeout=60) == 75  # and not after 500 seconds
    assert api.count(THIRD) == 1
    api.always.clear()
    resumed = run(tmp_path, api)
    assert "35 records on 2026-11-23: 15 handled now, 20 resumed, 0 failed" in resumed.stdout


@pytest.mark.sample
@pytest.mark.parametrize("path", ["/link", "/field"])
@pytest.mark.parametrize("count", [0, 1, 10, 11, 35])
def test_every_record_is_read_once_by_header_or_field(
    path: str, count: int, api: Api, tmp_path: Path
) -> None:
    api.records = orders(count)
    named = {"items": "data.all", "next_field": "meta.next"} if path == "/field" else {}
    assert take(tmp_path, api, path, **named).completed == count
    assert api.count(path) == max(1, -(-count // 10))
    if count:
        assert ids(tmp_path / "out") == list(range(count))


@pytest.mark.parametrize("fault", [says(500), says(408), says(429), drops, halves, drips])
def test_a_page_that_fails_is_asked_for_again(
    fault: Fault, api: Api, tmp_path: Path, soon: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault is drips:
        monkeypatch.setattr(http_ingest, "_SECONDS", 0.5)
    api.fail(THIRD, fault, fault)
    take(tmp_path, api)
    assert api.count(THIRD) == 3
    assert ids(tmp_path / "out") == list(range(35))


def test_a_page_that_stays_away_ends_the_run_with_75_and_the_next_one_goes_on(
    api: Api, tmp_path: Path, soon: None
) -> None:
    api.always[THIRD] = says(503)
    with pytest.raises(Unreachable, match=r"503.*run the same command again"):
        take(tmp_path, api)
    assert Unreachable.exit_code == 75
    assert api.count(THIRD) == 6
    assert not (tmp_path / "out").exists()
    api.always.clear()
    result = take(tmp_path, api)
    assert (result.skipped, result.completed) == (20, 15)
    assert api.count("/link", 304) == 2
    assert ids(tmp_path / "out") == list(range(35))


@pytest.mark.sample
@pytest.mark.parametrize("path", [THIRD, "/detail/7"])
@pytest.mark.parametrize("how", ["seconds", "date"])
def test_no_request_comes_before_the_time_that_was_told(
    path: str, how: str, api: Api, tmp_path: Path
) -> None:
    def wait(handler: Handler) -> None:
        told = "2" if how == "seconds" else formatdate(time.time() + 3, usegmt=True)
        says(429, retry_after=told)(handler)

    api.fail(path, wait, says(503, retry_after="1"))
    result = take(tmp_path, api, detail=f"{api.url}/detail/{{key}}")
    assert result.completed == 35
    times = [each.time for each in api.asked if each.path == path]
    assert len(times) == 3
    assert times[1] - times[0] >= 1.9
    assert times[2] - times[1] >= 0.9


def test_a_pause_that_is_too_long_ends_the_run(api: Api, tmp_path: Path) -> None:
    api.fail(THIRD, says(429, retry_after="601"))
    with pytest.raises(Unreachable, match="429"):
        take(tmp_path, api)
    assert api.count(THIRD) == 1


def test_a_detail_that_cannot_be_had_fails_alone_and_is_tried_again(
    api: Api, tmp_path: Path
) -> None:
    api.always["/detail/3"] = says(404, {"error": "gone"})
    api.always["/detail/5"] = says(200, b"[1]")
    api.always["/detail/7"] = says(200, {"id": 8})
    detail = f"{api.url}/detail/{{key}}"
    with pytest.raises(JobFailed) as caught:
        take(tmp_path, api, detail=detail)
    assert caught.value.result is not None
    found = {each.key: each.message for each in caught.value.result.failures}
    assert sorted(found) == [3, 5, 7]
    assert "404" in found[3]
    assert f"{api.url}/detail/3" in found[3]
    assert "not the detail of 7" in found[7]
    assert not (tmp_path / "out").exists()
    api.always.clear()
    api.asked.clear()
    assert take(tmp_path, api, detail=detail).completed == 3
    assert api.count("/detail") == 3
    assert ids(tmp_path / "out") == list(range(35))


def test_records_that_two_pages_have_are_one_row(api: Api, tmp_path: Path) -> None:
    def one_more(path: str) -> None:
        api.records.insert(0, {"id": 1_000 + len(api.records)})

    api.before = one_more
    result = take(tmp_path, api)
    found = ids(tmp_path / "out")
    assert set(found) >= set(range(35))
    assert len(found) == len(set(found))
    assert result.duplicates > 0


def test_pages_are_read_only_as_far_as_records_are_wanted(api: Api, tmp_path: Path) -> None:
    api.records = orders(1_000_000)
    assert take(tmp_path, api, limit=95).completed == 95
    assert api.count("/link") == 10


def test_what_is_not_yet_handled_is_not_yet_read(api: Api, tmp_path: Path) -> None:
    """Memory does not grow with the number of pages, however slow the details are."""
    api.records = orders(1_000)
    ahead = []

    def look(path: str) -> None:
        if path.startswith("/detail"):
            ahead.append(api.count("/link") * 10 - api.count("/detail"))
            time.sleep(0.002)

    api.before = look
    given = {"batch_size": 5, "concurrency": 2, "limit": 400}
    take(tmp_path, api, detail=f"{api.url}/detail/{{key}}", **given)
    assert max(ahead) <= 10 + 5 * 2 * 2 + 5


def test_an_unchanged_page_is_not_sent_again_and_a_change_is_seen(api: Api, tmp_path: Path) -> None:
    days = [DATE + datetime.timedelta(days=day) for day in range(3)]
    take(tmp_path, api, date=days[0])
    take(tmp_path, api, date=days[1])
    assert api.count("/link", 304) == 3  # of the last page nothing is kept
    api.records[12]["name"] = "changed"
    api.records += [{"id": i} for i in range(35, 52)]
    api.asked.clear()
    take(tmp_path, api, date=days[2])
    assert api.count("/link", 304) == 2
    third = [row for row in rows(tmp_path / "out").to_pylist() if row["date"] == str(days[2])]
    assert sorted(row["id"] for row in third) == list(range(52))
    assert any("changed" in row["record"] for row in third)
    assert len(list((tmp_path / "checkpoint/http-pages").iterdir())) == 5


def test_a_copy_that_is_damaged_is_none(api: Api, tmp_path: Path) -> None:
    take(tmp_path, api)
    copies = sorted((tmp_path / "checkpoint/http-pages").iterdir())
    data = copies[0].read_bytes()
    copies[0].write_bytes(data.replace(b"order", b"Order", 1))
    copies[1].write_bytes(data[:-5])
    copies[2].write_bytes(b"")
    take(tmp_path, api, date=DATE + datetime.timedelta(days=1))
    assert api.count("/link", 304) == 0
    assert "Order" not in str(rows(tmp_path / "out")["record"].to_pylist())


def test_another_account_is_not_given_the_pages_of_the_first(
    api: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day, token in ((1, "first"), (2, "second")):
        monkeypatch.setenv("API_TOKEN", token)
        take(tmp_path, api, token_env="API_TOKEN", date=datetime.date(2026, 1, day))
    assert api.count("/link", 304) == 0
    found = {each.headers["authorization"] for each in api.asked}
    assert found == {"Bearer first", "Bearer second"}


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (says(401), "401 Unauthorized"),
        (says(404), "404 Not Found"),
        (says(302, location="http://127.0.0.1:9/"), "302 Found"),
        (says(200, {"data": []}), "at items='' is not a list, but dict"),
        (says(200, [], link="<http://127.0.0.1:9/>; rel=next"), "on another server"),
        (says(200, [], link="<https://127.0.0.1/>; rel=next"), "on another server"),
        (says(200, [], link="<?after=c20>; rel=next"), "is named again as a later page"),
    ],
)
def test_a_page_that_is_of_no_use_is_named_and_what_came_before_it_is_done(
    fault: Fault, said: str, api: Api, tmp_path: Path
) -> None:
    api.always[THIRD] = fault
    with pytest.raises(InvalidItems) as caught:
        take(tmp_path, api)
    assert said in str(caught.value)
    assert f"{api.url}{THIRD}" in str(caught.value)
    assert not list((tmp_path / "checkpoint/http-pages").iterdir())  # no copy can be the cause
    assert api.count(THIRD) == 1
    api.always.clear()
    result = take(tmp_path, api)
    assert (result.skipped, result.completed) == (20, 15)


@pytest.mark.parametrize("record", [{"name": "no key"}, "text"])
def test_a_record_without_a_key_fails_alone(record: Any, api: Api, tmp_path: Path) -> None:
    api.always[THIRD] = says(200, [record])
    with pytest.raises(JobFailed, match="has no field 'id'") as caught:
        take(tmp_path, api)
    result = caught.value.result
    assert result is not None
    assert (result.completed, result.failed, result.failures[0].position) == (20, 1, 20)


def test_an_only_page_is_taken_with_a_warning(
    api: Api, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    take(tmp_path, api, "/field", items="data.all")
    assert "names no next page, so it is treated as the only page" in caplog.text


def test_rows_of_another_api_or_detail_may_not_join_those_of_a_date(
    api: Api, tmp_path: Path
) -> None:
    take(tmp_path, api)
    for path, other in (
        ("/field", {"items": "data.all"}),
        ("/link", {"detail": f"{api.url}/detail/{{key}}"}),
        ("/link", {"key": "name"}),
    ):
        with pytest.raises(CheckpointMismatch):
            take(tmp_path, api, path, **other)
    assert take(tmp_path, api, "/link?q=1").skipped == 35


def test_all_dates_are_one_dataset_whatever_the_records_are(api: Api, tmp_path: Path) -> None:
    contents: list[dict[str, Any]] = [{"v": 1}, {"v": "ü\ud83d"}, {"v": None, "w": [1, {}]}, {}]
    for day, content in enumerate(contents, 1):
        api.records = [{"id": "a", **content}, {"id": "b", "v": [1]}]
        take(tmp_path, api, date=datetime.date(2026, 11, day))
    found = [json.loads(row["record"]) for row in rows(tmp_path / "out").to_pylist()]
    assert [each for each in found if each["id"] == "a"] == [{"id": "a", **c} for c in contents]


@pytest.mark.parametrize(
    ("url", "others", "said"),
    [
        ("ftp://h/", {}, "url must be an http"),
        ("http://me:s3cret@h/", {}, "without user or password"),
        ("http://h/", {"detail": "http://h/{id}"}, "no {key} in it"),
        ("http://h/", {"key": "record"}, "the column of the whole record"),
        ("https://h/", {"token_env": "s3cret"}, "token_env names no environment variable"),
        ("https://h/", {"token_env": "BAD_TOKEN"}, "token_env names no environment variable"),
    ],
)
def test_what_cannot_be_is_refused_and_no_secret_is_shown(
    url: str, others: Any, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BAD_TOKEN", "s3cret s3cret")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        ingest(url, date=DATE, **others)
    assert said in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_without_httpx_the_line_that_installs_it_is_told(api: Api, tmp_path: Path) -> None:
    (tmp_path / "httpx.py").write_text("raise ImportError('no module named httpx')")
    refused = subprocess.run(
        command(api),
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "httpx is not installed: pip install 'resumable-tasks[http]'\n" in refused.stderr
    assert not (tmp_path / ".resumable").exists()
