"""Credentials are canaries, and are nowhere: no file, object, log, error, pickle, flow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from resumable_tasks.testing import s3objects
from resumable_tasks.testing.s3server import KINDS
from tests.conftest import Bucket
from tests.prefect.conftest import api, prefect_env, prefect_server

__all__ = ["api", "prefect_env", "prefect_server"]

ROOT = Path(__file__).parents[3]
CANARIES = {
    "AWS_ACCESS_KEY_ID": "CANARYID0123456789AB",
    "AWS_SECRET_ACCESS_KEY": "CANARYSECRET/0123456789+abcdefghijklmnop",
    "AWS_SESSION_TOKEN": "CANARYTOKEN/0123456789+abcdefghijklmnopq==",
    "AZURE_STORAGE_ACCOUNT_NAME": "account",
    "AZURE_STORAGE_SAS_KEY": "sv=2024-01-01&sig=CANARYSIGNATURE0123456789",
    "GOOGLE_BEARER_TOKEN": "CANARYBEARER0123456789",
}
LINES = {"CANARY_LINES_ALONE": "1"}
FAULTS = ("", "403", "reset-before", "no-bucket")


def has_a_canary(data: bytes) -> bool:
    return b"CANARY" in data.replace(b"CANARY_PATIENCE", b"").replace(b"CANARY_LINES_ALONE", b"")


def run(place: Path, url: str, *how: str, **env: str) -> tuple[int, bytes]:
    place.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.proof.buckets.canary", url, *how],
        env={**os.environ, **CANARIES, "PYTHONPATH": str(ROOT), **env},
        cwd=place,
        capture_output=True,
        timeout=120,
    )
    said = done.stdout + done.stderr
    return done.returncode, said


def nothing_told(bucket: Bucket, place: Path, said: bytes) -> None:
    assert not has_a_canary(said), said.decode(errors="replace")
    for name, data in bucket.stored().items():
        assert not has_a_canary(data), name
    for path in place.rglob("*"):
        assert not path.is_file() or not has_a_canary(path.read_bytes()), path


@pytest.fixture(autouse=True)
def _a_service_that_repeats_what_it_was_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    """As S3 does with a signature that it does not accept."""
    sent = "".join(f"<Sent>{value}</Sent>" for value in CANARIES.values())

    def reply(self: s3objects.Refused) -> s3objects.Reply:
        status, code = str(self).split()
        body = f"<Error><Code>{code}</Code><Message>{sent}</Message>{sent}</Error>"
        return s3objects.Reply(int(status), body.encode())

    monkeypatch.setattr(s3objects.Refused, "reply", property(reply))
    refused = type(KINDS["403"])(False, "404 NoSuchBucket")
    monkeypatch.setitem(KINDS, "no-bucket", refused)


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        pytest.param(fault, key, marks=() if at == (fault == "403") else pytest.mark.long)
        for fault in FAULTS
        for at, key in enumerate(("*", "*/journal/*1.jsonl"))
    ],
)
def test_no_canary_is_told(bucket: Bucket, tmp_path: Path, fault: str, key: str) -> None:
    """From the first request on, or in the middle of a run."""
    if fault:
        bucket.server.fail(fault, key=key, times=-1)
    code, said = run(tmp_path / "here", bucket.url, CANARY_PATIENCE="0.5")
    assert (code == 0) == (not fault), said.decode(errors="replace")
    nothing_told(bucket, tmp_path / "here", said)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize(
    ("url", "env"),
    [
        ("s3://test/a", {"AWS_ENDPOINT_URL": "http://CANARYUSER:CANARYWORD@127.0.0.1:9"}),
        ("s3://test/a", {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}),
        ("s3://CANARYUSER:CANARYWORD@test/a", LINES),
        ("s3://test/a?sig=CANARYSIGNATURE", LINES),
        ("az://test/a", {"AZURE_STORAGE_ENDPOINT": "http://127.0.0.1:9", **LINES}),
        ("gs://test/a", {"GOOGLE_BASE_URL": "http://127.0.0.1:9"}),
    ],
)
def test_no_canary_is_told_of_a_place_that_cannot_be(
    bucket: Bucket, tmp_path: Path, url: str, env: dict[str, str]
) -> None:
    code, said = run(tmp_path / "here", url, CANARY_PATIENCE="0.5", **env)
    assert code in (2, 75), said.decode(errors="replace")
    # The call itself stands in what Python shows of its own.
    nothing_told(bucket, tmp_path / "here", said.replace(url.encode(), b""))


@pytest.mark.long
@pytest.mark.parametrize("fault", ["", "403"])
def test_no_canary_is_told_in_a_flow(
    bucket: Bucket,
    tmp_path: Path,
    fault: str,
    prefect_env: dict[str, str],
) -> None:
    """Logs, events, artifacts, states and parameters are all in the server's database."""
    if fault:
        bucket.server.fail(fault, key="*/journal/*1.jsonl", times=-1)
    env = {name: value for name, value in prefect_env.items() if name.startswith("PREFECT")}
    code, said = run(tmp_path / "here", bucket.url, "flow", CANARY_PATIENCE="0.5", **env)
    assert (code == 0) == (not fault), said.decode(errors="replace")
    nothing_told(bucket, tmp_path / "here", said)
    home = Path(prefect_env["PREFECT_HOME"])
    seen = 0
    for path in home.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            seen += bucket.prefix.encode() in data
            assert not has_a_canary(data), path
    assert seen, "the database does not know the flow run"
