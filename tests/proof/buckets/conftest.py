from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Bucket
from tests.proof.buckets.attacks import Attack
from tests.proof.crash.launcher import Launcher


@pytest.fixture(params=["kept", "dropped"])
def metadata(request: pytest.FixtureRequest, bucket: Bucket) -> str:
    """Whether the service keeps an object's metadata, and with it the nonce of who made it.

    Where not, every other reply to whoever makes a record is lost: of those it would be looked at.
    """
    kept: str = request.param
    if kept == "dropped":
        bucket.server.options.metadata = False
        bucket.server.fail_often(0.5, kinds=("500-after",), method="PUT", key="*/journal/*")
    return kept


@pytest.fixture
def attack(bucket: Bucket, tmp_path: Path) -> Iterator[Attack]:
    """A job with its checkpoint in a bucket of its own, whose processes end with the test."""
    place = tmp_path / "place"
    place.mkdir()
    launch = Launcher(tmp_path / "output")
    launch.more = bucket.server.environment()
    yield Attack(bucket, place, launch)
    launch.close()
