"""Killed at random moments, over and over: every row once, and little done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.crash import attacks
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher

KILLS = 8


def spec_of(place: Path, runner: str = "threads") -> Spec:
    return Spec(
        str(place), items=4000, batch_size=20, concurrency=4, pause_ms=(3.0, 10.0), runner=runner
    )


@pytest.mark.parametrize(
    ("runner", "seed"),
    [
        ("threads", 1),
        pytest.param("async", 2, marks=pytest.mark.long),
        pytest.param("threads", 3, marks=pytest.mark.long),
    ],
)
def test_killed_at_random(launch: Launcher, place: Path, runner: str, seed: int) -> None:
    attacks.kill_at_random(launch, spec_of(place, runner), KILLS, seed)


@pytest.mark.long
@pytest.mark.parametrize("runner", ["threads", "async"])
@pytest.mark.parametrize("seed", range(100, 140))
def test_killed_at_many_random_moments(
    launch: Launcher, place: Path, runner: str, seed: int
) -> None:
    attacks.kill_at_random(launch, spec_of(place, runner), KILLS, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", [5])
def test_processes_are_killed_at_random(launch: Launcher, place: Path, seed: int) -> None:
    spec = Spec(
        str(place), items=800, batch_size=10, concurrency=2, pause_ms=(3, 10), runner="processes"
    )
    attacks.kill_at_random(launch, spec, 2, seed)
