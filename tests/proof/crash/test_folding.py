"""Killed, refused or overtaken while records are folded: each of them is found, at every moment."""

from __future__ import annotations

import shutil
import signal
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.proof.crash import attacks, oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher, until
from tests.proof.crash.system_calls import Point, calls, traced
from tests.proof.crash.test_system_calls import SEED, all_of

EVERY = [
    f"{point}:{nth}"
    for point in ("segment.before_create", "segment.created", "segment.deleted")
    for nth in (1, 2, 3)
]


def spec_of(place: Path, **more: object) -> Spec:
    place.mkdir(exist_ok=True)
    small = Spec(str(place), items=24, batch_size=2, concurrency=1, folds=4, pause_ms=(8.0, 8.0))
    return replace(small, **more)


def to_the_end(launch: Launcher, spec: Spec) -> None:
    """Run to the end, and once more: then nothing is beside the segments that need not be."""
    launch.to_end(spec)
    oracle.consistent(spec)
    launch.to_end(spec)
    assert oracle.complete(spec).segments


@pytest.mark.sample(kinds=True)
@pytest.mark.parametrize("fault", EVERY)
def test_killed_at_a_point(launch: Launcher, place: Path, fault: str) -> None:
    spec = spec_of(place)
    child = launch.fork(replace(spec, faults=fault))
    assert child.wait() == -signal.SIGKILL, f"{fault} was not reached: {child.says()}"
    oracle.consistent(spec)
    to_the_end(launch, spec)
    oracle.little_was_redone(spec, kills=1)


@pytest.mark.sample(one_in=5)
@pytest.mark.parametrize("fault", [*EVERY, "journal.before_create:6", "journal.created:6"])
def test_a_zombie_wakes_up(launch: Launcher, place: Path, fault: str) -> None:
    """After two runs, which fold what it has written."""
    spec = spec_of(place)
    zombie = launch.fork(replace(spec, faults=f"{fault}:stop"))
    until(f"stopped at {fault}", zombie.stopped)
    launch.to_end(replace(spec, takeover=True))
    launch.to_end(replace(spec, takeover=True))
    found = oracle.complete(spec, tidy=False)
    assert found.segments
    zombie.signal(signal.SIGCONT)
    # On a busy machine the last fold can be that of its end.
    closed = [head["run"] for head in found.heads if head["kind"] == "close"]
    assert zombie.wait() == (0 if found.heads[0]["run"] in closed else 3), zombie.says()
    oracle.complete(spec, tidy=False)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("fault", ["journal.before_create:1", "journal.created:1"])
def test_one_that_sleeps_at_its_claim(launch: Launcher, place: Path, fault: str) -> None:
    attacks.sleep_while_records_are_folded(launch, spec_of(place), fault)


@pytest.mark.long
def test_power_is_lost(launch: Launcher, place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, items=12, checkpoint="a/b/checkpoint", trace="trace")
    launch.to_end(spec)
    assert oracle.consistent(spec).segments
    trace = attacks.read_trace(Path(spec.path("trace")))
    attacks.recover_all(spec, trace, tmp_path / "states", 1, 120)


@pytest.mark.sample(one_in=2)
@pytest.mark.strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("count", [3, pytest.param(16, marks=pytest.mark.long)])
@pytest.mark.parametrize("how", ["signal=KILL", "error=ENOSPC"])
def test_system_calls(launch: Launcher, tmp_path: Path, how: str, count: int) -> None:
    """Killed at those of the committer, or one of them fails: the run ends well, or says why."""
    child, log = traced(launch, spec_of(tmp_path / "count", committer_first=True))
    assert child.code == 0, child.says()
    first = 1 if "KILL" in how else 6
    every = [Point(c, n, True) for c, count in calls(log).items() for n in range(first, count + 1)]

    def attack(number: int, point: Point) -> None:
        spec = spec_of(tmp_path / str(number))
        attacked = replace(spec, committer_first=True)
        child, _ = traced(launch, attacked, f"{point.call}:{how}:when={point.nth}")
        assert child.code in (0, 2, 75, -signal.SIGKILL), f"{point}: {child.code}: {child.says()}"
        oracle.consistent(spec)
        launch.to_end(spec)
        oracle.complete(spec, tidy=False)

    all_of(attack, [(point,) for point in Random(SEED).sample(every, count)])
