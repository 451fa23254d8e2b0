"""`resumable check`: what is fit passes, and each way not to be fit is found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks.checkpoint.store import requests
from resumable_tasks.cli import main
from tests.conftest import Bucket

pytest.importorskip("obstore")


def check(place: object, code: int) -> dict[str, Any]:
    """The verdicts by probe, and what was said."""
    arguments = ["check", str(place), "--names", "30", "--json"]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == code, result.output
    document = json.loads(result.stdout)
    assert document["fit"] is (code == 0)
    return {each["probe"]: (each["verdict"], each["said"]) for each in document["findings"]}


def not_good(found: dict[str, Any]) -> dict[str, str]:
    return {probe: verdict for probe, (verdict, _) in found.items() if verdict != "good"}


@pytest.mark.parametrize("google", [False, True])
def test_a_strict_service_is_fit_and_left_as_it_was(bucket: Bucket, google: bool) -> None:
    bucket.server.options.page = 7
    bucket.server.put(f"{bucket.prefix}/own", b"mine")
    found = check(bucket.google_url if google else bucket.url, 0)
    assert not_good(found) == {}
    assert "metadata" in found
    assert bucket.server.counts()["PART"] > 1
    assert bucket.server.stored() == {f"{bucket.prefix}/own": b"mine"}


def test_a_service_that_ignores_conditions_is_found_out(bucket: Bucket) -> None:
    bucket.server.options.conditions = False
    bucket.server.put(f"{bucket.prefix}/job.json", b"an owner's")
    found = check(bucket.url, 1)
    assert not_good(found) == {"put if absent": "bad", "race": "bad"}
    assert "16 were reported" in found["race"][1]
    assert bucket.server.stored() == {f"{bucket.prefix}/job.json": b"an owner's"}


def test_dropped_metadata_and_another_clock_are_told(bucket: Bucket) -> None:
    bucket.server.options.metadata = False
    bucket.server.options.clock = 300.0
    found = check(bucket.url, 0)
    assert not_good(found) == {"metadata": "note", "clock": "note"}
    assert "5 min behind" in found["clock"][1]


@pytest.mark.parametrize(
    ("refused", "probe", "right"),
    [
        ({"method": "PUT"}, "write", "s3:PutObject"),
        ({"method": "GET", "key": "*/probe/?*"}, "read", "s3:GetObject"),
        ({"method": "GET", "key": "*/probe/"}, "list", "s3:ListBucket"),
        ({"method": "POST"}, "delete", "s3:DeleteObject"),
    ],
)
def test_each_permission_that_lacks_is_named(
    bucket: Bucket,
    refused: dict[str, Any],
    probe: str,
    right: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(requests, "_DENIED_ELSE", 0.2)  # seconds for which it is tried again
    bucket.server.fail("403", times=-1, **refused)
    found = check(bucket.url, 1)
    assert found[probe][0] == "bad"
    assert right in found[probe][1]
    bad = {name for name, verdict in not_good(found).items() if verdict == "bad"}
    # To see that something is gone takes a listing.
    assert bad == {probe} | ({"delete"} if probe == "list" else set())
    if probe == "delete":
        assert "delete them yourself" in found["clean up"][1]


def test_a_directory_is_fit_and_left_as_it_was(tmp_path: Path) -> None:
    assert not_good(check(tmp_path, 0)) == {}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["nowhere/at/all", "s3://", "ftp://host/x"])
def test_what_is_no_place_is_a_usage_error(place: str) -> None:
    result = CliRunner().invoke(main, ["check", place])
    assert result.exit_code == 2
