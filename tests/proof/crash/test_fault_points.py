"""Killed at every named point, each more than once over: nothing lost, nothing twice."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

import resumable_tasks
from resumable_tasks.base.faults import fault_point
from resumable_tasks.testing import faults
from resumable_tasks.testing.faults import EXIT_CODE, POINTS, FaultInjected, crash_at
from tests.proof.crash import attacks, oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import ENVIRONMENT, Launcher, until

# Which passings there are of each point in the first run of the small job, whatever the grouping
# of its commits: the holder's file, the manifest, its probe and the claim come before them.
NTH = {
    "checkpoint.claimed": (1,),
    "commit.done": (1, 2, 3),
    "commit.shard_written": (1, 2, 3),
    "journal.before_create": (1, 2, 4),
    "journal.created": (1, 2, 4),
    "shard.before_put": (1, 2, 3),
    "shard.written": (1, 2, 3),
    "store.created": (1, 2, 3, 5),
    "store.linked": (1, 2, 3, 5),
    "store.renamed": (1, 2, 4),
    "store.temp_written": (1, 2, 3, 4, 5, 6, 9),
}
EVERY = [f"{point}:{nth}" for point, each in NTH.items() for nth in each]


def test_the_list_of_points_is_that_of_the_source() -> None:
    found = set()
    for path in Path(resumable_tasks.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "fault_point":
                assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"
                found.add(node.args[0].value)
    assert found == set(POINTS)
    elsewhere = {"publish.staged", "publish.exchanged"}  # by test_publish.py
    elsewhere |= {point for point in found if point.startswith("sql.")}  # by tests/checkpoint/sql
    elsewhere |= {"object.unsettled"}  # by tests/proof/buckets
    elsewhere |= {point for point in found if point.startswith("merge.")}  # by test_merging.py
    elsewhere |= {point for point in found if point.startswith("segment.")}  # by test_folding.py
    elsewhere |= {point for point in found if point.startswith("snapshot.")}  # test_snapshots.py
    elsewhere |= {
        point for point in found if point.startswith("submission.")
    }  # tests/proof/submitted
    elsewhere |= {"publish.looked"}  # by test_publishers_race.py
    elsewhere |= {"prune.deleted", "prune.ended", "store.set_aside"}  # by test_prune.py
    assert {*NTH, *elsewhere} == found, "a point that nothing attacks"


@pytest.mark.sample
@pytest.mark.parametrize("runner", ["threads", "async"])
@pytest.mark.parametrize("fault", EVERY)
def test_killed_at_a_point(launch: Launcher, place: Path, fault: str, runner: str) -> None:
    attacks.kill_at_point(launch, Spec(str(place), runner=runner), fault)


@pytest.mark.sample(one_in=6)
@pytest.mark.parametrize("seed", range(6))
def test_killed_at_one_point_after_the_other(launch: Launcher, place: Path, seed: int) -> None:
    random = Random(seed)
    points = [random.choice(list(NTH)) for _ in range(4)]
    chosen = [
        f"{point}:{random.choice((1, 2) if NTH[point][-1] > 1 else (1,))}" for point in points
    ]
    print(chosen)
    attacks.kill_at_point(launch, Spec(str(place), items=200), *chosen)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(200))
def test_killed_at_many_points(launch: Launcher, place: Path, seed: int) -> None:
    random = Random(seed)
    points = [random.choice(list(NTH)) for _ in range(8)]
    chosen = [
        f"{point}:{random.choice((1, 2) if NTH[point][-1] > 1 else (1,))}" for point in points
    ]
    print(chosen)
    attacks.kill_at_point(launch, Spec(str(place), items=400), *chosen)


@pytest.mark.parametrize(
    "fault", [pytest.param("commit.shard_written:1", marks=pytest.mark.long), "journal.created:2"]
)
def test_the_driver_of_processes_is_killed(launch: Launcher, place: Path, fault: str) -> None:
    spec = Spec(str(place), runner="processes", items=40)
    attacks.kill_at_point(launch, spec, fault)


@pytest.mark.parametrize(
    "fault", ["shard.written:2", pytest.param("store.temp_written:1", marks=pytest.mark.long)]
)
def test_a_worker_process_is_killed(launch: Launcher, place: Path, fault: str) -> None:
    """Every worker dies there, the ones that take over its batches too."""
    spec = Spec(str(place), runner="processes", items=20)
    child = launch.fork(replace(spec, worker_faults=fault))
    code = child.wait()
    assert code in (0, 1), child.says()
    found = oracle.consistent(spec)
    lost = set(range(20)) - set(found.all_keys) - set(found.failed)
    assert not lost, f"neither done nor failed: {sorted(lost)}"
    launch.to_end(replace(spec, runner="threads"))
    oracle.complete(spec)


@pytest.mark.sample(kinds=True)
@pytest.mark.parametrize("runner", ["threads", "async"])
@pytest.mark.parametrize("fault", [f for f in EVERY if f.endswith((":1", ":3"))])
def test_an_exception_at_a_point(launch: Launcher, place: Path, fault: str, runner: str) -> None:
    """It ends the run, and the next one in the same process goes on from there."""
    spec = Spec(str(place), runner=runner)
    child = launch.fork(replace(spec, faults=f"{fault}:raise", again=True))
    assert child.wait() == 0, child.says()
    assert "first: FaultInjected" in child.says()
    oracle.complete(spec)
    oracle.little_was_redone(spec, kills=1)


def test_a_job_is_killed_by_what_the_environment_says(place: Path) -> None:
    code = (
        "from resumable_tasks.testing.faults import install_from_env; install_from_env()\n"
        "from resumable_tasks.base.faults import fault_point\n"
        "fault_point('commit.done'); print('once', flush=True); fault_point('commit.done')"
    )
    environment = {**ENVIRONMENT, faults.VARIABLE: "commit.done:2, shard.written"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"once\n")


def test_a_process_ends_without_clean_up_at_a_point(launch: Launcher, place: Path) -> None:
    spec = Spec(str(place))
    child = launch.fork(replace(spec, faults="commit.done:1:exit"))
    assert child.wait() == EXIT_CODE
    launch.to_end(spec)
    oracle.complete(spec)


def test_a_process_stops_at_a_point_and_goes_on(launch: Launcher, place: Path) -> None:
    spec = Spec(str(place))
    child = launch.fork(replace(spec, faults="commit.done:1:stop"))
    until("stopped", child.stopped)
    child.signal(signal.SIGCONT)
    assert child.wait() == 0, child.says()
    oracle.complete(spec)


def test_a_fault_point_acts_at_the_nth_passing_and_in_the_block_alone() -> None:
    with crash_at("commit.done", 2, "raise"), crash_at("shard.written", 1, "raise"):
        fault_point("commit.done")
        with pytest.raises(FaultInjected, match=r"commit\.done, passing 2"):
            fault_point("commit.done")
        fault_point("commit.done")
        with pytest.raises(FaultInjected):
            fault_point("shard.written")
    fault_point("commit.done")
    fault_point("commit.done")


@pytest.mark.parametrize("wrong", ["commit.dine", "commit.done:0", "commit.done:1:hang"])
def test_a_fault_that_cannot_happen_is_refused(wrong: str) -> None:
    with pytest.raises(ValueError, match=r"commit|nth|how"):
        faults.parse(wrong)
