"""Whole runs on an HTTP API: killed and resumed, whole dates, what rows become, what is refused.

What was asked for is counted by the server.
"""

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
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from tests.flows.test_http_server import Api, drops, orders, says, serving

pytest.importorskip("httpx")

from flows.http_api import HttpApi
from flows.http_client import Client
from flows.http_pages import Record
from flows.http_rows import ingest_records
from flows.ingest import ingest_date
from resumable_tasks import CheckpointMismatch, ItemFailure, JobFailed, RunResult, UsageError

REPOSITORY = Path(__file__).parents[2]
DATE = datetime.date(2026, 11, 23)
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
ENVIRONMENT.pop("PREFECT_API_URL", None)


@pytest.fixture
def api() -> Iterator[Api]:
    with serving(Api(orders(35))) as started:
        yield started


def fields(api: Api, **others: Any) -> dict[str, Any]:
    return {
        "url": f"{api.url}/link",
        "pagination": "link",
        "detail_url": f"{api.url}/detail/{{id}}",
        "retry_pause": 0.01,
        **others,
    }


def command(api: Api, *arguments: str, **others: Any) -> list[str]:
    given = json.dumps(fields(api, **others))
    script = [sys.executable, "-m", "flows.nightly_ingest", "--no-progress", "--api", given]
    return [*script, *arguments]


def run(cwd: Path, api: Api, *arguments: str, **others: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(api, *(arguments or ("--date", str(DATE))), **others),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def ingest(place: Path, api: HttpApi, date: datetime.date = DATE, **options: Any) -> RunResult:
    """A date in this process."""
    where = {"checkpoint": str(place / "checkpoint"), "out": str(place / "out")}
    return ingest_date(date, None, api, **where, **options)


def published(place: Path) -> pa.Table:
    return pads.dataset(place, partitioning="hive").to_table()


def keys_in_journal(cwd: Path) -> set[int]:
    records = (cwd / ".resumable/nightly_ingest" / str(DATE) / "journal").glob("*.jsonl")
    texts = [record.read_text("utf-8") for record in records]
    return {int(key) for text in texts for key in re.findall(r'^\{"key":(\d+)', text, re.M)}


@pytest.fixture
def background() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def start(
    cwd: Path, background: list[subprocess.Popen[bytes]], api: Api, *arguments: str, **others: Any
) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(
        command(api, "--date", str(DATE), *arguments, **others),
        cwd=cwd,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    background.append(process)
    return process


def wait_until(what: Any) -> None:
    until = time.monotonic() + 60
    while not what():
        assert time.monotonic() < until, "it does not get on"
        time.sleep(0.005)


def wait_until_quiet(api: Api) -> None:
    """What a process had asked before it was killed may be heard a little later."""
    asked = -1
    while asked != len(api.asked):
        asked = len(api.asked)
        time.sleep(0.5)


@pytest.mark.parametrize("how", [(), ("--processes",)], ids=["threads", "processes"])
def test_killed_in_the_middle_and_resumed_every_row_is_there_once(
    how: tuple[str, ...], api: Api, tmp_path: Path, background: list[subprocess.Popen[bytes]]
) -> None:
    api.records = orders(300)

    def slowly(path: str) -> None:
        if path.startswith("/detail"):
            time.sleep(0.005)

    api.before = slowly
    arguments = ("--batch-size", "5", "--concurrency", "2", *how)
    process = start(tmp_path, background, api, *arguments)
    wait_until(lambda: len(keys_in_journal(tmp_path)) >= 100 or process.poll() is not None)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    done = keys_in_journal(tmp_path)
    assert 100 <= len(done) < 300
    assert not (tmp_path / "published").exists()
    wait_until_quiet(api)
    pages_before = [each.path for each in api.asked if each.path.startswith("/link")]
    api.asked.clear()

    resumed = run(tmp_path, api, "--date", str(DATE), *arguments)

    assert resumed.returncode == 0, resumed.stderr
    said = f"300 records on {DATE}: {300 - len(done)} handled now, {len(done)} resumed, 0 failed"
    assert resumed.stdout.startswith(said)
    # Items are not handled again, and each is fetched by this run once.
    asked = [each.path for each in api.asked if each.path.startswith("/detail")]
    assert sorted(asked) == sorted(f"/detail/{i}" for i in range(300) if i not in done)
    # All pages are read again, and those that were read before the kill are not sent again.
    assert api.count("/link") == 30
    unchanged = {each.path for each in api.asked if each.status == 304}
    assert len(pages_before) > 10
    assert unchanged >= set(pages_before[:-1])  # of the last, perhaps not all had come
    rows = published(tmp_path / "published/nightly_ingest").sort_by("id").to_pylist()
    assert [row["id"] for row in rows] == list(range(300))
    for row, record in zip(rows, api.records, strict=True):
        text = json.loads(row["record"])
        assert text == {**record, "detail": f"detail of {record['id']}"}

    again = run(tmp_path, api, "--date", str(DATE), *arguments)
    assert again.returncode == 0
    assert "300 records on 2026-11-23: 0 handled now, 300 resumed, 0 failed" in again.stdout
    assert len(asked) == api.count("/detail")


def test_sigterm_while_it_has_to_wait_ends_it_with_75_and_what_was_done_is_kept(
    api: Api, tmp_path: Path, background: list[subprocess.Popen[bytes]]
) -> None:
    third = "/link?after=c20&per_page=10"

    def details_first(path: str) -> None:
        if path == third:  # else they would have to wait as well
            wait_until(lambda: api.count("/detail", 200) == 20)

    api.before = details_first
    api.always[third] = says(429, retry_after="500")
    process = start(tmp_path, background, api, "--batch-size", "10")
    wait_until(lambda: len(keys_in_journal(tmp_path)) == 20 or process.poll() is not None)
    process.terminate()
    assert process.wait(timeout=60) == 75  # and not after 500 seconds
    assert api.count("/link") == 3
    assert keys_in_journal(tmp_path) == set(range(20))
    api.always.clear()
    resumed = run(tmp_path, api)
    assert "35 records on 2026-11-23: 15 handled now, 20 resumed, 0 failed" in resumed.stdout


def test_an_item_that_fails_fails_alone_and_is_tried_again(api: Api, tmp_path: Path) -> None:
    api.always["/detail/3"] = says(404, {"error": "gone"})
    api.always["/detail/5"] = says(200, b"[1]")
    api.always["/detail/7"] = says(200, {"id": 8})
    api.always["/detail/9"] = says(200, b"<", content_type="text/html")
    api.always["/detail/11"] = says(500)
    source = HttpApi(**fields(api, retries=2))
    with pytest.raises(JobFailed) as caught:
        ingest(tmp_path, source)
    assert caught.value.result is not None
    found = {each.key: f"{each.error}: {each.message}" for each in caught.value.result.failures}
    assert sorted(found) == [3, 5, 7, 9, 11]
    assert re.match(rf"ApiRefused: detail, {api.url}/detail/3: HTTP 404 .*gone", found[3])
    assert "no JSON object" in found[5]
    assert "its 'id' is 8" in found[7]
    assert "no JSON (text/html)" in found[9]
    assert re.match(r"ApiUnavailable: .*HTTP 500 .* at attempt 3 of 3", found[11])
    assert caught.value.result.completed == 30
    assert api.count("/detail/11") == 3
    assert not (tmp_path / "out").exists()
    api.always.clear()
    api.asked.clear()
    assert (ingest(tmp_path, source).completed, api.count("/detail")) == (5, 5)
    assert published(tmp_path / "out").num_rows == 35


def test_details_that_are_down_are_not_waited_for_a_thousand_times(
    api: Api, tmp_path: Path
) -> None:
    for i in range(35):
        api.always[f"/detail/{i}"] = drops
    with pytest.raises(JobFailed):
        ingest(tmp_path, HttpApi(**fields(api, retries=9, retry_pause=0.001)), concurrency=1)
    assert api.count("/detail") == 10 + 34


@pytest.mark.parametrize("concurrency", [1, 4])
def test_pages_that_overlap_give_each_row_once(concurrency: int, api: Api, tmp_path: Path) -> None:
    def one_more(path: str) -> None:
        if path.startswith("/page"):
            api.records.insert(0, {"id": 1_000 + len(api.records)})

    api.before = one_more
    source = HttpApi(f"{api.url}/page", "page")
    result = ingest(tmp_path, source, concurrency=concurrency)
    rows = published(tmp_path / "out")["id"].to_pylist()
    assert set(rows) >= set(range(35))
    assert len(rows) == len(set(rows))
    assert result.duplicates > 0


def test_an_endless_api_is_read_as_far_as_the_limit_says(api: Api, tmp_path: Path) -> None:
    api.records = orders(1_000_000)
    result = ingest(tmp_path, HttpApi(f"{api.url}/link", "link"), limit=95)
    assert result.completed == 95
    assert api.count("/link") == 10


def test_memory_does_not_grow_with_the_number_of_pages(api: Api, tmp_path: Path) -> None:
    """The handler is slow and the pages are big: what is not yet handled is not yet read."""
    api.records = [{"id": i, "text": "x" * 10_000} for i in range(2_000)]
    api.page_size = 20
    ahead = []

    def look(path: str) -> None:
        read = api.count("/link") * 20
        if path.startswith("/detail"):
            ahead.append(read - api.count("/detail"))
            time.sleep(0.002)

    api.before = look
    ingest(tmp_path, HttpApi(**fields(api)), batch_size=5, concurrency=2, limit=600)
    assert max(ahead) <= 20 + 5 * 2 * 2 + 5


def test_another_api_or_schema_may_not_join_the_rows_of_a_date(api: Api, tmp_path: Path) -> None:
    ingest(tmp_path, HttpApi(f"{api.url}/link", "link"))
    for other in (
        {"url": f"{api.url}/page", "pagination": "page"},
        {"schema": {"price": "float64"}},
        {"detail_url": f"{api.url}/detail/{{id}}"},
        {"key": "name"},
    ):
        with pytest.raises(CheckpointMismatch):
            ingest(tmp_path, HttpApi(**{"url": f"{api.url}/link", "pagination": "link", **other}))
    again = ingest(tmp_path, HttpApi(f"{api.url}/link", "link", params={"per_page": 20}))
    assert again.skipped == 35


KINDS: dict[str, tuple[pa.DataType, list[tuple[Any, Any]], list[Any]]] = {
    # type, [(what the API says, what stands in the row)], what is refused
    "string": (
        pa.string(),
        [("a", "a"), ("", ""), ("ü🐍", "ü🐍"), (5, "5"), (1.5, "1.5"), (True, "true")],
        [[1], {"a": 1}, "half \ud83d"],
    ),
    "int64": (pa.int64(), [(5, 5), (-(2**63), -(2**63)), (3.0, 3)], [2**63, 1.5, "5", True, [1]]),
    "float64": (pa.float64(), [(5, 5.0), (0.1, 0.1), (-1e300, -1e300)], ["0.1", False, 10**400]),
    "bool": (pa.bool_(), [(True, True), (False, False)], [0, 1, "true"]),
    "timestamp": (
        pa.timestamp("us", tz="UTC"),
        [
            ("2026-11-23T10:00:00.25Z", datetime.datetime(2026, 11, 23, 10, 0, 0, 250_000)),
            ("2026-11-23T10:00:00+02:00", datetime.datetime(2026, 11, 23, 8)),
            ("2026-11-23 10:00:00", datetime.datetime(2026, 11, 23, 10)),
            ("2026-11-23", datetime.datetime(2026, 11, 23)),
        ],
        [1_700_000_000, "yesterday", "", "0001-01-01T00:00:00+14:00", "2026-11-31", True],
    ),
    "json": (
        pa.string(),
        [
            ([1, "ü", None], '[1,"ü",null]'),
            ("a", '"a"'),
            (False, "false"),
            ("half \ud83d", r'"half \ud83d"'),
            ({"b": 1, "a": {}}, '{"b":1,"a":{}}'),
        ],
        [float("nan"), [float("inf")]],
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_schema_gives_stable_columns_and_nothing_is_guessed(kind: str, api: Api) -> None:
    column, good, bad = KINDS[kind]
    source = HttpApi(f"{api.url}/x", "link", schema={"v": kind, "never": kind})
    values = [value for value, _ in good] + [None] + bad
    with Client(source) as client:
        records = [Record({"id": i, "v": value}, client) for i, value in enumerate(values)]
        found = ingest_records([*records, Record({"id": len(values)}, client)])
    rows = found[: len(good) + 1] + found[-1:]
    expected = [value for _, value in good] + [None, None]
    if kind == "timestamp":
        expected = [v and v.replace(tzinfo=datetime.UTC) for v in expected]
    assert [row["v"].as_py() for row in rows] == expected
    assert {row[name].type for row in rows for name in ("v", "never")} == {column}
    failures = found[len(good) + 1 : -1]
    assert len(failures) == len(bad)
    for failure in failures:
        assert isinstance(failure, ItemFailure), failure
        assert str(failure.error).startswith(f"field 'v' is no {kind}: ")
        assert len(str(failure.error)) < 300
        str(failure.error).encode()


def test_dates_with_a_column_of_nulls_are_one_dataset(api: Api, tmp_path: Path) -> None:
    schema = {"price": "float64", "sold": "timestamp", "tags": "json", "id": "int64"}
    for day, sold in ((23, None), (24, "2026-11-24T01:02:03Z")):
        api.records = [{"id": i, "price": None, "sold": sold, "tags": ["a"]} for i in range(3)]
        source = HttpApi(f"{api.url}/link", "link", schema=schema)
        ingest(tmp_path, source, datetime.date(2026, 11, day))
    rows = published(tmp_path / "out")
    assert rows.schema.names == ["id", "price", "sold", "tags", "date"]
    assert rows["sold"].null_count == 3
    assert rows["price"].type == pa.float64()


def test_without_a_schema_all_dates_are_one_dataset_whatever_the_records_are(
    api: Api, tmp_path: Path
) -> None:
    contents: list[dict[str, Any]] = [{"v": 1}, {"v": "text"}, {"v": None, "w": [1, {}]}, {}]
    for day, content in enumerate(contents, 1):
        api.records = [{"id": "a", **content}, {"id": "b", "v": [1]}]
        ingest(tmp_path, HttpApi(f"{api.url}/link", "link"), datetime.date(2026, 11, day))
    rows = published(tmp_path / "out")
    assert rows.schema.names == ["id", "record", "date"]
    found = [json.loads(r["record"]) for r in rows.to_pylist() if r["id"] == "a"]
    assert found == [{"id": "a", **content} for content in contents]


@pytest.mark.parametrize(
    ("key", "said"), [("a", "as schema wants it"), (1, None)], ids=["other type", "right type"]
)
def test_the_key_has_the_type_that_the_schema_says(
    key: Any, said: str | None, api: Api, tmp_path: Path
) -> None:
    api.records = [{"id": key}]
    source = HttpApi(f"{api.url}/link", "link", schema={"id": "int64"})
    if said is None:
        assert ingest(tmp_path, source).completed == 1
    else:
        with pytest.raises(UsageError, match=said):
            ingest(tmp_path, source)


def test_what_ends_a_run_has_its_exit_code_and_is_resumed(api: Api, tmp_path: Path) -> None:
    for fault, code in ((says(503), 75), (says(404), 2), (says(200, {"a": 1}), 2)):
        api.always["/link?after=c20&per_page=10"] = fault
        ended = run(tmp_path, api, "--date", str(DATE), "--batch-size", "10", retries=1)
        assert ended.returncode == code, ended.stderr
        assert f"page 3, {api.url}/link?after=c20&per_page=10: " in ended.stderr
        assert "Traceback" not in ended.stderr
        assert ended.stdout == ""
        assert keys_in_journal(tmp_path) == set(range(20))
    api.always.clear()
    assert "15 handled now, 20 resumed, 0 failed" in run(tmp_path, api).stdout
    assert api.count("/detail") == 35
    api.fail("/detail/1", says(404))
    failed = run(tmp_path, api, "--date", "2026-11-24")
    assert failed.returncode == 1
    assert f"ApiRefused: detail, {api.url}/detail/1: HTTP 404" in failed.stderr


def test_a_range_of_dates_in_one_command(api: Api, tmp_path: Path) -> None:
    """Each date asks for its own; one that fails does not keep the next ones from being done."""
    source = {"detail_url": None, "params": {"day": "{date}", "per_page": 50}}
    api.fail("/link?day=2026-11-03&per_page=50", says(200, [{"id": 1}, {"id": float("nan")}]))
    api.fail("/link?day=2026-11-04&per_page=50", says(200, [{"id": 1, "v": float("nan")}]))
    arguments = ("--from", "2026-11-01", "--to", "2026-11-05")

    first = run(tmp_path, api, *arguments, **source)

    assert first.returncode == 2, first.stderr
    assert [each.path for each in api.asked] == [
        f"/link?day=2026-11-0{day}&per_page=50" for day in range(1, 6)
    ]
    table = re.findall(r"^(2026-11-0\d)  +(\S+)  (.*)$", first.stdout, re.M)
    assert [(date, code) for date, code, _ in table] == [
        ("2026-11-01", "0"),
        ("2026-11-02", "0"),
        ("2026-11-03", "2"),
        ("2026-11-04", "1"),
        ("2026-11-05", "0"),
    ]
    assert table[0][2].startswith("35 handled now, 0 resumed, 0 failed")
    assert table[2][2].startswith(f"page 1, {api.url}/link?day=2026-11-03")
    assert table[3][2].startswith("0 handled now, 0 resumed, 1 failed")
    assert sorted(os.listdir(tmp_path / "published/nightly_ingest")) == [
        f"date=2026-11-0{day}" for day in (1, 2, 5)
    ]

    second = run(tmp_path, api, *arguments, **source)

    assert second.returncode == 0, second.stderr
    results = re.findall(r"^2026-11-0\d  +0  (\d+) handled now, (\d+) resumed", second.stdout, re.M)
    assert results == [("0", "35"), ("0", "35"), ("35", "0"), ("35", "0"), ("0", "35")]
    assert published(tmp_path / "published/nightly_ingest").num_rows == 5 * 35


def test_a_range_stops_where_the_next_date_would_meet_the_same(api: Api, tmp_path: Path) -> None:
    source = {"detail_url": None, "params": {"day": "{date}"}, "retries": 0}
    api.fail("/link?day=2026-11-02", drops)
    stopped = run(tmp_path, api, "--from", "2026-11-01", "--to", "2026-11-03", **source)
    assert stopped.returncode == 75
    table = re.findall(r"^(2026-11-0\d)  +(\S+)  (.*)$", stopped.stdout, re.M)
    assert [code for _, code, _ in table] == ["0", "75", "–"]
    assert table[2][2] == "not begun"
    assert api.count("/link?day=2026-11-03") == 0


def test_sigterm_ends_a_range_and_the_same_command_goes_on(
    api: Api, tmp_path: Path, background: list[subprocess.Popen[bytes]]
) -> None:
    def slowly(path: str) -> None:
        time.sleep(0.02 * path.startswith("/detail"))

    api.before = slowly
    arguments = ("--from", "2026-11-22", "--to", "2026-11-24", "--batch-size", "2")
    process = subprocess.Popen(
        command(api, *arguments),
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    background.append(process)
    wait_until(lambda: len(keys_in_journal(tmp_path)) >= 4 or process.poll() is not None)
    process.terminate()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 75
    codes = re.findall(r"^2026-11-2\d  +(\S+)  ", out, re.M)
    assert codes == ["0", "75", "–"]
    api.before = lambda path: None
    resumed = run(tmp_path, api, *arguments)
    assert resumed.returncode == 0, resumed.stderr
    assert api.count("/detail") == 3 * 35


def test_sources_and_api_exclude_each_other(api: Api, tmp_path: Path) -> None:
    refused = run(tmp_path, api, str(tmp_path))
    assert refused.returncode == 2
    assert "SOURCE and --api exclude each other" in refused.stderr
    with pytest.raises(UsageError, match="exclude each other"):
        ingest_date(DATE, ["a"], HttpApi(f"{api.url}/link", "link"))
    assert api.asked == []


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            '{"url": "http://x/", "pagination": "page", "keey": "a"}',
            "there is no field 'keey', only",
        ),
        ('{"url": "http://x/"}', "--api: pagination is missing, e.g. {"),
        ('{"url": "x", "pagination": "page"}', "--api: url='x' is no address"),
        ('{"url": ', "--api is no JSON: "),
        ("api.json", "api.json is neither a JSON object nor a file of one: "),
        ("list.json", "list.json is no JSON object of: url, pagination,"),
        ("bad.json", "bad.json: pagination='no' is none of link, cursor, page"),
    ],
)
def test_a_bad_api_is_refused_by_the_command_line(given: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "bad.json").write_text('{"url": "http://x/", "pagination": "no"}')
    refused = subprocess.run(
        [sys.executable, "-m", "flows.nightly_ingest", "--api", given],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert said in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    assert os.listdir(tmp_path) == ["list.json", "bad.json"] or len(os.listdir(tmp_path)) == 2


def test_the_api_may_stand_in_a_file(api: Api, tmp_path: Path) -> None:
    (tmp_path / "orders.json").write_text(json.dumps(fields(api)))
    done = subprocess.run(
        [sys.executable, "-m", "flows.nightly_ingest", "--api", "orders.json", "--date", str(DATE)],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("35 records on 2026-11-23: 35 handled now")


def test_without_httpx_the_line_that_installs_it_is_said(api: Api, tmp_path: Path) -> None:
    (tmp_path / "httpx.py").write_text("raise ImportError('no module named httpx')")
    environment = {**ENVIRONMENT, "PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"}
    refused = subprocess.run(
        command(api, "--date", str(DATE)),
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert refused.returncode == 2
    assert "needs httpx, which is not installed: pip install httpx\n" in refused.stderr
    assert not (tmp_path / ".resumable").exists()


def test_a_checkpoint_listing_is_not_confused_by_the_copies(api: Api, tmp_path: Path) -> None:
    assert run(tmp_path, api).returncode == 0
    assert (tmp_path / ".resumable/nightly_ingest/http-pages").is_dir()
    listed = subprocess.run(
        [Path(sys.executable).with_name("resumable"), "ls", "--json", ".resumable"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert listed.returncode == 0
    assert "http-pages" not in listed.stdout
    assert "2026-11-23" in listed.stdout
