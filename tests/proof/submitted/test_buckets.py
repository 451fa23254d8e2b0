"""Submissions that are out in a bucket's checkpoint: whoever goes on, and from where."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.proof.submitted import attacks
from tests.proof.submitted.child import Spec
from tests.proof.submitted.launcher import (
    INTERRUPTED,
    SERVICES,
    Launcher,
    kill,
    paid_once,
    recut,
    to_end,
)


def in_the(bucket: Any, launch: Launcher, place: Path, service: str, **knobs: object) -> Spec:
    launch.more = bucket.server.environment()
    spec = attacks.spec_of(place, service, **knobs)
    return replace(spec, checkpoint=bucket.url)


@pytest.mark.sample(one_in=6)
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("fault", ["submission.sent:1", "submission.submitted:2"])
def test_killed_and_moved_to_another_host(
    launch: Launcher, place: Path, bucket: Any, service: str, fault: str
) -> None:
    """Nothing of the first host is there any more but the bucket and the service."""
    spec = in_the(bucket, launch, place, service)
    kill(launch, replace(spec, faults=fault))
    to_end(launch, replace(recut(spec), elsewhere=True, takeover=True))
    paid_once(spec)


def test_a_run_that_left_is_taken_up_elsewhere(launch: Launcher, place: Path, bucket: Any) -> None:
    spec = in_the(bucket, launch, place, "fence", takes=0.5)
    left = launch.fork(replace(spec, wait=0.0))
    assert left.wait() == INTERRUPTED, left.says()
    assert "look again" in left.says()
    to_end(launch, replace(recut(spec), elsewhere=True))
    paid_once(spec)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("fault", ["submission.submitting:1", "submission.sent:1"])
def test_a_zombie_on_another_host(launch: Launcher, place: Path, bucket: Any, fault: str) -> None:
    attacks.overtaken(launch, in_the(bucket, launch, place, "fence"), fault)
