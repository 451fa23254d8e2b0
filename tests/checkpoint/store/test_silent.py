"""A bucket that does not answer: how long it is asked, what is said meanwhile, and after Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta

import pytest

from resumable_tasks.base import hanging
from resumable_tasks.checkpoint.store import answers, clients, disk, probe, requests
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import StoreError
from tests.conftest import Bucket

pytest.importorskip("obstore")


class Clock:
    """In the place of `time` where requests are tried again: pauses alone take time, and no time.

    On a busy machine a single try might be all that a short patience has room for.
    """

    def __init__(self) -> None:
        self._now = 1_000.0

    def monotonic(self) -> float:
        return self._now

    def sleep(self, seconds: float) -> None:
        self._now += seconds


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The client's own tries again are left out: how many requests are made is counted."""
    clock = Clock()
    monkeypatch.setattr(requests, "time", clock)
    monkeypatch.setattr(answers, "time", clock)
    monkeypatch.setattr(requests, "_ELSE", 1.0)
    monkeypatch.setattr(requests, "_AT_WORK", 2.0)
    monkeypatch.setattr(clients, "_RETRIES", {"max_retries": 0})
    clients._client.cache_clear()
    yield
    clients._client.cache_clear()
    hanging._interrupted_at = float("-inf")


def interrupt() -> None:
    with contextlib.suppress(KeyboardInterrupt), hanging.heeded():
        raise KeyboardInterrupt


def asked(bucket: Bucket, url: str) -> int:
    """How often a listing of a new store is asked for, which fails."""
    bucket.server.forget()
    with pytest.raises(StoreError, match="cannot list"):
        open_store(url).list("")
    return bucket.server.counts().total()


def test_a_silence_is_told_of_while_it_lasts(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client, which would ask again by itself, comes back after the first silence."""
    monkeypatch.setattr(clients, "_RETRIES", {"max_retries": 4})
    monkeypatch.setattr(clients, "_SILENCE", timedelta(seconds=0.5))
    monkeypatch.setattr(requests, "_ELSE", 2.0)
    monkeypatch.setattr(requests, "_UNTOLD", 0.1)
    bucket.server.fail("hang", times=-1)
    with caplog.at_level(logging.WARNING), pytest.raises(StoreError) as caught:
        open_store(bucket.url).list("")
    assert f"cannot list {bucket.url}: no answer (GET http://127.0.0.1" in str(caught.value)
    (told,) = caplog.messages
    assert told.startswith(f"{bucket.url}: no answer (GET http://127.0.0.1")
    assert "Trying again for up to 1." in told


def test_what_follows_a_request_that_was_given_up_is_asked_for_once(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.server.fail("503", times=-1)
    assert asked(bucket, bucket.url) > 1
    assert asked(bucket, f"{bucket.url}/another") == 1
    with monkeypatch.context() as later:
        later.setattr(requests, "_REMEMBERED", 0.0)
        assert asked(bucket, bucket.url) > 1, "an outage of long ago says nothing"
    bucket.server.heal()
    assert open_store(bucket.url).list("") == {}
    bucket.server.fail("503", times=-1)
    assert asked(bucket, bucket.url) > 1, "an answer that has come since ends the outage"


def test_a_run_at_work_is_as_patient_as_ever(bucket: Bucket) -> None:
    store = disk.patient(open_store(bucket.url))
    bucket.server.fail("503", times=-1)
    asked(bucket, bucket.url)
    bucket.server.forget()
    with pytest.raises(StoreError):
        store.put("a", b"")
    assert bucket.server.counts().total() > 1


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("reset-before", "Connection reset by peer (GET http://127.0.0.1"),
        ("503", "503 Service Unavailable, SlowDown"),
    ],
)
def test_the_cause_is_named(bucket: Bucket, fault: str, words: str) -> None:
    store = open_store(bucket.url)
    store.put("a", b"some bytes")
    bucket.server.fail(fault, times=-1, method="GET", key="*/a")
    with pytest.raises(StoreError) as caught:
        store.read("a")
    assert words in str(caught.value)
    assert "error sending" not in str(caught.value)


def test_a_server_that_has_gone_is_named(bucket: Bucket) -> None:
    bucket.server.close()
    with pytest.raises(StoreError, match="Connection refused") as caught:
        open_store(bucket.url).list("")
    assert bucket.server.endpoint in str(caught.value)


def test_a_check_ends_at_the_first_probe_that_is_not_answered(bucket: Bucket) -> None:
    bucket.server.fail("503", times=-1)
    found = [finding.probe for finding in probe.check(bucket.url)]
    assert found == ["write", "clean up"]


def test_what_cleans_up_after_ctrl_c_does_not_wait_for_long(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hanging, "_BEGINS_WITHIN", 60.0)
    store = open_store(bucket.url)
    store.put("a", b"")
    bucket.server.fail("hang", times=-1)
    interrupt()
    for each in (store, disk.patient(store)):
        with pytest.raises(StoreError, match="no answer soon after Ctrl-C"):
            each.delete("a")
    bucket.server.heal()
    hanging._interrupted_at -= 120
    store.delete("a")
    assert bucket.stored() == {}


def test_what_answers_is_cleaned_up_after_ctrl_c(bucket: Bucket) -> None:
    store = open_store(bucket.url)
    store.put("a", b"")
    interrupt()
    store.delete("a")
    assert bucket.stored() == {}
