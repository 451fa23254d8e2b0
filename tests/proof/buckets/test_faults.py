"""Each fault of a service, once with each kind of object: the run ends well, every row once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Collection, Iterable
from datetime import timedelta
from fnmatch import fnmatchcase
from typing import Any

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.base import log
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store import clients
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.prefect import task_runs
from resumable_tasks.task import run as run_of_a_job
from resumable_tasks.testing.s3server import KINDS
from tests.conftest import Bucket
from tests.proof.buckets import remote

COUNT = 24
LOCAL = {
    "manifest": "*/job.json",
    "holder": "*/holder.json",
    "claim": "*/journal/*0.jsonl",
    "record": "*/journal/*1.jsonl",
    "shard": "*/shards/*",
    "journal": "*/journal/",
    "shards": "*/shards/",
    "marker": "*/@1.json",
    "after": "*/@1/*",
}
REMOTE = {
    "open": "*/outbox/e1-open",
    "expected": "*/outbox/e1-t[0-9]",
    "begun": "*/outbox/e1-t[0-9]-begun",
    "outcome": "*/outbox/e1-[0-9]*",
    "outbox": "*/outbox/",
    "shard": "*/shards/*",
    "record": "*/journal/*1.jsonl",
}
# As each change shows that they still hold; the others are for `make test-long`.
SHORT = ("500-after", "applied-late")


@pytest.fixture(autouse=True)
def _short_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "_SILENCE", timedelta(seconds=1))
    monkeypatch.setattr(task_runs, "get_run_logger", lambda: log.logger)
    clients._client.cache_clear()


HANDLED: Counter[int] = Counter()
_lock = threading.Lock()


def note(items: list[dict[str, int]]) -> list[dict[str, int]]:
    """A handler that crosses a pickle by its name."""
    with _lock:
        HANDLED.update(item["id"] for item in items)
    return [item | {"value": item["id"] * 2} for item in items]


def run(bucket: Bucket, version: str = "1", **how: Any) -> Any:
    task = resumable_task(
        note, name="faulty", key="id", batch_size=4, concurrency=2, version=version
    )
    items = [{"id": number} for number in range(COUNT)]
    return task.run(items, checkpoint=bucket.url, progress=False, takeover=True, **how)


def check(bucket: Bucket, result: Any, fault: str) -> None:
    """Every row once, handled once, no damage, nothing of a run left behind."""
    assert (result.failed, result.completed + result.skipped) == (0, COUNT)
    rows = Counter(result.table().column("id").to_pylist())
    assert rows == Counter(range(COUNT))
    report = verify(open_store(bucket.url))
    assert not report.damages
    assert not report.orphans
    left = [name for name in bucket.stored() if "/outbox/" in f"/{name}"]
    # A request that lands when all is over leaves something for the next run's sweep.
    assert not left or fault == "applied-late"


def once_each(kinds: Iterable[str], short: Collection[str]) -> list[Any]:
    """Each kind of object with each fault; all but one fault in ``short`` and one more are long."""
    found = []
    for at, name in enumerate(kinds):
        others = [fault for fault in KINDS if fault not in short]
        chosen = {*short, *([others[at % len(others)]] if len(short) > 1 else ())}
        for fault in KINDS:
            marks = () if fault in chosen else pytest.mark.long
            found.append(pytest.param(name, fault, marks=marks))
    return found


def attack(bucket: Bucket, fault: str, key: str) -> None:
    """Three lives of a checkpoint, the next request for this key failing in each."""
    server = bucket.server
    HANDLED.clear()
    for life in ("new", "complete", "restarted"):
        server.fail(fault, key=key, seconds=0.03)  # late, and before a second try
        if life == "restarted":
            HANDLED.clear()
        again = {"version": "2", "on_version_change": "restart"} if life == "restarted" else {}
        result = run(bucket, **again)
        server.heal()
        check(bucket, result, fault)
        assert set(HANDLED.values()) == {1}, f"{life}: handled twice"
    asked = [
        seen
        for seen in server.log
        if fnmatchcase(seen.key or seen.query.get("prefix", ""), key)
        and seen.method in KINDS[fault].methods
    ]
    assert any(seen.fault for seen in asked) == bool(asked), "no request has met the fault"


@pytest.mark.sample(one_in=4)
@pytest.mark.parametrize(("name", "fault"), once_each(LOCAL, SHORT))
def test_one_request_fails(bucket: Bucket, name: str, fault: str) -> None:
    attack(bucket, fault, LOCAL[name])


@pytest.mark.sample(one_in=4)
@pytest.mark.parametrize(("name", "fault"), once_each([*LOCAL, "any"], SHORT[:1]))
def test_one_request_fails_where_no_metadata_is_kept(bucket: Bucket, name: str, fault: str) -> None:
    bucket.server.options.metadata = False
    attack(bucket, fault, LOCAL.get(name, "*"))


@pytest.mark.sample(one_in=9)
@pytest.mark.parametrize(("name", "fault"), once_each(REMOTE, SHORT))
def test_one_request_of_a_remote_worker_or_its_driver_fails(
    bucket: Bucket, name: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_of_a_job, "runner_of", remote.runner)
    attack(bucket, fault, REMOTE[name])


@pytest.mark.sample(one_in=4)
@pytest.mark.parametrize(("name", "fault"), once_each(REMOTE, SHORT[:1]))
def test_one_request_fails_beside_remote_workers_where_no_metadata_is_kept(
    bucket: Bucket, name: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_of_a_job, "runner_of", remote.runner)
    bucket.server.options.metadata = False
    attack(bucket, fault, REMOTE[name])
