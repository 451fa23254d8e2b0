"""Power loss at every moment of a run, into the states that POSIX permits: nothing told is lost."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.crash import attacks
from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Launcher

STATES = 75


def spec_of(place: Path) -> Spec:
    # Two folders that the run has to make lie above the checkpoint.
    return Spec(
        str(place),
        checkpoint="a/b/checkpoint",
        items=24,
        batch_size=3,
        concurrency=1,
        pause_ms=(3.0, 3.0),
        trace="trace",
    )


@pytest.mark.parametrize("seed", [1])
def test_power_is_lost(launch: Launcher, place: Path, tmp_path: Path, seed: int) -> None:
    attacks.lose_power(launch, spec_of(place), tmp_path / "states", seed, STATES)


# Operations of the first run, which dies there: while it makes its folders, its holder's file, its
# manifest, its claim, and at commits.
@pytest.mark.sample(one_in=8)
@pytest.mark.parametrize("kill_at", [*range(7, 50, 3), 51, 57, 60, 63, 66, 70])
def test_power_is_lost_after_a_crash(
    launch: Launcher, place: Path, tmp_path: Path, kill_at: int
) -> None:
    """The next run believes what the one that died had not made durable."""
    attacks.lose_power_after_a_crash(
        launch, spec_of(place), tmp_path / "states", kill_at, 12, kill_at
    )


@pytest.mark.parametrize(
    ("kill_at", "states"),
    [(4, 50), *(pytest.param(n, 100, marks=pytest.mark.long) for n in (1, 2, 4, 5))],
)
def test_power_is_lost_after_a_crash_among_the_folders_above(
    launch: Launcher, place: Path, tmp_path: Path, kill_at: int, states: int
) -> None:
    """They stand, and no later run makes them; but they are not yet durable."""
    attacks.lose_power_after_a_crash(
        launch, spec_of(place), tmp_path / "states", kill_at, states, kill_at
    )


def test_power_is_lost_while_a_run_begins_after_a_crash(
    launch: Launcher, place: Path, tmp_path: Path
) -> None:
    """The first run died with a record that it had not flushed. The next one goes on after it: if
    power is lost before all is flushed, there may be none of the two, and never the second alone.
    """
    attacks.lose_power_at_the_claim(launch, spec_of(place), tmp_path / "states", "store.linked:4")


@pytest.mark.long
@pytest.mark.parametrize("seed", range(5))
def test_power_is_lost_in_every_state(
    launch: Launcher, place: Path, tmp_path: Path, seed: int
) -> None:
    attacks.lose_power(launch, spec_of(place), tmp_path / "states", seed, None)


@pytest.mark.long
@pytest.mark.parametrize("kill_at", range(1, 120))
def test_power_is_lost_in_many_states_after_a_crash(
    launch: Launcher, place: Path, tmp_path: Path, kill_at: int
) -> None:
    attacks.lose_power_after_a_crash(
        launch, spec_of(place), tmp_path / "states", kill_at, 300, kill_at
    )
