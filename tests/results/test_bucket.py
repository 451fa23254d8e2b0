"""Rows published to a bucket: unique files and a pointer, or a Delta table."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs
import pyarrow.parquet as pq
import pytest

from resumable_tasks import StoreError, UsageError, resumable_task
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.store import requests
from resumable_tasks.results import delta
from tests import warm
from tests.conftest import Bucket

boto3 = pytest.importorskip("boto3")
polars = pytest.importorskip("polars")

POINTER = "_published.json"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm(None)


def run(place: Any, count: int, word: Any = "a") -> Any:
    def rows(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": item["id"], "word": word} for item in items]

    job = resumable_task(rows, name="job", key="id", batch_size=10)
    return job.run([{"id": i} for i in range(count)], checkpoint=place)


def files(bucket: Bucket) -> set[str]:
    return set(bucket.stored()) - {POINTER}


def pointed(bucket: Bucket) -> list[str]:
    return list(json.loads(bucket.stored()[POINTER])["files"])


def storage() -> dict[str, str]:
    return {"conditional_put": "etag", "allow_http": "true"}


def table_ids(bucket: Bucket) -> list[int]:
    found = polars.read_delta(bucket.url, storage_options=storage())
    return sorted(found["id"].to_list()) if found.height else []


# --- a pointer


def test_the_pointer_names_the_files_and_polars_and_pyarrow_read_them(
    bucket: Bucket, place: Path
) -> None:
    published = run(place, 30).publish(bucket.url)
    assert (published.dest, published.rows) == (bucket.url, 30)
    assert set(published.files) == files(bucket)
    assert published.bytes == sum(len(bucket.stored()[name]) for name in published.files)
    client = boto3.client("s3")
    body = client.get_object(Bucket="test", Key=f"{bucket.prefix}/{POINTER}")["Body"].read()
    record = json.loads(body)
    assert (record["rows"], record["job"], record["version"]) == (30, "job", 1)
    urls = [f"{bucket.url}/{name}" for name in record["files"]]
    assert sorted(polars.read_parquet(urls)["id"]) == list(range(30))
    filesystem = pyarrow.fs.S3FileSystem(
        endpoint_override=bucket.server.endpoint.removeprefix("http://"), scheme="http"
    )
    paths = [f"test/{bucket.prefix}/{name}" for name in record["files"]]
    found = pq.ParquetDataset(paths, filesystem=filesystem).read()
    assert sorted(found["id"].to_pylist()) == list(range(30))


def test_order_and_what_was_given(bucket: Bucket, place: Path) -> None:
    run(place, 40)
    result = run(place, 20)
    result.publish(bucket.url, ordered=True, only_given=True)
    (name,) = pointed(bucket)
    found = pq.read_table(pa.BufferReader(bucket.stored()[name]))
    assert found["id"].to_pylist() == list(range(20))


def test_large_results_are_several_files(bucket: Bucket, place: Path) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=100)
    items = [{"id": i, "text": f"{i * 7919:030}" * 5} for i in range(2_000)]
    published = job.run(items, checkpoint=place).publish(bucket.url, target_bytes=5_000)
    assert len(published.files) > 2
    assert [pa.BufferReader(bucket.stored()[name]) for name in published.files]
    tables = [pq.read_table(pa.BufferReader(bucket.stored()[name])) for name in published.files]
    assert sorted(pa.concat_tables(tables)["id"].to_pylist()) == list(range(2_000))


def test_files_stay_until_the_publishing_after_the_next(bucket: Bucket, place: Path) -> None:
    versions = []
    for count in (10, 20, 30, 40):
        run(place, count).publish(bucket.url)
        versions.append(pointed(bucket))
        there = {name for version in versions[-2:] for name in version}
        assert files(bucket) == there


def test_no_object_is_overwritten_but_the_pointer(bucket: Bucket, place: Path) -> None:
    for count in (10, 20, 30):
        run(place, count).publish(bucket.url)
    puts = [each.key for each in bucket.server.log if each.method == "PUT"]
    assert [key for key in puts if puts.count(key) > 1] == [f"{bucket.prefix}/{POINTER}"] * 3


def test_what_dead_publishers_have_left_goes_in_time(bucket: Bucket, place: Path) -> None:
    result = run(place, 10)

    code = f"""
import os
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.store import requests
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.results.publish import publish
faults.arm(lambda name: name == "publish.staged" and os._exit(9))
publish(Directory({str(place)!r}).reader(), {bucket.url!r})
"""
    for _ in range(2):
        assert warm.run(["-c", code]).returncode == 9
    left = files(bucket)
    assert len(left) == 2
    assert POINTER not in bucket.stored()
    for _ in range(4):
        result.publish(bucket.url)
    assert not files(bucket) & left
    assert len(files(bucket)) == 2


def test_a_slow_publisher_starts_over_if_others_were_faster(bucket: Bucket, place: Path) -> None:
    """What it has written may be removed by then."""
    run(place, 10)
    result = run(place, 20)
    result.publish(bucket.url)
    for overtaken in (1, 2, 3, 5):
        passed: list[str] = []

        def further(name: str, times: int = overtaken, passed: list[str] = passed) -> None:
            if name == "publish.staged" and not passed:
                passed.append(name)
                for _ in range(times):
                    result.publish(bucket.url)
            if name == "publish.exchanged":
                assert set(pointed(bucket)) <= files(bucket)

        faults.arm(further)
        published = result.publish(bucket.url)
        faults.arm(None)
        assert passed
        assert list(published.files) == pointed(bucket)
        result.publish(bucket.url)
        assert set(published.files) <= files(bucket)  # a reader may still be at them


def test_files_that_were_removed_under_the_publisher_are_written_again(
    bucket: Bucket, place: Path
) -> None:
    """It slept between looking for the last time and putting the pointer."""
    result = run(place, 20)
    passed: list[str] = []

    def remove(name: str) -> None:
        if name == "publish.exchanged" and not passed:
            passed.append(name)
            for each in pointed(bucket):
                key = f"{bucket.prefix}/{each}"
                boto3.client("s3").delete_object(Bucket="test", Key=key)

    faults.arm(remove)
    published = result.publish(bucket.url)
    assert passed
    assert set(published.files) <= files(bucket)
    assert list(published.files) == pointed(bucket)


@pytest.mark.parametrize("key", ["mine.txt", "job.json", "part-00000.parquet"])
def test_other_peoples_objects_are_neither_replaced_nor_joined(
    key: str, bucket: Bucket, place: Path
) -> None:
    result = run(place, 20)
    bucket.server.put(f"{bucket.prefix}/{key}", b"mine")
    with pytest.raises(UsageError, match=key):
        result.publish(bucket.url)
    bucket.server.put(f"{bucket.prefix}/deep/{POINTER}", b'{"files": 7}')
    with pytest.raises(UsageError, match=r"_published\.json"):
        result.publish(f"{bucket.url}/deep")
    assert set(bucket.stored()) == {key, f"deep/{POINTER}"}


def test_a_delta_table_is_no_place_for_files_and_the_other_way_round(
    bucket: Bucket, place: Path
) -> None:
    result = run(place, 20)
    result.publish(f"{bucket.url}/table", form="delta")
    with pytest.raises(UsageError, match=r"Delta table.*form='delta'"):
        result.publish(f"{bucket.url}/table")
    result.publish(f"{bucket.url}/files")
    with pytest.raises(UsageError, match=r"not a Delta table"):
        result.publish(f"{bucket.url}/files", form="delta")


def test_a_reader_that_never_stops_sees_one_version_whole(bucket: Bucket, place: Path) -> None:
    """Every row of a version has the number of the version in it."""
    results = {n: run(place.with_name(f"c{n}"), 200, word=n) for n in range(3)}
    results[0].publish(bucket.url, target_bytes=500)
    stop, wrong, seen = threading.Event(), [], set()
    client = boto3.client("s3")

    def get(name: str) -> bytes:
        found = client.get_object(Bucket="test", Key=f"{bucket.prefix}/{name}")
        return bytes(found["Body"].read())

    def read() -> None:
        while not stop.is_set():
            names = json.loads(get(POINTER))["files"]
            try:
                parts = [pq.read_table(pa.BufferReader(get(name))) for name in names]
            except client.exceptions.NoSuchKey:
                continue  # two publishings have come meanwhile
            found = pa.concat_tables(parts)
            words = set(found["word"].to_pylist())
            if len(words) != 1 or sorted(found["id"].to_pylist()) != list(range(200)):
                wrong.append((words, found.num_rows))
            seen.update(words)

    reader = threading.Thread(target=read)
    reader.start()
    writers = [
        threading.Thread(
            target=lambda n=n: [results[n].publish(bucket.url, target_bytes=500) for _ in range(8)]
        )
        for n in results
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    stop.set()
    reader.join()
    assert not wrong
    assert len(seen) > 1


@pytest.mark.parametrize("kind", ["500-after", "500-before", "reset-after", "503"])
@pytest.mark.parametrize("key", ["*.parquet", f"*{POINTER}"])
def test_a_fault_of_the_service_is_got_over(
    kind: str, key: str, bucket: Bucket, place: Path
) -> None:
    bucket.server.fail(kind, method="PUT", key=key, times=2)
    published = run(place, 20).publish(bucket.url)
    assert set(published.files) == files(bucket) == set(pointed(bucket))


def test_of_a_pointer_without_an_answer_it_is_said_what_readers_see(
    bucket: Bucket, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_ELSE", 0.3)
    done = run(place, 20)
    bucket.server.fail("500-after", method="PUT", key=f"*/{POINTER}", times=-1)
    with pytest.raises(
        StoreError, match="either the previous data or all of the new data"
    ) as caught:
        done.publish(bucket.url)
    assert POINTER in str(caught.value)
    assert set(pointed(bucket)) == files(bucket), "whole, since it was applied"
    bucket.server.heal()
    assert set(done.publish(bucket.url).files) == set(pointed(bucket)) < files(bucket)


# --- a checkpoint and its rows, both in a bucket


def test_from_a_bucket_into_another_place_of_it(bucket: Bucket) -> None:
    result = run(f"{bucket.url}/checkpoint", 20)
    assert result.publish(f"{bucket.url}/checkpoint-rows").rows == 20
    for place in ("checkpoint", "checkpoint/", "checkpoint/rows"):
        for form in ("parquet", "delta"):
            with pytest.raises(UsageError, match="is inside the checkpoint"):
                result.publish(f"{bucket.url}/{place}", form=form)


@pytest.mark.parametrize(
    "dest", [Path("s3://b/labels"), "s3:/b/labels", "s3://u:p@b/x", "ftp://b/x", "s3://b/../x"]
)
@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_no_folder_is_made_of_a_url(
    dest: Any, form: Any, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = run(place, 20)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError):
        result.publish(dest, form=form)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]


# --- a Delta table


def test_a_table_in_a_bucket_is_added_to(bucket: Bucket, place: Path) -> None:
    for count in (30, 70, 100):
        published = run(place, count).publish(bucket.url, form="delta")
        assert published.rows == count
        assert table_ids(bucket) == list(range(count))
    assert set(published.files) == {name for name in bucket.stored() if "_delta_log" not in name}


def test_commits_are_put_if_absent(
    bucket: Bucket, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    for count in (10, 20):
        run(place, count).publish(bucket.url, form="delta")
    commits = [each for each in bucket.server.log if each.key.endswith(".json")]
    assert {each.kind for each in commits if each.method == "PUT"} == {"CREATE"}


def test_a_service_that_ignores_conditions_is_refused(bucket: Bucket, place: Path) -> None:
    run(place, 10).publish(bucket.url, form="delta")
    before = bucket.stored()
    bucket.server.options.conditions = False
    with pytest.raises(StoreError, match="ignores If-None-Match"):
        run(place, 20).publish(bucket.url, form="delta")
    assert bucket.stored() == before


@pytest.mark.sample
@pytest.mark.parametrize("kind", ["500-after", "reset-after", "late", "409-conflict", "503"])
@pytest.mark.parametrize("first", [True, False])
def test_whatever_a_commit_is_answered_each_row_is_there_once(
    kind: str, first: bool, bucket: Bucket, place: Path
) -> None:
    if not first:
        run(place, 20).publish(bucket.url, form="delta")
    bucket.server.fail(kind, method="PUT", key="*/_delta_log/*", times=2)
    run(place, 50).publish(bucket.url, form="delta")
    assert table_ids(bucket) == list(range(50))


def test_a_service_that_is_down_is_an_error_of_ours(
    bucket: Bucket, place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(delta, "_TRIES", 3)
    monkeypatch.setattr(delta, "_UNTOLD", 0.0)
    run(place, 20).publish(bucket.url, form="delta")
    bucket.server.fail("503", method="PUT", key="*/_delta_log/*", times=-1)
    with pytest.raises(StoreError, match="503 Service Unavailable"):
        run(place, 30).publish(bucket.url, form="delta")
    told = [each for each in caplog.messages if "Trying again for up to" in each]
    assert len(told) == 1
    assert told[0].startswith(f"{bucket.url}: ")
    assert "503 Service Unavailable" in told[0]
    bucket.server.heal()
    run(place, 30).publish(bucket.url, form="delta")
    assert table_ids(bucket) == list(range(30))
