"""Places as people write them: what is a path, what a bucket, and what is neither."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.object import ObjectStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import UsageError
from tests.conftest import Bucket


@pytest.mark.parametrize(
    ("named", "url"),
    [
        ("s3://bucket/a/b", "s3://bucket/a/b"),
        ("S3://bucket/a/b/", "s3://bucket/a/b"),
        ("gs://bucket", "gs://bucket"),
        ("az://container/a", "az://container/a"),
        ("s3://bucket/a%20b", "s3://bucket/a%20b"),
        ("s3://bucket/@2", "s3://bucket/@2"),
    ],
)
def test_a_place_in_a_bucket(named: str, url: str) -> None:
    store = open_store(named)
    assert isinstance(store, ObjectStore)
    assert store.url == url


@pytest.mark.parametrize(
    "named",
    [
        Path("s3://bucket/a"),
        "s3:/bucket/a",
        Path("GS://bucket/a"),
        "s3://",
        "s3:///a",
        "s3://bucket//a",
        "s3://bucket/a//",
        "s3://bucket/../a",
        "s3://bucket/./a",
        "s3://bucket/a?versionId=1",
        "s3://bucket/a#b",
        "s3://user:CANARY@bucket/a",
        "s3://CANARY@bucket/a",
        "s3://bucket:9000/a",
        "s3://bucket/a\nb",
        "s3://bucket/a\\b",
        "https://bucket.s3.amazonaws.com/a?X-Amz-Signature=CANARY",
        "hdfs://host/a",
        "~nobody-of-this-name/a",
    ],
)
def test_what_is_no_place_is_refused_and_never_a_folder(
    named: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as caught:
        open_store(named)
    assert caught.value.remedy
    assert "CANARY" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(open_store("./s3:/a"), LocalStore)
    assert isinstance(open_store("2026:11"), LocalStore)


def test_a_store_that_crosses_stays_in_its_incarnation() -> None:
    other = pickle.loads(pickle.dumps(open_store("s3://bucket/a/@2")))
    assert other.url == "s3://bucket/a/@2"


def test_a_worker_s_store_writes_into_the_incarnation_that_it_was_sent_for(bucket: Bucket) -> None:
    store = open_store(bucket.url)
    store.put("shards/a", b"")
    crossed = pickle.dumps(store)
    assert store.archive() == f"{bucket.url}/@0"
    store.put("shards/b", b"")
    pickle.loads(crossed).put("shards/c", b"")
    assert store.list("shards").keys() == {"shards/b"}
    assert open_store(f"{bucket.url}/@0").list("shards").keys() == {"shards/a", "shards/c"}
