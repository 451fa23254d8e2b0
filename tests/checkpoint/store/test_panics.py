"""The client of buckets panics: that is an error of ours, and what it had done is found out."""

from __future__ import annotations

from typing import Any

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.store import requests
from resumable_tasks.checkpoint.store.base import CreateUnknown
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import StoreError
from resumable_tasks.testing import s3objects
from tests.conftest import Bucket

obstore = pytest.importorskip("obstore")

ITEMS = [{"id": number} for number in range(20)]


class PanicException(BaseException):
    """As PyO3 makes it, for a panic that no server can be brought to cause."""


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "_DENIED_ELSE", 0.2)
    monkeypatch.setattr(requests, "_DENIED_AT_WORK", 0.4)


def panic(
    monkeypatch: pytest.MonkeyPatch, name: str, key: str, times: int, *, applied: bool = False
) -> None:
    """Let so many calls of the client panic, with their request applied or not made at all."""
    real = getattr(obstore, name)
    left = times

    def call(client: Any, asked: Any, *arguments: Any, **more: Any) -> Any:
        nonlocal left
        if key not in str(asked) or not left:
            return real(client, asked, *arguments, **more)
        left -= 1
        if applied:
            real(client, asked, *arguments, **more)
        raise PanicException("called `Option::unwrap()` on a `None` value")

    monkeypatch.setattr(obstore, name, call)


def test_of_an_answer_that_it_does_not_expect(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real one: of a service that could not delete what it was not asked to."""
    store = open_store(bucket.url)
    store.put("a", b"")
    error = "<Error><Key>another</Key><Code>No</Code><Message>no</Message></Error>"
    answer = s3objects.Reply(200, s3objects._xml("DeleteResult", error))
    monkeypatch.setattr(s3objects, "_delete_many", lambda *_: answer)
    with pytest.raises(StoreError, match=r"cannot delete .*/a: the bucket client has panicked"):
        store.delete("a")


@pytest.mark.parametrize("name", ["get", "list_with_delimiter"])
def test_whoever_reads_is_told(bucket: Bucket, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(bucket.url)
    store.put("journal/7", b"")
    panic(monkeypatch, name, "journal", -1)
    with pytest.raises(StoreError, match="the bucket client has panicked") as caught:
        store.read("journal/7") if name == "get" else store.list("journal")
    assert caught.value.exit_code == 75


@pytest.mark.parametrize("applied", [True, False])
def test_a_create_finds_out_what_has_come_of_it(
    bucket: Bucket, applied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket.url)
    panic(monkeypatch, "put", "journal/7", 1, applied=applied)
    assert store.create("journal/7", b"1")
    assert not store.create("journal/7", b"1")


def test_a_create_that_only_panics_is_unknown(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = open_store(bucket.url)
    panic(monkeypatch, "put", "journal/7", -1)
    with pytest.raises(CreateUnknown, match="has panicked"):
        store.create("journal/7", b"1")


@pytest.mark.parametrize("key", ["/journal/", "/shards/"])
def test_a_run_ends_with_it_and_is_resumed(bucket: Bucket, key: str) -> None:
    handled: list[int] = []

    def handle(items: list[dict[str, int]]) -> list[dict[str, int]]:
        handled.extend(item["id"] for item in items)
        if handled == list(range(13)):
            panic(patch, "put", key, -1)
        return items

    task = resumable_task(handle, name="panics", key="id", batch_size=1, concurrency=1)
    with pytest.MonkeyPatch.context() as patch:
        with pytest.raises(StoreError, match="has panicked") as caught:
            task.run(ITEMS, checkpoint=bucket.url, progress=False)
        assert caught.value.exit_code == 75
    handled.clear()
    run = task.run(ITEMS, checkpoint=bucket.url, progress=False, takeover=True)
    assert run.skipped >= 1
    assert sorted(run.table()["id"].to_pylist()) == list(range(20))
