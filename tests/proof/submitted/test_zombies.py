"""Drivers that overlap: one that sleeps and wakes, two that start at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proof.submitted import attacks
from tests.proof.submitted.launcher import HELD, SERVICES, Launcher, paid_once, sound

# The second record is the first's intent.
PLACES = (
    *("journal.before_create:2", "submission.submitting:1", "submission.sending:1"),
    *("submission.sent:1", "commit.shard_written:1", "submission.sending:3"),
)


@pytest.mark.sample
@pytest.mark.parametrize("fault", PLACES)
@pytest.mark.parametrize("service", SERVICES)
def test_a_zombie_wakes_up(launch: Launcher, place: Path, service: str, fault: str) -> None:
    attacks.overtaken(launch, attacks.spec_of(place, service), fault)


def test_one_that_has_prepared_wakes_up(launch: Launcher, place: Path) -> None:
    attacks.overtaken(launch, attacks.spec_of(place, "fence"), "submission.prepared:1")


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("service", SERVICES)
def test_one_wakes_up_inside_submit(launch: Launcher, place: Path, service: str) -> None:
    attacks.overtaken(launch, attacks.spec_of(place, service, act_after="2:SIGSTOP"))


@pytest.mark.parametrize("service", ["fence", "idempotent"])
def test_one_wakes_up_that_was_about_to_begin(launch: Launcher, place: Path, service: str) -> None:
    """With a lease alone this is the window that stays: a request that was frozen on its way."""
    attacks.overtaken(launch, attacks.spec_of(place, service, act_before="2:SIGSTOP"))


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("service", SERVICES)
def test_two_drivers_race(launch: Launcher, place: Path, service: str) -> None:
    spec = attacks.spec_of(place, service, takes=0.2)
    children = [launch.fork(spec) for _ in range(3)]
    codes = {child.wait() for child in children}
    assert 0 in codes, [child.says() for child in children]
    assert codes <= {0, HELD}, [child.says() for child in children]
    paid_once(sound(spec))
