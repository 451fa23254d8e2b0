"""The store in a bucket keeps the contract of stores, and the journal its own in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from resumable_tasks.checkpoint.store import clients
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.testing.journal_suite import JournalSuite
from resumable_tasks.testing.s3server import KINDS
from resumable_tasks.testing.store_suite import StoreSuite
from tests import warm
from tests.conftest import Bucket

pytest.importorskip("obstore")


class InBucket:
    """A store on the strict server."""

    changing_rounds = 5
    racers = 20
    secret = "canary-of-a-secret-key"
    scheme = "s3"
    processes = warm.Spawn()

    @pytest.fixture(autouse=True)
    def _bucket(self, bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
        bucket.server.options.access_key = "canary-of-a-secret-key"
        for name, value in bucket.server.environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", self.secret)
        monkeypatch.setattr(clients, "_SILENCE", timedelta(seconds=1))
        self.bucket = bucket
        self.numbers = count()

    def make_store(self, tmp_path: Path) -> Store:
        return open_store(f"{self.scheme}://test/{self.bucket.prefix}/{next(self.numbers)}")

    def store_at(self, url: str) -> Store:
        return open_store(url)

    def oracle(self, store: Store) -> dict[str, bytes]:
        start = store.url.removeprefix(f"{self.scheme}://test/") + "/"
        stored = self.bucket.server.stored().items()
        return {name.removeprefix(start): data for name, data in stored if name.startswith(start)}

    @contextmanager
    def failing(self, store: Store, fault: str, share: float) -> Iterator[None]:
        server = self.bucket.server
        store.list("")  # the first use of all finds out where the names stand
        server.forget()
        if share:
            server.fail_often(share, kinds=[fault], seconds=0.1)
        else:
            server.fail(fault, seconds=0.04)  # before a second try
        try:
            yield
        finally:
            server.heal()
        could = any(seen.method in KINDS[fault].methods for seen in server.log)
        assert share or could == any(seen.fault for seen in server.log)

    def mark_folders(self, store: Store) -> bool:
        start = store.url.removeprefix(f"{self.scheme}://test/") + "/"
        for marker in (start, f"{start}journal/"):
            self.bucket.server.put(marker, b"")
        return True


# One of each sort: the request is applied or not, the reply is an error, silence, or half.
SHORT = ("500-after", "409-conflict", "403", "reset-before", "lost", "applied-late", "truncated")


class TestStoreInS3(InBucket, StoreSuite):
    faults = tuple(
        pytest.param(kind, marks=() if kind in SHORT else pytest.mark.long) for kind in KINDS
    )

    @pytest.mark.sample(one_in=3)
    def test_a_create_is_settled_where_metadata_is_dropped(self, store: Store, fault: str) -> None:
        """Though the store cannot tell its own object from another's."""
        self.bucket.server.options.metadata = False
        self.test_a_create_that_fails_is_settled(store, fault)
        store.delete("journal/7")
        for data in (b"mine", b"another's"):
            self.test_a_create_of_a_taken_name_that_fails_is_never_won(store, fault, data)
        store.delete("journal/7")
        self.test_of_racers_whose_requests_fail_at_most_one_wins(store, fault)


@pytest.mark.long
class TestStoreInS3AtLength(InBucket, StoreSuite):
    """With as many racers as the suite has."""

    racers = StoreSuite.racers
    faults = SHORT


@pytest.mark.sample(one_in=3)
class TestStoreInGoogle(InBucket, StoreSuite):
    """Other words of the same server; what is dear and knows no words, at length alone."""

    scheme = "gs"
    half_seen_rounds = 3
    faults = ("500-after", "409-aborted")
    test_of_racing_processes_exactly_one_creates_a_name = None
    test_of_racing_threads_exactly_one_creates_a_name = None
    test_list_is_whole_whatever_the_number = None
    test_delete_all_takes_away_these_names_and_minds_none_that_is_missing = None
    test_list_is_not_troubled_by_names_that_come_and_go = None
    test_read_all_gives_the_bytes_in_the_order_of_the_names = None


@pytest.mark.long
class TestStoreInGoogleAtLength(InBucket, StoreSuite):
    scheme = "gs"
    racers = StoreSuite.racers
    faults = ("500-after", "409-aborted", "reset-after", "applied-late")


@pytest.mark.sample(one_in=6)  # all of it on a disk: test_journal_contract.py
class TestJournalInS3(InBucket, JournalSuite):
    pass


@pytest.mark.long  # the journal knows nothing of words: the store does
class TestJournalInGoogle(InBucket, JournalSuite):
    scheme = "gs"
