"""Killed, refused or overtaken while small shards are merged: each row once, at every moment."""

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

# In a run whose every third shard is merged; "store." and "journal." are passed by its commits too.
NTH = {
    "merge.shard_written": (1, 2),
    "merge.done": (1, 2),
    "shard.before_put": (4, 5, 8),
    "shard.written": (4, 5, 8),
    "journal.before_create": (5, 6, 9),
    "journal.created": (5, 6, 9),
    "store.created": (6, 7, 10),
    "store.linked": (6, 7, 10),
    "store.renamed": (5, 6, 9),
    "store.temp_written": (9, 10, 11, 12, 13, 14, 18, 19),
}
EVERY = [f"{point}:{nth}" for point, each in NTH.items() for nth in each]


def spec_of(place: Path, **more: object) -> Spec:
    place.mkdir(exist_ok=True)
    small = Spec(str(place), items=24, batch_size=2, concurrency=1, fewest=3, pause_ms=(8.0, 8.0))
    return replace(small, **more)


def to_the_end(launch: Launcher, spec: Spec) -> None:
    """Run to the end, and once more: then what was merged has been deleted."""
    launch.to_end(spec)
    assert any(head["kind"] == "merge" for head in oracle.consistent(spec).heads)
    launch.to_end(spec)
    merged = oracle.complete(spec).merged
    assert merged
    assert not [path for path in merged if Path(spec.checkpoint_path, path).exists()]


@pytest.mark.sample(one_in=5)
@pytest.mark.parametrize("fault", EVERY)
def test_killed_at_a_point(launch: Launcher, place: Path, fault: str) -> None:
    spec = spec_of(place)
    child = launch.fork(replace(spec, faults=fault))
    assert child.wait() == -signal.SIGKILL, f"{fault} was not reached: {child.says()}"
    oracle.consistent(spec)
    to_the_end(launch, spec)
    oracle.little_was_redone(spec, kills=1)


def test_killed_at_one_merge_after_the_other(launch: Launcher, place: Path) -> None:
    spec = spec_of(place, items=60)
    for fault in ("merge.shard_written:1", "merge.done:1", "merge.shard_written:2", "merge.done:1"):
        child = launch.fork(replace(spec, faults=fault))
        assert child.wait() == -signal.SIGKILL, f"{fault} was not reached: {child.says()}"
        oracle.consistent(spec)
    to_the_end(launch, spec)


@pytest.mark.sample(one_in=12)
@pytest.mark.parametrize("fault", EVERY)
def test_a_zombie_wakes_up(launch: Launcher, place: Path, fault: str) -> None:
    """After two runs, which merge too, and sweep."""
    spec = spec_of(place)
    zombie = launch.fork(replace(spec, faults=f"{fault}:stop"))
    until(f"stopped at {fault}", zombie.stopped)
    launch.to_end(replace(spec, takeover=True))
    launch.to_end(replace(spec, takeover=True))
    oracle.complete(spec, tidy=False)
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() == 3, zombie.says()
    oracle.complete(spec, tidy=False)


@pytest.mark.long
def test_power_is_lost(launch: Launcher, place: Path, tmp_path: Path) -> None:
    spec = spec_of(place, items=12, checkpoint="a/b/checkpoint", trace="trace")
    launch.to_end(spec)
    assert any(head["kind"] == "merge" for head in oracle.consistent(spec).heads)
    trace = attacks.read_trace(Path(spec.path("trace")))
    attacks.recover_all(spec, trace, tmp_path / "states", 1, 150)


@pytest.mark.strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("count", [3, pytest.param(24, marks=pytest.mark.long)])
def test_killed_at_system_calls(launch: Launcher, tmp_path: Path, count: int) -> None:
    child, log = traced(launch, spec_of(tmp_path / "count", committer_first=True))
    assert child.code == 0, child.says()
    every = [Point(c, n, True) for c, times in calls(log).items() for n in range(1, times + 1)]
    print(f"{len(every)} points, seed {SEED}")

    def attack(number: int, point: Point) -> None:
        spec = spec_of(tmp_path / str(number))
        attacked = replace(spec, committer_first=True)
        child, _ = traced(launch, attacked, f"{point.call}:signal=KILL:when={point.nth}")
        assert child.code in (0, -signal.SIGKILL), f"{point}: {child.code}: {child.says()}"
        oracle.consistent(spec)
        launch.to_end(spec)
        oracle.complete(spec, tidy=False)

    all_of(attack, [(point,) for point in Random(SEED).sample(every, count)])


@pytest.mark.strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.long
@pytest.mark.parametrize("count", [24])
def test_system_calls_that_fail(launch: Launcher, tmp_path: Path, count: int) -> None:
    """Those of the committer, from the first merge on; the run ends well, or says why."""
    child, log = traced(launch, spec_of(tmp_path / "count", committer_first=True))
    assert child.code == 0, child.says()
    every = [Point(c, n, True) for c, times in calls(log).items() for n in range(6, times + 1)]

    def attack(number: int, point: Point) -> None:
        spec = spec_of(tmp_path / str(number))
        attacked = replace(spec, committer_first=True)
        child, _ = traced(launch, attacked, f"{point.call}:error=ENOSPC:when={point.nth}")
        assert child.code in (0, 2, 75), f"{point}: {child.code}: {child.says()}"
        oracle.consistent(spec)
        launch.to_end(spec)
        oracle.complete(spec, tidy=False)

    all_of(attack, [(point,) for point in Random(SEED).sample(every, count)])
