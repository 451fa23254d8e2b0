"""What is seen of a run in Prefect: artifacts, events, states, logs; and that it costs nothing."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from resumable_tasks import Failing, Interrupted, ItemFailure, JobFailed, RunResult, resumable_task
from resumable_tasks.engine.events import Committed, Progress, RunFinished, RunStarted
from resumable_tasks.prefect import telemetry
from tests.prefect.api import Api, until
from tests.prefect.deployed import Deployed

pytestmark = [
    pytest.mark.usefixtures("in_prefect"),
    # Prefect's and its dependencies' own are not ours to fix.
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

COMMITTED = "resumable-tasks.batch.committed"
NASTY = (
    "a | b <b>bold</b> <img src=x onerror=alert(1)> *stars* `tick` [link](x) __init__ # \\ &amp;"
)


def items(count: int) -> list[dict[str, Any]]:
    return [{"id": n} for n in range(count)]


def same(rows: list[Any]) -> list[Any]:
    return rows


def in_flow(call: Callable[[], Any], ids: list[str]) -> Any:
    """The call in a flow run, whose id goes to ``ids``."""
    from prefect import flow
    from prefect.runtime import flow_run

    @flow(name="seen")
    def seen() -> Any:
        ids.append(str(flow_run.id))
        return call()

    return seen()


def shown(api: Api, flow_run: str) -> dict[str, Any]:
    """The artifacts by key, of which there is one each; those without are Prefect's own."""
    found = [each for each in api.artifacts(flow_run) if each["key"] is not None]
    by_key = {each["key"]: each for each in found}
    assert len(by_key) == len(found)
    return by_key


def told(api: Api, flow_run: str, commits: int) -> list[dict[str, Any]]:
    """The events of commits, oldest first, once there are all."""
    until(lambda: sum(e["payload"]["commits"] for e in api.events(COMMITTED, flow_run)) >= commits)
    return api.events(COMMITTED, flow_run)[::-1]


def test_a_run_is_seen_from_beginning_to_end(place: Path, api: Api) -> None:
    job = resumable_task(some_fail, name="classify", key="id", batch_size=10, concurrency=1)
    ids: list[str] = []
    listened: list[Any] = []
    job.run(items(40), checkpoint=place, progress=False)
    with pytest.raises(JobFailed):
        in_flow(lambda: job.run(items(100), checkpoint=place, listeners=[listened.append]), ids)

    found = shown(api, ids[0])
    assert {key: each["type"] for key, each in found.items()} == {
        "classify-progress": "progress",
        "classify-summary": "markdown",
        "classify-failures": "table",
    }
    assert all(
        (each["flow_run_id"], each["task_run_id"]) == (ids[0], None) for each in found.values()
    )

    progress = found["classify-progress"]
    assert progress["data"] == 100
    assert progress["description"].startswith("97/100 done, 40 of them resumed, 3 failed, ")
    assert f"\n\n`{place}`\n\n[" in progress["description"]

    assert found["classify-summary"]["description"] == (
        f"items failed: 97 of 100 items done (40 before, 57 now), 3 failed\n\n`{place}`"
    )
    text = found["classify-summary"]["data"]
    assert text.startswith("## classify: items failed\n")
    for line in ("all | 100 items", "resumed | 40 items", "new | 57 items", "failed | 3 items"):
        assert f"| {line} |" in text
    assert re.search(r"\| rate \| [\d.,]+/s \|", text)
    assert re.search(r"\| bound by \| \w+.* \|", text)
    assert re.search(r"\| written \| 57 rows, [\d,]+ bytes, in \d commits? \|", text)
    assert f"`{place}`" in text
    assert f"\nresumable status {place}\n" in text
    assert "only missing items" in text

    failures = found["classify-failures"]
    command = f"`resumable failures {place}`"
    assert failures["description"].startswith(f"3 items of classify failed: {command}\n\n[")
    rows = json.loads(failures["data"])
    pages = [row.pop("task run") for row in rows]
    assert rows == [
        {"key": str(key), "error": "ItemFailure", "attempts": 1, "message": "it is 7 again"}
        for key in (57, 77, 97)
    ]
    assert_linked(found, api)
    for page in pages:
        assert api.call("GET", f"task_runs/{page.rpartition('/')[2]}")["flow_run_id"] == ids[0]

    commits = [event for event in listened if isinstance(event, Committed)]
    events = told(api, ids[0], len(commits))
    payloads = [event["payload"] for event in events]
    records = [each["record"] for each in payloads]
    assert records == sorted(records)
    assert records[-1] == commits[-1].number
    assert sum(each["commits"] for each in payloads) == len(commits)
    for name in ("completed", "rows", "bytes"):
        assert sum(each[name] for each in payloads) == sum(getattr(c, name) for c in commits)
    for event in events:
        resource, payload = event["resource"], event["payload"]
        assert resource["prefect.resource.id"] == f"resumable-tasks.checkpoint.{place}"
        assert resource["resumable-tasks.job"] == "classify"
        assert resource["resumable-tasks.failed"] == str(payload["failed"])
        (last,) = [each for each in commits if each.number == payload["record"]]
        assert payload["completed_by_now"] == last.progress.completed + 40
        assert payload["expected"] == 100


def test_the_artifacts_of_a_run_that_ends_at_once_are_linked_too(
    place: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = resumable_task(some_fail, name="classify", key="id", batch_size=10, concurrency=1)
    ids: list[str] = []
    begin = telemetry.get_client

    def slowly(*args: Any, **named: Any) -> Any:
        time.sleep(2.0)  # by then the run has ended
        return begin(*args, **named)

    monkeypatch.setattr(telemetry, "get_client", slowly)
    with pytest.raises(JobFailed):
        in_flow(lambda: job.run(items(60), checkpoint=place), ids)
    found = shown(api, ids[0])
    assert len(found) == 3
    assert_linked(found, api)


def assert_linked(found: dict[str, Any], api: Api) -> None:
    """Each artifact leads to each other one."""
    ui = f"http://127.0.0.1:{api.port}"
    texts = {key: each["description"] + str(each["data"]) for key, each in found.items()}
    for key, text in texts.items():
        for other, each in found.items():
            name = other.rpartition("-")[2]
            link = f"[{name}]({ui}/artifacts/artifact/{each['id']})"
            assert (link in text) == (key != other)


def test_the_summary_has_each_class_of_error_the_counts_and_where_rows_were_published(
    place: Path, api: Api
) -> None:
    def refuse(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] == "5":
            raise ValueError("not this batch")
        return [ItemFailure(row["id"], "only text") if row["id"] == "7" else row for row in rows]

    job = resumable_task(
        refuse,
        name="job",
        key="id",
        batch_size=1,
        tolerated_failures=3,
        on_duplicate="skip",
        cost=lambda outcome: 0.5,
        failing=Failing(max_attempts=1),
    )
    given = [*({"id": str(n)} for n in range(10)), {"id": "0"}, {"id": "x"}, {"no": "key"}]
    ids: list[str] = []

    def call() -> Any:
        return job.run(given, checkpoint=place).publish(place.parent / "published")

    in_flow(call, ids)
    in_flow(call, ids)
    first, again = (shown(api, run)["job-summary"]["data"] for run in ids)
    for line in ("all | 13 items", "new | 9 items", "failed | 3 items", "cost | 5.5"):
        assert f"| {line} |" in first
    assert "| duplicates, skipped | 1 item |" in first
    for line in ("all | 13 items", "resumed | 9 items", "new | 0 items", "failed | 1 item"):
        assert f"| {line} |" in again
    assert "| quarantined, not tried | 2 items |" in again
    assert f"published: 9 rows in `{place.parent / 'published'}`" in first
    error = first.index("**1 ×** ValueError: not this batch (first: ")
    assert "**1 ×** ItemFailure: only text (first: " in first
    assert "**1 ×** InvalidKey: " in again
    assert shown(api, ids[1])["job-failures"]["description"].startswith("1 item of job failed: ")
    assert re.search(r"\(first: \"5\", in \[this task run\]\(http://[\w.:/-]+\)\)", first)
    assert first.count("Traceback (most recent call last)") == 1
    assert 'raise ValueError("not this batch")' in first[error:]
    log = until(lambda: "Task run failed with" in (text := "".join(api.logs(ids[0]))) and text)
    assert "NoneType: None" not in log


def some_fail(rows: list[Any]) -> list[Any]:
    time.sleep(0.02)
    return [
        ItemFailure(row["id"], "it is 7 again") if row["id"] % 20 == 17 and row["id"] > 40 else row
        for row in rows
    ]


def test_the_log_of_the_flow_run_and_that_of_the_task_runs(place: Path, api: Api) -> None:
    """What the library says of the run is the flow run's; what it says of a batch, the task's."""

    def some_fail_at_once(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] == 20:
            raise ValueError("not this batch")
        return rows

    job = resumable_task(
        some_fail_at_once, name="classify", key="id", batch_size=10, failing=Failing(isolate=False)
    )
    ids: list[str] = []
    with pytest.raises(JobFailed):
        in_flow(lambda: job.run(items(40), checkpoint=place), ids)

    def lines() -> Any:
        where = {"logs": {"flow_run_id": {"any_": ids}}, "limit": 200}
        found = api.call("POST", "logs/filter", where)
        return found if any("Finished in state Failed" in one["message"] for one in found) else None

    found = until(lines)
    of_run = [one["message"] for one in found if one["task_run_id"] is None]
    of_tasks = [one["message"] for one in found if one["task_run_id"] is not None]
    assert any(f"classify: checkpoint {place}: new" in line for line in of_run)
    assert any("batch 00002: 10 of 10 items failed" in line for line in of_tasks)
    assert any("ValueError: not this batch" in line for line in of_tasks)
    assert not any("batch 00002" in line for line in of_run if "JobFailed" not in line)


def test_the_progress_is_updated_while_the_run_goes_on_and_not_at_every_commit(
    place: Path, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resumable_tasks.prefect import telemetry

    monkeypatch.setattr(telemetry, "_UPDATE_SECONDS", 0.5)
    seen: list[float] = []

    @resumable_task(key="id", batch_size=1, concurrency=2)
    def classify(rows: list[Any]) -> list[Any]:
        time.sleep(0.04)
        if rows[0]["id"] % 40 == 39:  # nearly every second
            seen.extend(each["data"] for each in api.artifacts(ids[0]))
        return rows

    ids: list[str] = []
    commits: list[Any] = []
    began = time.monotonic()
    in_flow(lambda: classify.run(items(160), checkpoint=place, listeners=[commits.append]), ids)
    seconds = time.monotonic() - began
    assert seen[0] < seen[-1] < 100
    assert shown(api, ids[0])["classify-progress"]["data"] == 100
    updates = lambda: len(api.events("prefect.artifact.updated", ids[0]))  # noqa: E731
    until(lambda: updates() >= 2)
    assert len(commits) > 60
    assert updates() <= 2 + seconds / 0.5


@pytest.mark.long
def test_twenty_thousand_commits_are_told_and_none_is_dropped(api: Api) -> None:
    """At ten times the pace of the fastest disk; and what is told of them is bounded."""
    failures = tuple(failure(n) for n in range(20))
    ids: list[str] = []
    began = time.monotonic()

    def flood() -> float:
        listen, slowest = listener(), 0.0
        listen(RunStarted("many", "/data/many", "run", 0, 0, 20_000, 1))
        for n in range(20_000):
            progress = Progress(n + 1, n // 1_000, 0, 20_000, 1.0)
            some = failures[n // 1_000 : n // 1_000 + 1] if n % 1_000 == 0 else ()
            event = Committed("many", "/data/many", "run", n, 1, 1, 10, some, progress)
            before = time.monotonic()
            listen(event)
            slowest = max(slowest, time.monotonic() - before)
            if n % 100 == 0:
                time.sleep(0.015)
        listen(RunFinished("many", "/data/many", "run", "failed", progress))
        return slowest

    assert in_flow(flood, ids) < 0.5
    seconds = time.monotonic() - began
    events = told(api, ids[0], 20_000)
    assert sum(each["payload"]["commits"] for each in events) == 20_000
    assert sum(each["payload"]["completed"] for each in events) == 20_000
    assert sum(each["payload"]["failed"] for each in events) == 20
    assert events[-1]["payload"]["record"] == 19_999
    assert 2 <= len(events) <= 3 + seconds
    assert len(json.loads(shown(api, ids[0])["many-failures"]["data"])) == 20


def listener() -> Any:
    from resumable_tasks.prefect.telemetry import Telemetry

    return Telemetry({})


def failure(n: int, message: str = "wrong") -> Any:
    from resumable_tasks.runners.outcome import Failure

    return Failure(f"item-{n}", "ValueError", message)


def test_a_run_that_is_interrupted_waits_less_for_an_api_that_hangs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A cancelled flow run is killed after thirty seconds; batches may have taken 25 of them."""
    from resumable_tasks.prefect import telemetry

    assert 25 + telemetry._LAST_WORD_INTERRUPTED_SECONDS <= 28
    released = threading.Event()
    hang = lambda *args, **kwargs: released.wait(60)  # noqa: E731
    monkeypatch.setattr(telemetry, "get_client", hang)
    try:
        limits = {"interrupted": "_LAST_WORD_INTERRUPTED_SECONDS", "failed": "_LAST_WORD_SECONDS"}
        for how in limits:
            for each, name in limits.items():
                monkeypatch.setattr(telemetry, name, 0.5 if each == how else 60.0)
            listen = listener()
            listen(RunStarted("job", "/data", "run", 0, 0, 1, 1))
            began = time.monotonic()
            listen(RunFinished("job", "/data", "run", how, Progress(0, 0, 0, 1, 1.0)))
            assert 0.4 < time.monotonic() - began < 30
    finally:
        released.set()


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("broken", ["get_client", "emit_event", "Artifacts.show_progress", "all"])
def test_what_fails_here_fails_nothing_else(
    place: Path, api: Api, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    from resumable_tasks.prefect import telemetry

    def fails(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("broken on purpose")

    wanted = ["get_client", "emit_event", "Artifacts.show_progress", "Artifacts.show_summary"]
    for name in wanted if broken == "all" else [broken]:
        of, _, attribute = f"telemetry.{name}".rpartition(".")
        monkeypatch.setattr(eval(of), attribute, fails)
    monkeypatch.setattr(telemetry, "_UPDATE_SECONDS", 0.05)

    @resumable_task(key="id", batch_size=5, concurrency=1)
    def classify(rows: list[Any]) -> list[Any]:
        time.sleep(0.02)
        return rows

    ids: list[str] = []
    assert in_flow(lambda: classify.run(items(100), checkpoint=place), ids).completed == 100
    # Logs come in parts, and this is the last line.
    lines = until(lambda: "Finished in state" in "".join(found := api.logs(ids[0])) and found)
    found = [line for line in lines if "broken on purpose" in line]
    assert len(found) <= 3  # and not at each of the twenty commits, or at each update
    if broken in ("get_client", "all"):
        assert [line for line in found if "cannot show" in line]
    elif broken == "Artifacts.show_progress":
        assert "classify-summary" in shown(api, ids[0])


def test_the_keys_of_artifacts_are_legal_for_any_job_name(place: Path, api: Api) -> None:
    keys = {
        "classify": "classify",
        "Classify_Lessons.v2": "classify-lessons-v2",
        "_x_": "x",
        "__": "job",
        "0" * 200: "0" * 200,
    }

    def call() -> None:
        for number, name in enumerate(keys):
            job = resumable_task(lambda rows: rows, name=name, key="id")
            job.run(items(3), checkpoint=place / str(number))

    ids: list[str] = []
    in_flow(call, ids)
    assert set(shown(api, ids[0])) == {
        f"{key}-{what}" for key in keys.values() for what in ("progress", "summary")
    }


def test_two_jobs_and_one_job_for_two_dates_in_a_flow_run(place: Path, api: Api) -> None:
    first = resumable_task(lambda rows: rows, name="first", key="id")
    second = resumable_task(lambda rows: rows, name="second", key="id")
    ids: list[str] = []

    def call() -> None:
        first.run(items(10), checkpoint=place / "first", partition="2026-11-22")
        first.run(items(20), checkpoint=place / "first", partition="2026-11-23")
        second.run(items(30), checkpoint=place / "second")

    in_flow(call, ids)
    found = api.artifacts(ids[0])
    assert sorted(each["key"] for each in found) == [
        *["first-progress"] * 2,
        *["first-summary"] * 2,
        "second-progress",
        "second-summary",
    ]
    seen = {each["description"] for each in found if each["type"] == "progress"}
    for count, where in ((10, "first/2026-11-22"), (20, "first/2026-11-23"), (30, "second")):
        assert any(f"{count}/{count} done" in one and where in one for one in seen)
    assert {each["description"] for each in found if each["type"] == "markdown"} == {
        f"done: 10 of 10 items done, 0 failed\n\n`{place}/first/2026-11-22`",
        f"done: 20 of 20 items done, 0 failed\n\n`{place}/first/2026-11-23`",
        f"done: 30 of 30 items done, 0 failed\n\n`{place}/second`",
    }


def test_an_async_flow(place: Path, api: Api) -> None:
    from prefect import flow
    from prefect.runtime import flow_run

    @resumable_task(key="id", batch_size=10)
    async def fetch(rows: list[Any]) -> list[Any]:
        await asyncio.sleep(0.01)
        return rows

    @flow
    async def seen() -> tuple[str, RunResult]:
        return str(flow_run.id), await fetch.arun(items(100), checkpoint=place)

    run, result = asyncio.run(seen())
    assert result.completed == 100
    assert set(shown(api, run)) == {"fetch-progress", "fetch-summary"}
    assert sum(each["payload"]["completed"] for each in told(api, run, 1)) > 0


def test_a_job_in_a_task_run_of_ones_own_is_seen_there(place: Path, api: Api) -> None:
    from prefect import task
    from prefect.runtime import task_run

    @task
    def step() -> str:
        resumable_task(lambda rows: rows, name="job", key="id").run(items(10), checkpoint=place)
        return str(task_run.id)

    ids: list[str] = []
    step_id = in_flow(lambda: step.submit().result(), ids)
    found = shown(api, ids[0])
    assert set(found) == {"job-progress", "job-summary"}
    assert {each["task_run_id"] for each in found.values()} == {step_id}
    (event,) = told(api, ids[0], 1)
    assert f"prefect.task-run.{step_id}" in [
        each["prefect.resource.id"] for each in event["related"]
    ]


def test_items_without_a_length(place: Path, api: Api) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id")
    ids: list[str] = []
    in_flow(lambda: job.run((item for item in items(123)), checkpoint=place), ids)
    progress = shown(api, ids[0])["job-progress"]
    assert progress["data"] == 100
    assert progress["description"].startswith("123 done, ")


@pytest.mark.parametrize(
    ("progress", "how", "percentage"),
    [
        (Progress(0, 0, 0, 0, 0.0), "done", 100),
        (Progress(0, 0, 0, None, 0.0), "done", 100),
        (Progress(0, 0, 0, 10, 0.0), "", 0),
        (Progress(2, 1, 5, 16, 1.0), "", 50),
        (Progress(1, 0, 0, 3, 1.0), "", 33.3),
        (Progress(2, 1, 5, None, 1.0), "", 0),
        (Progress(2, 1, 5, None, 1.0), "interrupted", 0),
        (Progress(2, 1, 5, None, 1.0), "failed", 100),
        (Progress(2, 1, 5, 16, 1.0), "interrupted", 50),
        (Progress(90, 0, 0, 100, 1.0), "done", 100),  # the rest were duplicates
        (Progress(9, 0, 9, 10, 1.0), "", 100),  # more than were to be expected
    ],
)
def test_how_far_a_run_is(progress: Progress, how: str, percentage: float) -> None:
    from resumable_tasks.prefect.artifacts import percent

    assert percent(progress, how) == percentage


def test_of_many_failures_the_first_are_shown_and_the_rest_counted(place: Path, api: Api) -> None:
    def refuse(rows: list[Any]) -> list[Any]:
        return [ItemFailure(row["id"], "no " + "very " * 5_000 + "long") for row in rows]

    job = resumable_task(refuse, name="job", key="id", tolerated_failures=1.0)
    ids: list[str] = []
    in_flow(lambda: job.run(items(1_234), checkpoint=place / "with space"), ids)
    table = shown(api, ids[0])["job-failures"]
    command = f"resumable failures {shlex.quote(str(place / 'with space'))}"
    assert table["description"].startswith(
        f"1,234 items of job failed. The first 200 are shown; 1,034 more are listed by `{command}`"
    )
    rows = json.loads(table["data"])
    assert len(rows) == 200
    assert len(table["data"]) < 100_000
    assert all(row["message"].startswith("no very") for row in rows)


def test_nothing_in_a_name_or_a_message_is_taken_for_markdown(tmp_path: Path, api: Api) -> None:
    def refuse(rows: list[Any]) -> list[Any]:
        return [ItemFailure(row["id"], ValueError(f"{NASTY}\n{NASTY}")) for row in rows]

    place = tmp_path / "odd|name <i>x<" / f"`t` {NASTY[:40].replace('/', '_')}"
    job = resumable_task(refuse, name="_my_job_", key="id", tolerated_failures=1.0)
    ids: list[str] = []
    in_flow(lambda: job.run([{"id": f"<u>{NASTY}"}], checkpoint=place), ids)
    found = shown(api, ids[0])
    row = json.loads(found["my-job-failures"]["data"])[0]
    assert rendered(row["key"]) == f"<u>{NASTY}"
    assert rendered(row["message"]) == f"{NASTY}\\n{NASTY}"
    for suffix in ("progress", "failures", "summary"):
        text = rendered(found[f"my-job-{suffix}"]["description"])
        assert str(place) in text or shlex.quote(str(place)) in text
    summary = rendered(found["my-job-summary"]["data"])
    assert f"checkpoint: {place}" in summary
    assert f"resumable status {shlex.quote(str(place))}" in summary
    assert "_my_job_: done" in summary


HTML = MarkdownIt("commonmark", {"html": True}).enable("table")


def rendered(markdown: str) -> str:
    """What is to be read of it in a browser: it fails at a tag that is not to be expected."""
    html = HTML.render(markdown)
    tags = re.findall(r"<[^>]*>", html)
    assert all(
        re.fullmatch(r"</?(p|code|pre|h2|h3|a|strong|table|thead|tbody|tr|td|th)( [^>]*)?>", t)
        for t in tags
    )
    text = re.sub(r"<[^>]*>", "", html).strip("\n")
    for entity, character in {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&amp;": "&"}.items():
        text = text.replace(entity, character)
    return text


@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40)
    | st.text(" `*_-<&.1)a", min_size=1)
)
@example("`")
@example("``` `x` ```")
@example(" ` ")
@example("1. list")
@example("12) list")
@example("- list")
@example("__init__")
@example("'<class 'int'>'")
@example("a\n\nb")
@example("    code")
@example(" ")
@settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])
def test_any_text_is_shown_as_it_is(text: str) -> None:
    from resumable_tasks.base.text import clean
    from resumable_tasks.prefect.markdown import block, code, literal

    for markdown in (code(text), block(text), literal(text))[: None if text.strip() else 2]:
        # A browser shows no space at the ends of a line.
        assert rendered(markdown).strip(" ") == clean(text).strip(" ")


def test_plain_messages_are_not_made_code() -> None:
    """The newer UI shows what makes it code."""
    from resumable_tasks.prefect.markdown import literal

    for text in ("division by zero", "'item-1'", "ValueError", "404 Not Found: /a/b", "('a', 7)"):
        assert literal(text) == text


def test_a_run_that_is_interrupted_says_how_to_resume(place: Path, api: Api) -> None:
    @resumable_task(key="id", batch_size=5, concurrency=1)
    def classify(rows: list[Any]) -> list[Any]:
        if rows[0]["id"] == 20:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)
        return rows

    ids: list[str] = []
    with pytest.raises(Interrupted):
        in_flow(lambda: classify.run(items(100), checkpoint=place), ids)
    found = shown(api, ids[0])
    text = found["classify-summary"]["data"]
    assert text.startswith("## classify: interrupted\n")
    assert "Start the flow again with the same checkpoint, or retry this flow run" in text
    missing = re.search(r"\| not handled \| (\d+) items \|", text)
    assert missing is not None
    done = re.search(r"\| new \| (\d+) items \|", text)
    assert done is not None
    assert int(done[1]) + int(missing[1]) == 100
    assert found["classify-progress"]["data"] == int(done[1])


def test_the_state_of_a_flow_says_what_was_done(place: Path, api: Api) -> None:
    from resumable_tasks import flow_state

    job = resumable_task(some_fail, name="job", key="id", tolerated_failures=100)
    job.run(items(40), checkpoint=place, progress=False)
    ids: list[str] = []
    result = in_flow(lambda: flow_state(job.run(items(1_300), checkpoint=place)), ids)
    assert isinstance(result, RunResult)
    assert (result.completed, result.skipped) == (1_260 - result.failed, 40)
    state = api.flow_run(ids[0])["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Completed")
    done = f"{40 + result.completed:,} of 1,300 items done (40 before, {result.completed:,} now)"
    assert state["message"] == f"{done}, {result.failed:,} failed"


@pytest.mark.parametrize("serializer", ["pickle", "json"])
def test_the_state_of_a_flow_that_keeps_its_results(place: Path, api: Api, serializer: str) -> None:
    from prefect import flow
    from prefect.runtime import flow_run

    from resumable_tasks import flow_state

    ids: list[str] = []

    @flow(persist_result=True, result_serializer=serializer)
    def seen() -> Any:
        ids.append(str(flow_run.id))
        job = resumable_task(lambda rows: rows, name="job", key="id")
        return flow_state(job.run(items(30), checkpoint=place))

    state = seen(return_state=True)
    assert state.message == api.flow_run(ids[0])["state"]["message"]
    assert state.message == "30 of 30 items done, 0 failed"
    assert state.result().table().num_rows == 30


def test_the_state_of_a_flow_whose_job_failed_can_be_read(place: Path, api: Api) -> None:
    def refuse(rows: list[Any]) -> list[Any]:
        kinds = [type(f"Odd{n}", (Exception,), {}) for n in range(30)]
        return [
            ItemFailure(row["id"], kinds[row["id"] % 30](f"\x1b[31m{NASTY}\n" * 1_000))
            for row in rows
        ]

    job = resumable_task(refuse, name="job", key="id")
    ids: list[str] = []
    with pytest.raises(JobFailed):
        in_flow(lambda: job.run(items(100), checkpoint=place), ids)
    message = api.flow_run(ids[0])["state"]["message"]
    lines = message.splitlines()
    assert "JobFailed: 100 of 100 items of job failed; 0 are done and safe in" in lines[0]
    assert f"resumable failures {place}" in lines[-1]
    assert len(lines) <= 13
    assert len(message) < 5_000
    assert message.replace("\n", "").isprintable()


@pytest.mark.long
def test_an_automation_is_triggered_by_commits(place: Path, api: Api) -> None:
    """Three commits with failures suspend the flow run; it is resumed when the cause is fixed."""
    from prefect import flow
    from prefect.exceptions import Pause

    from resumable_tasks import flow_state

    broken = [True]
    handled: list[int] = []

    @resumable_task(key="id", batch_size=5, concurrency=1)
    def classify(rows: list[Any]) -> list[Any]:
        time.sleep(0.2 if broken[0] else 0)
        handled.extend(row["id"] for row in rows)
        if broken[0] and rows[0]["id"] >= 10:
            return [ItemFailure(row["id"], "no credit is left") for row in rows]
        return rows

    @flow(name="nightly")
    def nightly() -> Any:
        return flow_state(classify.run(items(400), checkpoint=place))

    automation = api.call(
        "POST",
        "automations/",
        {
            "name": f"suspend-{place.parent.name}",
            "trigger": {
                "type": "event",
                "posture": "Reactive",
                "expect": [COMMITTED],
                "match": {
                    "prefect.resource.id": f"resumable-tasks.checkpoint.{place.parent}/*",
                    "resumable-tasks.failed": "!0",
                },
                "for_each": ["prefect.resource.id"],
                "threshold": 3,
                "within": 60,
            },
            "actions": [{"type": "suspend-flow-run"}],
        },
    )
    deployed = Deployed.of(api, nightly)
    run = deployed.created("2024-01-31T16:00:00Z")
    try:
        with pytest.raises(Pause):
            deployed.carry_out(run)
    finally:
        api.call("DELETE", f"automations/{automation['id']}")
    assert until(lambda: api.flow_run(run)["state"]["name"] == "Suspended")
    assert 25 <= len(handled) < 300

    broken[0] = False
    api.call("POST", f"flow_runs/{run}/resume", {})
    assert deployed.carry_out(run).is_completed()
    assert (
        api.flow_run(run)["state"]["message"]
        == "400 of 400 items done (10 before, 390 now), 0 failed"
    )
    assert len(handled) < 400 + 300 - 10
