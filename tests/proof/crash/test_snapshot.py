"""A snapshot's process is killed, its machine loses power: what was told as saved is there."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from random import Random

import pytest

from resumable_tasks import Snapshot
from resumable_tasks.testing import faults
from tests import warm
from tests.proof.crash.launcher import ENVIRONMENT, until
from tests.proof.crash.powerloss import all_states, read_trace

STEPS = 14
POINTS = ["store.temp_written", "store.linked", "store.created"]


def command(place: Path, *arguments: object, steps: int = STEPS, every: int = 2) -> list[str]:
    module = f"{__package__}.snapshot_child"
    given = (place, steps, every, *arguments)
    return [sys.executable, "-m", module, *map(str, given)]


def numbers(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()] if path.exists() else []


def check(folder: Path, told: int, upto: int, steps: int = STEPS) -> None:
    """What was told is there, no step is half done, and it goes on to its end."""
    with Snapshot(folder) as found:
        n = found.state.get("n", 0)
        assert told <= n <= upto, "lost, or never made"
        assert found.state.get("squares", []) == [at * at for at in range(n)]
        assert not list(folder.glob(".*.tmp"))
        for number in range(n, steps):
            found.state["n"] = number + 1
            found.step()
    with Snapshot(folder) as found:
        assert found.state["n"] == steps


@pytest.mark.parametrize("nth", [1, 2, 5])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point_of_a_save(place: Path, point: str, nth: int) -> None:
    environment = {**ENVIRONMENT, faults.VARIABLE: f"{point}:{nth}"}
    died = warm.run(command(place), env=environment, capture_output=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    told = max(numbers(place / "told"), default=0)
    assert told == 2 * (nth - 1)
    # Linked, it counts, although nobody was told.
    check(place / "a/snapshot", told, told if point == "store.temp_written" else told + 2)


def test_killed_at_any_moment_again_and_again(place: Path) -> None:
    """Each process finds what the one before it was told, and there is an end to it."""
    random = Random(1)
    told = 0
    for _ in range(8):
        begun = len(numbers(place / "found"))
        child = warm.start(command(place, steps=100_000, every=1), env=ENVIRONMENT)
        until("begun", lambda seen=begun: len(numbers(place / "found")) > seen)
        time.sleep(random.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait(60)
        assert numbers(place / "found")[-1] >= told, "what was saved was lost"
        told = max(numbers(place / "told"), default=0)
    assert told > 8
    assert len(list((place / "a/snapshot").glob("*.json"))) <= 4
    check(place / "a/snapshot", told, told + 1, told + 3)


def lose_power(place: Path, states: Path, *traces: Path, seed: int, count: int | None) -> None:
    trace = read_trace(*traces)
    every = all_states(trace, seed)
    chosen = every if count is None else Random(seed).sample(every, min(count, len(every)))
    assert len(chosen) > 20
    flush, os.fsync = os.fsync, lambda _: None  # there is no second power loss
    logging.disable()
    try:
        for state in chosen:
            state.put_down(states)
            told = max(state.acked, default=0)
            try:
                check(states / "a/snapshot", told, STEPS)
            except Exception as error:
                raise AssertionError(
                    f"power lost after {trace[state.after]} ({state.after}), leaving "
                    f"{sorted(state.tree)}: {type(error).__name__}: {error}"
                ) from error
            shutil.rmtree(states, ignore_errors=True)
    finally:
        os.fsync = flush
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("count", [250, pytest.param(None, marks=pytest.mark.long)])
def test_power_is_lost_at_any_moment(place: Path, tmp_path: Path, count: int | None) -> None:
    trace = tmp_path / "trace"
    warm.run(command(place, trace, 0), env=ENVIRONMENT, check=True, timeout=60)
    lose_power(place, tmp_path / "states", trace, seed=1, count=count)


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("kill_at", [2, 5, 9, 14, 22, 31])
def test_power_is_lost_after_a_crash(place: Path, tmp_path: Path, kill_at: int) -> None:
    """The next process believes what the one that died had not made durable."""
    first, second = tmp_path / "first", tmp_path / "second"
    died = warm.run(command(place, first, kill_at), env=ENVIRONMENT, timeout=60)
    assert died.returncode == -signal.SIGKILL
    warm.run(command(place, second, 0), env=ENVIRONMENT, check=True, timeout=60)
    lose_power(place, tmp_path / "states", first, second, seed=kill_at, count=60)
