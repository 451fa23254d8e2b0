"""A bucket that refuses, or does not answer: what is tried again, for how long, what is said."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.store import disk, requests
from resumable_tasks.checkpoint.store.base import CreateUnknown
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import CheckpointUnusable, StoreError
from resumable_tasks.testing.s3server import KINDS, Kind
from tests.conftest import Bucket

REFUSALS = {
    "403": ("403 AccessDenied", "permission to read"),
    "expired": ("400 ExpiredToken", "have expired"),
    "skewed": ("403 RequestTimeTooSkewed", "machine's clock"),
    "elsewhere": ("301 PermanentRedirect", "the region"),
    "no-bucket": ("404 NoSuchBucket", "Create it"),
}

ITEMS = [{"id": number} for number in range(20)]


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_ELSE", 0.5)
    monkeypatch.setattr(requests, "_AT_WORK", 2.0)
    monkeypatch.setattr(requests, "_DENIED_ELSE", 0.2)
    monkeypatch.setattr(requests, "_DENIED_AT_WORK", 0.4)
    for kind, (answer, _) in REFUSALS.items():
        monkeypatch.setitem(KINDS, kind, Kind(False, answer))
    monkeypatch.setitem(KINDS, "no-key", Kind(False, "404 NoSuchKey"))


def job(bucket: Bucket, fail_at: int = -1, **how: Any) -> Any:
    """Run twenty items in batches of one; from this item on, the bucket fails."""

    def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
        if items[0]["id"] == fail_at:
            bucket.server.fail(times=-1, **how)
        return items

    task = resumable_task(handle, name="refused", key="id", batch_size=1, concurrency=1)
    return task.run(ITEMS, checkpoint=bucket.url, progress=False, takeover=True)


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_place_that_refuses_from_the_start_cannot_be_used(
    bucket: Bucket, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.server.fail(kind, times=-1)
    with pytest.raises(CheckpointUnusable, match=REFUSALS[kind][1]) as caught:
        job(bucket)
    assert bucket.server.counts().total() < 30, "asked far too often"
    assert bucket.url in str(caught.value)
    assert not bucket.stored()
    assert "holder.json" not in caplog.text, "what was never there cannot be removed"


@pytest.mark.parametrize("kind", REFUSALS)
def test_a_run_that_is_refused_ends_and_is_resumed(bucket: Bucket, kind: str) -> None:
    with pytest.raises(StoreError, match=REFUSALS[kind][1]) as caught:
        job(bucket, 12, kind=kind)  # behind what may be out before the first commit
    assert caught.value.exit_code == 75
    assert "unknown" not in str(caught.value), "a refusal is certain"
    bucket.server.heal()
    run = job(bucket)
    assert run.skipped >= 1
    assert run.table().num_rows == 20


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """One try follows the first in any case, unless the first takes longer than all patience."""
    monkeypatch.setattr(requests, "_ELSE", 60.0)
    monkeypatch.setattr(requests, "_AT_WORK", 60.0)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("kind", REFUSALS)
def test_a_refusal_in_passing_ends_no_run(bucket: Bucket, kind: str) -> None:
    for key in ("*/journal/*", "*/shards/*", "*holder.json"):
        bucket.server.fail(kind, key=key, method="PUT")
    assert job(bucket).table().num_rows == 20


@pytest.mark.usefixtures("patient")
def test_a_refusal_in_passing_that_is_slow_to_come_is_tried_again_too(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_DENIED_ELSE", 0.05)
    monkeypatch.setattr(bucket.server.options, "latency", 0.1)
    bucket.server.fail("elsewhere", key="*holder.json", method="PUT")
    assert job(bucket).table().num_rows == 20


def test_a_throttle_of_minutes_loses_no_result(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A run at work waits longer than it would to begin, and says what it waits for."""
    monkeypatch.setattr(requests, "_AT_WORK", 60.0)
    monkeypatch.setattr(requests, "_UNTOLD", 0.2)
    handled: list[int] = []

    def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
        handled.append(items[0]["id"])
        if items[0]["id"] == 7:
            bucket.server.fail("503", times=40)
        return items

    task = resumable_task(handle, name="throttled", key="id", batch_size=1, concurrency=1)
    with caplog.at_level(logging.WARNING):
        run = task.run(ITEMS, checkpoint=bucket.url, progress=False)
    assert run.table().num_rows == 20
    assert sorted(handled) == list(range(20)), "paid for twice"
    said = [each for each in caplog.messages if "Trying again" in each]
    assert 1 <= len(said) <= 4, "once for each part of the run that waits"
    assert "503 Service Unavailable" in said[0]


def test_whoever_opens_does_not_wait_as_long(bucket: Bucket) -> None:
    bucket.server.fail("503", times=-1)
    with pytest.raises(StoreError, match="503 Service Unavailable, SlowDown"):
        job(bucket)


RIGHTS = {
    "write": ("PUT", "s3:PutObject", "storage.objects.create"),
    "read": ("GET", "s3:GetObject", "storage.objects.get"),
    "list": ("GET", "s3:ListBucket", "storage.objects.list"),
    "delete": ("*", "s3:DeleteObject", "storage.objects.delete"),
}


@pytest.mark.parametrize("google", [False, True])
@pytest.mark.parametrize("verb", RIGHTS)
def test_the_right_that_is_missing_is_named(bucket: Bucket, verb: str, google: bool) -> None:
    store = open_store(bucket.google_url if google else bucket.url)
    store.put("shards/a", b"")
    method, *rights = RIGHTS[verb]
    bucket.server.fail("403", method=method, times=-1)
    calls = {
        "write": lambda: store.put("shards/b", b""),
        "read": lambda: store.read("shards/a"),
        "list": lambda: store.list("shards"),
        "delete": lambda: store.delete("shards/a"),
    }
    with pytest.raises(
        StoreError, match=f"cannot {verb} .* below this prefix, here {rights[google]};"
    ):
        calls[verb]()


def test_a_run_that_may_not_delete_ends_well_and_says_so(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    for method in ("POST", "DELETE"):
        bucket.server.fail("403", method=method, times=-1)
    run = job(bucket)
    assert run.table().num_rows == 20
    assert any("holder.json could not be removed" in text for text in caplog.messages)
    assert "s3:DeleteObject" in caplog.text
    again = job(bucket)
    assert (again.completed, again.skipped) == (0, 20)


def test_a_refusal_to_delete_one_of_many_is_no_success(bucket: Bucket) -> None:
    from resumable_tasks.testing import s3objects

    store = open_store(bucket.url)
    store.put("a", b"")
    real = s3objects._delete_many
    key = f"{bucket.prefix}/a"
    error = f"<Error><Key>{key}</Key><Code>AccessDenied</Code><Message>no</Message></Error>"
    with pytest.MonkeyPatch.context() as patch:
        answer = s3objects.Reply(200, s3objects._xml("DeleteResult", error))
        patch.setattr(s3objects, "_delete_many", lambda *_: answer)
        with pytest.raises(StoreError, match="AccessDenied"):
            store.delete("a")
    assert s3objects._delete_many is real
    store.delete("a")
    assert not bucket.stored()


def test_a_name_that_cannot_be_is_not_asked_for_again(bucket: Bucket) -> None:
    store = open_store(bucket.url)
    store.list("")
    with pytest.raises(StoreError):
        store.put("a\nb", b"")
    assert bucket.server.counts()["PUT"] == 0


def test_conditions_cannot_be_switched_off_by_the_environment(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    store = open_store(bucket.url)
    assert store.create("a", b"1")
    assert not store.create("a", b"2")


def test_a_create_is_unknown_only_if_it_may_have_been_applied(bucket: Bucket) -> None:
    store = disk.patient(open_store(bucket.url))
    for kind, unknown in (("503", True), ("reset-before", True), ("403", False)):
        bucket.server.fail(kind, times=-1, method="PUT")
        with pytest.raises(StoreError) as caught:
            store.create("a", b"")
        assert isinstance(caught.value, CreateUnknown) is unknown, kind
        bucket.server.heal()


def test_a_name_that_goes_while_it_is_looked_at_tells_nothing(bucket: Bucket) -> None:
    """Where the service keeps no metadata, the bytes are looked at; they may be gone by then."""
    bucket.server.options.metadata = False
    store = open_store(bucket.url)
    bucket.server.fail("500-after", method="PUT")
    bucket.server.fail("no-key", method="GET", key="*/a")
    with pytest.raises(CreateUnknown):
        store.create("a", b"1")
