from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Bucket
from tests.proof.buckets.attacks import Attack
from tests.proof.crash.launcher import Launcher


@pytest.fixture
def attack(bucket: Bucket, tmp_path: Path) -> Iterator[Attack]:
    """A job with its checkpoint in a bucket of its own, whose processes end with the test."""
    place = tmp_path / "place"
    place.mkdir()
    launch = Launcher(tmp_path / "output")
    launch.more = bucket.server.environment()
    yield Attack(bucket, place, launch)
    launch.close()
