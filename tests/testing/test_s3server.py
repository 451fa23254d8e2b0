"""The strict S3 server keeps what it promises; boto3, pyarrow and obstore say so, which know S3."""

from __future__ import annotations

import io
import json
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from resumable_tasks.testing.s3server import KINDS, S3Server

boto3 = pytest.importorskip("boto3")
obstore = pytest.importorskip("obstore")

from botocore.config import Config  # noqa: E402
from botocore.exceptions import ClientError  # noqa: E402
from obstore.exceptions import AlreadyExistsError, PermissionDeniedError  # noqa: E402
from obstore.store import GCSStore, S3Store  # noqa: E402

NEVER: Any = {"max_retries": 0}
RACERS = 50


@pytest.fixture
def server(bucket) -> S3Server:
    return bucket.server


def client(server: S3Server, **options: Any) -> Any:
    config = Config(retries={"total_max_attempts": 1}, **options)
    return boto3.client("s3", endpoint_url=server.endpoint, config=config)


@pytest.fixture
def s3(server: S3Server) -> Iterator[Any]:
    client_ = client(server)
    yield client_
    client_.close()


# In Google's words, the short form looks at conditions and metadata alone.
@pytest.fixture(
    params=[
        pytest.param(S3Store, id="S3 words"),
        pytest.param(GCSStore, id="GCS words", marks=pytest.mark.long),
    ]
)
def store(server: S3Server, request: pytest.FixtureRequest) -> Any:
    return request.param("test", prefix="there", retry_config=NEVER)


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    response: Any = error.value.response
    return response["ResponseMetadata"]["HTTPStatusCode"], response["Error"]["Code"]


BOTH = pytest.mark.parametrize(
    "store", [S3Store, GCSStore], ids=["S3 words", "GCS words"], indirect=True
)


def together(count: int, do: Any) -> list[Any]:
    barrier, answers = threading.Barrier(count), [None] * count

    def run(number: int) -> None:
        barrier.wait()
        answers[number] = do(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


# Conditions


def test_of_fifty_racing_creators_one_wins_and_its_value_stays(store, server) -> None:
    for round_ in range(30):

        def create(number: int, name: str = f"{round_}") -> bool:
            try:
                obstore.put(store, name, b"%d" % number, mode="create")
            except AlreadyExistsError:
                return False
            return True

        won = [number for number, mine in enumerate(together(RACERS, create)) if mine]
        assert len(won) == 1
        assert server.stored()[f"there/{round_}"] == b"%d" % won[0]
    assert server.counts() == {"CREATE": 30 * RACERS}


@BOTH
def test_of_fifty_racing_updates_of_one_version_one_wins(store, server) -> None:
    put = obstore.put(store, "a", b"first")
    version = {name: value for name, value in put.items() if value is not None}

    def update(number: int) -> bool:
        try:
            obstore.put(store, "a", b"%d" % number, mode=version)
        except obstore.exceptions.PreconditionError:
            return False
        return True

    won = [number for number, mine in enumerate(together(RACERS, update)) if mine]
    assert len(won) == 1
    assert server.stored()["there/a"] == b"%d" % won[0]


def test_conditions_answer_as_s3_documents_them(s3) -> None:
    etag = s3.put_object(Bucket="test", Key="a", Body=b"1", IfNoneMatch="*")["ETag"]
    for condition, expected in [
        ({"IfNoneMatch": "*"}, (412, "PreconditionFailed")),
        ({"IfMatch": '"other"'}, (412, "PreconditionFailed")),
        ({"IfMatch": etag, "Key": "missing"}, (404, "NoSuchKey")),
        ({"IfNoneMatch": etag}, (501, "NotImplemented")),
        ({"Bucket": "nowhere"}, (404, "NoSuchBucket")),
    ]:
        with pytest.raises(ClientError) as error:
            s3.put_object(**{"Bucket": "test", "Key": "a", "Body": b"2"} | condition)
        assert code(error) == expected
    s3.put_object(Bucket="test", Key="a", Body=b"2", IfMatch=etag)
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket="test", Key="a", IfMatch=etag)
    assert code(error)[0] == 412
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket="test", Key="missing")
    assert code(error) == (404, "NoSuchKey")


def test_a_server_without_conditions_overwrites(server, store) -> None:
    server.options.conditions = False
    for data in (b"1", b"2"):
        obstore.put(store, "a", data, mode="create")
    assert server.stored() == {"there/a": b"2"}


# Listings


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
def test_pages_of_a_listing_make_up_the_whole(server, s3, page) -> None:
    server.options.page = page
    names = ["a", "a b/ü&<%+", "dir/1", "dir/2", "dir/sub/3", "dir0", "e/4", "ü"]
    for name in names:
        s3.put_object(Bucket="test", Key=name, Body=name.encode())

    def listed(**how: Any) -> tuple[list[str], list[str]]:
        pages = list(s3.get_paginator("list_objects_v2").paginate(Bucket="test", **how))
        assert all(each["KeyCount"] <= page for each in pages)
        keys = [o["Key"] for each in pages for o in each.get("Contents", ())]
        return keys, [p["Prefix"] for each in pages for p in each.get("CommonPrefixes", ())]

    assert listed() == (sorted(names), [])
    assert listed(Prefix="dir/") == (["dir/1", "dir/2", "dir/sub/3"], [])
    assert listed(Prefix="dir/", Delimiter="/") == (["dir/1", "dir/2"], ["dir/sub/"])
    assert listed(Delimiter="/") == (["a", "dir0", "ü"], ["a b/", "dir/", "e/"])
    assert listed(Prefix="dir/", StartAfter="dir/1") == (["dir/2", "dir/sub/3"], [])
    assert listed(StartAfter="dir/sub/3", Delimiter="/") == (["dir0", "ü"], ["e/"])
    assert listed(Prefix="none") == ([], [])


def test_a_listing_shows_a_thousand_names_at_a_time(server, store) -> None:
    for number in range(2500):
        server.put(f"there/{number}", b"x")
    assert sum(len(batch) for batch in obstore.list(store)) == 2500
    assert server.counts() == {"LIST": 3}


# Objects


def test_ranges_metadata_and_dates_come_back(s3) -> None:
    s3.put_object(
        Bucket="test", Key="a", Body=b"0123456789", Metadata={"Nonce": "n"}, ContentType="a/b"
    )
    for asked, expected in [("0-0", b"0"), ("3-", b"3456789"), ("-4", b"6789"), ("8-99", b"89")]:
        got = s3.get_object(Bucket="test", Key="a", Range=f"bytes={asked}")
        assert got["Body"].read() == expected
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket="test", Key="a", Range="bytes=10-")
    assert code(error) == (416, "InvalidRange")
    head = s3.head_object(Bucket="test", Key="a")
    assert (head["Metadata"], head["ContentType"]) == ({"nonce": "n"}, "a/b")
    assert (head["ContentLength"], head["LastModified"].tzname()) == (10, "UTC")
    assert s3.list_objects_v2(Bucket="test")["Contents"][0]["ETag"] == head["ETag"]


@BOTH
def test_metadata_comes_back_in_both_words_or_is_dropped(server, store) -> None:
    obstore.put(store, "a", b"1", attributes={"nonce": "n"})
    assert obstore.get(store, "a", options={"head": True}).attributes["nonce"] == "n"
    server.options.metadata = False
    obstore.put(store, "a", b"1", attributes={"nonce": "n"})
    assert "nonce" not in obstore.get(store, "a", options={"head": True}).attributes


def test_many_names_are_deleted_in_one_request(server, s3) -> None:
    for name in ("a", "b", "c&"):
        s3.put_object(Bucket="test", Key=name, Body=b"")
    names = [{"Key": name} for name in ("a", "c&", "missing")]
    gone = s3.delete_objects(Bucket="test", Delete={"Objects": names})["Deleted"]
    assert [each["Key"] for each in gone] == ["a", "c&", "missing"]
    s3.delete_object(Bucket="test", Key="missing")
    assert set(server.stored()) == {"b"}
    with pytest.raises(ClientError) as error:
        s3.delete_objects(Bucket="test", Delete={"Objects": names * 400})
    assert code(error) == (400, "MalformedXML")


def test_a_missing_name_is_an_error_of_a_delete_in_the_words_of_google_only(server) -> None:
    obstore.delete(S3Store("test"), "missing")
    with pytest.raises(FileNotFoundError):
        obstore.delete(GCSStore("test"), "missing")


def test_uploads_in_parts_appear_whole_or_not_at_all(server, s3) -> None:
    part = b"x" * 5 * 2**20
    upload = {"Bucket": "test", "Key": "a"}

    def complete(pieces: list[bytes], **how: Any) -> Any:
        identity = s3.create_multipart_upload(**upload)["UploadId"]
        parts = [
            s3.upload_part(**upload, UploadId=identity, PartNumber=n, Body=data)["ETag"]
            for n, data in enumerate(pieces, 1)
        ]
        named = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(parts, 1)]
        assert "a" not in server.stored() or how
        return s3.complete_multipart_upload(
            **upload, UploadId=identity, MultipartUpload={"Parts": named}, **how
        )

    with pytest.raises(ClientError) as error:
        complete([b"too small", b"end"])
    assert code(error) == (400, "EntityTooSmall")
    assert complete([part, b"end"])["ETag"].endswith('-2"')
    assert server.stored() == {"a": part + b"end"}
    with pytest.raises(ClientError) as error:
        complete([part, b"other"], IfNoneMatch="*")
    assert code(error) == (412, "PreconditionFailed")
    for identity in list(server.objects.uploads):
        s3.abort_multipart_upload(**upload, UploadId=identity)
    assert server.objects.uploads == {}


def test_a_large_put_of_obstore_goes_in_parts(server, store) -> None:
    obstore.put(store, "big", b"z" * 12_000_000, chunk_size=5 * 2**20)
    assert server.stored()["there/big"] == b"z" * 12_000_000
    assert server.counts() == {"UPLOAD": 1, "PART": 3, "COMPLETE": 1}


def test_a_body_that_is_not_what_its_checksum_says_is_refused(server, s3) -> None:
    s3.put_object(Bucket="test", Key="a", Body=io.BytesIO(b"streamed"), ChecksumAlgorithm="CRC32")
    assert server.stored() == {"a": b"streamed"}
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket="test", Key="a", Body=b"1", ChecksumCRC32="AAAAAA==")
    assert code(error) == (400, "BadDigest")
    assert server.stored() == {"a": b"streamed"}


def test_buckets_are_made_and_found(server, s3) -> None:
    s3.create_bucket(Bucket="another")
    s3.head_bucket(Bucket="another")
    with pytest.raises(ClientError):
        s3.head_bucket(Bucket="nowhere")
    with pytest.raises(ClientError) as error:
        s3.create_bucket(Bucket="another")
    assert code(error)[1] == "BucketAlreadyOwnedByYou"


def test_pyarrow_writes_reads_and_lists(server) -> None:
    fs = pytest.importorskip("pyarrow.fs")
    pq = pytest.importorskip("pyarrow.parquet")
    import pyarrow as pa

    s3 = fs.S3FileSystem(endpoint_override=server.endpoint)
    table = pa.table({"n": range(1000)})
    pq.write_table(table, "test/there/a.parquet", filesystem=s3)
    assert pq.read_table("test/there/a.parquet", filesystem=s3).equals(table)
    found = s3.get_file_info(fs.FileSelector("test", recursive=True))
    assert {each.path for each in found} == {"test/there", "test/there/a.parquet"}
    s3.delete_file("test/there/a.parquet")
    assert not server.stored().get("there/a.parquet")


# Who may, and when


def test_another_access_key_is_refused(server, store, monkeypatch) -> None:
    obstore.put(store, "a", b"1")
    server.options.access_key = "another"
    with pytest.raises(PermissionDeniedError):
        obstore.get(store, "a")
    for name in ("AWS_ACCESS_KEY_ID", "GOOGLE_BEARER_TOKEN"):
        monkeypatch.setenv(name, "another")
    assert obstore.get(type(store)("test", prefix="there"), "a").bytes() == b"1"


@pytest.mark.parametrize("ahead", [-1000, 1000])
def test_a_clock_that_is_far_off_is_refused(server, s3, ahead) -> None:
    server.options.clock = ahead
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket="test", Key="a", Body=b"1")
    assert code(error) == (403, "RequestTimeTooSkewed")
    server.options.clock = ahead / 2
    s3.put_object(Bucket="test", Key="a", Body=b"1")


# Faults

APPLIED = {"500-after", "reset-after", "lost", "late", "applied-late"}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "truncated"])
def test_a_put_that_fails_is_applied_or_not_as_the_fault_says(server, store, kind) -> None:
    def with_patience(patience: str) -> object:
        options = {"timeout": patience, "allow_http": True}
        return type(store)("test", prefix="there", retry_config=NEVER, client_options=options)

    patient = with_patience("60s")
    asked = with_patience("1s") if KINDS[kind].answer == "silence" else patient
    server.fail(kind, method="PUT", key="*/a", seconds=2.0 if kind == "applied-late" else 0.1)
    obstore.put(patient, "b", b"1")
    assert server.log.pop().fault == ""
    if kind == "late":
        obstore.put(asked, "a", b"1", mode="create")
    else:
        with pytest.raises(Exception) as error:
            obstore.put(asked, "a", b"1", mode="create")
        assert type(error.value).__module__ == "obstore.exceptions"
    assert server.log.pop().fault == kind
    if kind == "applied-late":
        assert "there/a" not in server.stored()
    until = time.monotonic() + 60
    while kind in APPLIED and "there/a" not in server.stored() and time.monotonic() < until:
        time.sleep(0.01)
    assert ("there/a" in server.stored()) == (kind in APPLIED)
    obstore.put(patient, "c", b"1")
    assert server.log.pop().fault == ""


def test_half_a_request_makes_no_object(server) -> None:
    """Of a client that gave up, or whose connection broke."""
    address = server.endpoint.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), 60) as client:
        client.sendall(b"PUT /test/a HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf ")
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1_000) == b""
    assert server.stored() == {}


def test_half_a_body_is_not_taken_for_the_whole(server, store) -> None:
    obstore.put(store, "a", b"x" * 100_000)
    server.fail("truncated", times=-1)
    with pytest.raises(Exception, match=r"."):
        obstore.get(store, "a").bytes()
    server.heal()
    assert len(obstore.get(store, "a").bytes()) == 100_000


def test_a_share_of_requests_fails_the_same_way_with_each_seed(server, store) -> None:
    def fail(seed: int) -> list[str]:
        server.heal()
        server.forget()
        server.fail_often(0.2, seed, ("500-before", "503", "403"))
        for number in range(100):
            try:
                obstore.put(store, f"{number}", b"1")
            except (obstore.exceptions.GenericError, PermissionDeniedError):
                continue
        return [each.fault for each in server.log]

    first = fail(1)
    assert 5 < sum(map(bool, first)) < 40
    assert set(first) == {"", "500-before", "503", "403"}
    assert fail(1) == first != fail(2)


def test_latency_is_before_each_request(server, s3) -> None:
    server.options.latency = 0.2
    started = time.monotonic()
    s3.head_bucket(Bucket="test")
    assert time.monotonic() - started >= 0.2


def test_a_server_that_hangs_can_be_closed(monkeypatch) -> None:
    with S3Server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        server.fail("hang")
        failed = threading.Event()

        def put() -> None:
            try:
                obstore.put(S3Store("test", retry_config=NEVER), "a", b"1")
            except obstore.exceptions.GenericError:
                failed.set()

        thread = threading.Thread(target=put)
        thread.start()
        while not server.log:
            time.sleep(0.01)
    thread.join(60)
    assert failed.is_set()


# From another process


def test_a_server_of_its_own_process_is_told_what_to_do(server, monkeypatch) -> None:
    command = [sys.executable, "-m", "resumable_tasks.testing.s3server", "--page", "2"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()

        def ask(method: str, path: str, given: Any = None) -> Any:
            data = None if given is None else json.dumps(given).encode()
            request = urllib.request.Request(f"{endpoint}/-/{path}", data, method=method)
            with urllib.request.urlopen(request) as reply:
                return json.load(reply)

        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        store = S3Store("test", retry_config=NEVER)
        ask("POST", "faults", {"kind": "403", "method": "PUT"})
        with pytest.raises(PermissionDeniedError):
            obstore.put(store, "a/b", b"1")
        obstore.put(store, "a/b", b"1")
        assert [(each["status"], each["fault"]) for each in ask("GET", "log")] == [
            (403, "403"),
            (200, ""),
        ]
        assert ask("GET", "counts?key=a/*") == {"PUT": 2}
        ask("DELETE", "log")
        ask("POST", "faults", {"kind": "503", "times": -1})
        ask("DELETE", "faults")
        ask("POST", "options", {"conditions": False})
        obstore.put(store, "a/b", b"2", mode="create")
        assert ask("GET", "counts") == {"CREATE": 1}
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
