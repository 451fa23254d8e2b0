"""Drivers that overlap: one that sleeps and wakes, two that start at once, one that is dead."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest

from tests.proof.crash import attacks, oracle
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher, until
from tests.proof.crash.test_fault_points import EVERY

# Before its claim a driver has nothing to lose: it may find all done, and end well.
UNCLAIMED = (
    "journal.before_create:1",
    "store.created:1",
    "store.linked:1",
    "store.renamed:1",
    "store.temp_written:1",
    "store.temp_written:2",
    "store.temp_written:3",
    "store.temp_written:4",
)


@pytest.mark.sample(kinds=True)
@pytest.mark.parametrize("fault", [f for f in EVERY if f not in UNCLAIMED])
def test_a_zombie_wakes_up(launch: Launcher, place: Path, fault: str) -> None:
    attacks.wake_a_zombie(launch, Spec(str(place)), fault)


@pytest.mark.sample(kinds=True)
@pytest.mark.parametrize("fault", UNCLAIMED)
def test_one_that_was_about_to_begin_wakes_up(launch: Launcher, place: Path, fault: str) -> None:
    attacks.wake_a_zombie(launch, Spec(str(place)), fault, (0, 3))


def test_a_zombie_wakes_up_before_the_sweep(launch: Launcher, place: Path) -> None:
    attacks.wake_a_zombie_before_the_sweep(launch, Spec(str(place)))


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("seed", range(2))
def test_a_zombie_is_stopped_anywhere(launch: Launcher, place: Path, seed: int) -> None:
    sleep_anywhere(launch, place, seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 200))
def test_zombies_are_stopped_anywhere(launch: Launcher, place: Path, seed: int) -> None:
    sleep_anywhere(launch, place, seed)


def sleep_anywhere(
    launch: Launcher, place: Path, seed: int, codes: tuple[int, ...] = (3, 75)
) -> None:
    """Three drivers, each stopped at a random moment and taken over from, all woken up."""
    random = Random(seed)
    print(f"seed {seed}")
    spec = Spec(str(place), items=600, pause_ms=(3.0, 6.0))
    drivers = []
    for number in range(3):
        # However late it is stopped, there is enough left for the others.
        spec = attacks.gated(spec, 150 * (number + 1))
        begun = attacks.oracle_lines(spec, "handled")
        driver = launch.fork(replace(spec, takeover=number > 0))
        wanted = begun + random.randrange(2, 25)
        until("some is handled", lambda: attacks.oracle_lines(spec, "handled") >= wanted)  # noqa: B023
        driver.signal(signal.SIGSTOP)
        until("stopped", driver.stopped)
        drivers.append(driver)
    last = launch.fork(replace(spec, takeover=True))
    # Else the third, which nobody has taken over from yet, may do it all before that.
    until("the last has started", lambda: attacks.oracle_lines(spec, "started") == 4)
    attacks.gated(spec, 600)
    for driver in drivers:
        driver.signal(signal.SIGCONT)
    assert last.wait() == 0, last.says()
    for driver in drivers:
        assert driver.wait() == 3, driver.says()
    oracle.complete(spec, tidy=False)
    oracle.little_was_redone(spec, kills=3)


def test_the_lock_passes_on_to_the_one_who_took_over(launch: Launcher, place: Path) -> None:
    """After the zombie has gone, a third run is refused as long as the second one works."""
    spec = Spec(str(place), items=200)
    zombie = launch.fork(replace(spec, faults="commit.done:2:stop"))
    until("stopped", zombie.stopped)
    second = launch.fork(replace(spec, takeover=True, hang_seconds=1.0))
    until("the second has started", lambda: attacks.oracle_lines(spec, "started") == 2)
    zombie.kill()
    third = launch.fork(spec)
    assert third.wait() == 3, f"it took the checkpoint from a live run: {third.says()}"
    assert f"pid {second.pid}" in third.says()
    second.kill()
    launch.to_end(spec)
    oracle.complete(spec)


@pytest.mark.sample(one_in=5)
@pytest.mark.parametrize("attempt", range(5))
def test_two_start_at_once(launch: Launcher, place: Path, attempt: int) -> None:
    start_at_once(launch, place)


@pytest.mark.long
@pytest.mark.parametrize("attempt", range(20))
def test_two_start_at_once_again_and_again(launch: Launcher, place: Path, attempt: int) -> None:
    start_at_once(launch, place)


def start_at_once(launch: Launcher, place: Path) -> None:
    # Longer than the loser watches a lock that somebody holds for an instant.
    spec = attacks.gated(Spec(str(place), items=60, hang_seconds=0.15), 30)
    both = [launch.fork(spec), launch.fork(spec)]
    until("one has ended", lambda: not all(child.running() for child in both))
    attacks.gated(spec, 60)
    codes = sorted(child.wait() for child in both)
    assert codes == [0, 3], [child.says() for child in both]
    winner, loser = sorted(both, key=lambda child: child.code or 0)
    said = loser.says()
    assert f"pid {winner.pid}" in said, said
    assert " on host " in said, said
    assert " since 20" in said, said
    assert "takeover=True" in said, said
    oracle.complete(spec)
    assert set(oracle.handled(spec).values()) == {1}


def test_a_dead_holder_is_taken_over_at_once(launch: Launcher, place: Path) -> None:
    # A wait of any kind is for signs of life.
    spec = attacks.gated(Spec(str(place), items=200, beat_seconds=600.0), 100)
    first = launch.fork(spec)
    until("some is handled", lambda: attacks.oracle_lines(spec, "handled") > 3)
    first.kill()
    assert Path(spec.checkpoint_path, "holder.json").exists()
    launch.to_end(attacks.gated(spec, 200))
    oracle.complete(spec)


def test_one_that_opens_is_overtaken_by_one_that_commits(launch: Launcher, place: Path) -> None:
    attacks.commit_while_another_opens(launch, Spec(str(place)))


# The newer driver's unfinished shard, its record, and a shard that no record names yet.
@pytest.mark.sample(kinds=True)
@pytest.mark.parametrize(
    "at", ["store.temp_written:4", "store.temp_written:5", "commit.shard_written:2"]
)
def test_one_that_is_fenced_sweeps_nothing_of_the_newer_one(
    launch: Launcher, place: Path, at: str
) -> None:
    attacks.sweep_after_being_fenced(launch, Spec(str(place)), at)
