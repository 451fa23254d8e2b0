"""Ctrl-C and SIGTERM, once and twice, and an interrupt at any line of the caller's thread."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.proof.crash import attacks, oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Child, Launcher, until

SIGNALS = [signal.SIGINT, signal.SIGTERM]
PARTS = 16


@pytest.mark.sample
@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("runner", ["threads", "async"])
def test_one_signal(launch: Launcher, place: Path, number: int, runner: str) -> None:
    attacks.interrupt(launch, Spec(str(place), items=400, runner=runner), number)


def test_one_signal_to_a_script_in_a_fresh_interpreter(launch: Launcher, place: Path) -> None:
    """Not forked: with the exit code and the standard error of a real script."""
    spec = attacks.gated(Spec(str(place), items=400), 200)
    child = launch.start(spec)
    attacks.stop_amid_work(child, spec, signal.SIGINT)
    assert child.wait() == 75, child.says()
    assert "Traceback" not in child.says()
    last = child.says().strip().splitlines()[-1]
    assert "un the same command again" in last, last
    assert spec.checkpoint_path in child.says()
    assert set(oracle.handled(spec)) == set(oracle.consistent(spec).all_keys)


@pytest.mark.parametrize("runner", ["threads", "async"])
def test_ctrl_c_stays_switched_off_for_what_runs_in_the_background(
    launch: Launcher, place: Path, runner: str
) -> None:
    """A shell has its jobs in the background ignore SIGINT, and means it; SIGTERM still stops."""
    spec = Spec(str(place), items=400, ignore_interrupts=True, runner=runner)
    spec = attacks.gated(spec, 100)
    child = launch.fork(spec)
    until("some is handled", lambda: attacks.oracle_lines(spec, "handled") > 3)
    child.signal(signal.SIGINT)
    before = attacks.oracle_lines(spec, "handled")
    attacks.gated(spec, 200)
    until("it goes on", lambda: attacks.oracle_lines(spec, "handled") > before + 10)
    assert not attacks.oracle_lines(spec, "stopping")
    attacks.stop_amid_work(child, spec, signal.SIGTERM)
    assert child.wait() == 75, child.says()
    oracle.consistent(spec)


@pytest.mark.sample
@pytest.mark.parametrize("runner", ["threads", "async", "processes"])
@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_stops_at_once(
    launch: Launcher, place: Path, number: int, runner: str
) -> None:
    spec = Spec(str(place), hang_seconds=600.0, grace_seconds=600.0, runner=runner)
    child = launch.start(spec)
    until("two hang", lambda: attacks.oracle_lines(spec, "handled") == 2)
    workers = children_of(child)
    child.signal(number)
    until("it is stopping", lambda: attacks.oracle_lines(spec, "stopping"))
    assert child.running()
    child.signal(number)
    assert child.wait() == 75, child.says()
    assert "un the same command again" in child.says(), child.says()
    assert "Traceback" not in child.says(), child.says()
    until("the workers are gone", lambda: not alive(workers))
    oracle.consistent(spec)
    launch.to_end(replace(spec, hang_seconds=0.0))
    oracle.complete(spec)


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("runner", ["threads", "async", "processes"])
def test_a_batch_that_outlasts_the_grace_is_left_alone(
    launch: Launcher, place: Path, runner: str
) -> None:
    spec = Spec(str(place), hang_seconds=600.0, grace_seconds=0.3, runner=runner)
    child = launch.start(spec)
    until("two hang", lambda: attacks.oracle_lines(spec, "handled") == 2)
    workers = children_of(child)
    child.signal(signal.SIGTERM)
    assert child.wait() == 75, child.says()
    until("the workers are gone", lambda: not alive(workers))
    assert oracle.consistent(spec).all_keys == []
    launch.to_end(replace(spec, hang_seconds=0.0))
    oracle.complete(spec)


def test_workers_die_with_a_driver_that_is_killed(launch: Launcher, place: Path) -> None:
    spec = Spec(str(place), hang_seconds=600.0, runner="processes")
    child = launch.start(spec)
    until("two hang", lambda: attacks.oracle_lines(spec, "handled") == 2)
    workers = children_of(child)
    assert {int(line.split()[0]) for line in handled_lines(spec)} <= set(workers)
    os.kill(child.pid, signal.SIGKILL)  # it alone, not its group
    assert child.wait() == -signal.SIGKILL
    until("the workers are gone", lambda: not alive(workers))
    launch.to_end(replace(spec, hang_seconds=0.0))
    oracle.complete(spec)


def handled_lines(spec: Spec) -> list[str]:
    return Path(spec.path("handled")).read_text().splitlines()


def children_of(child: Child) -> dict[int, str]:
    """The processes that it, and they, have started: number → when, so that none is mistaken."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := stat(int(entry.name))):
            parents[int(entry.name)] = int(fields[1])
    found: dict[int, str] = {}
    waiting = [child.pid]
    while waiting:
        parent = waiting.pop()
        for pid, above in parents.items():
            if above == parent and (fields := stat(pid)):
                found[pid] = fields[19]
                waiting.append(pid)
    return found


def stat(pid: int) -> list[str]:
    """The fields of a process's status from its state on; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def alive(processes: dict[int, str]) -> list[int]:
    return [
        pid
        for pid, began in processes.items()
        if (fields := stat(pid)) and fields[19] == began and fields[0] != "Z"
    ]


def small(place: Path) -> Spec:
    return Spec(str(place), items=12, batch_size=4, concurrency=1)


def lines_of(launch: Launcher, place: Path) -> int:
    place.mkdir()
    spec = small(place)
    launch.to_end(replace(spec, count_lines=True))
    return int(Path(spec.path("lines")).read_text())


def interrupt_at(launch: Launcher, place: Path, line: int) -> str:
    """KeyboardInterrupt at this line; then the same job again in the same process."""
    place.mkdir()
    spec = small(place)
    child = launch.fork(replace(spec, interrupt_at=line, again=True))
    code = child.wait()
    assert code == 0, f"line {line}: {child.code}: {child.says()}"
    oracle.complete(spec, tidy=False)
    oracle.little_was_redone(spec, kills=1)
    return child.says()


def interrupt_at_all(launch: Launcher, tmp_path: Path, lines: list[int]) -> None:
    failed, swallowed = [], []
    for line in lines:
        try:
            said = interrupt_at(launch, tmp_path / str(line), line)
        except AssertionError as error:
            failed.append(str(error))
        else:
            if "interrupted at" in said and "first: KeyboardInterrupt" not in said:
                swallowed.append(said)
    assert not failed, f"{len(failed)} of {len(lines)}:\n" + "\n".join(failed)
    assert not swallowed, f"{len(swallowed)} swallowed:\n" + "\n".join(swallowed)


@pytest.mark.parametrize(
    ("seed", "most"),
    [(1, 4), *(pytest.param(seed, 25, marks=pytest.mark.long) for seed in range(2))],
)
def test_an_interrupt_at_some_lines(launch: Launcher, tmp_path: Path, seed: int, most: int) -> None:
    count = lines_of(launch, tmp_path / "count")
    print(f"{count} lines, seed {seed}")
    interrupt_at_all(launch, tmp_path, Random(seed).sample(range(1, count), most))


# In parts, which the workers of the test runner share: some 22,000 lines, hours of one core.
@pytest.mark.long
@pytest.mark.parametrize("part", range(1, PARTS + 1))
def test_an_interrupt_at_every_line(launch: Launcher, tmp_path: Path, part: int) -> None:
    count = lines_of(launch, tmp_path / "count")
    interrupt_at_all(launch, tmp_path, list(range(part, count, PARTS)))
