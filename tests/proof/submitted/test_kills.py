"""Killed at every step of a submission, and inside the service: each item is paid once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from time import sleep

import pytest

from tests.proof.submitted.child import Spec
from tests.proof.submitted.launcher import (
    KILLED,
    SERVICES,
    Launcher,
    kill,
    paid_once,
    recut,
    sound,
    to_end,
)

POINTS = (
    *("checkpoint.claimed:1", "submission.submitting:1", "submission.submitting:3"),
    *("submission.sending:1", "submission.sent:1", "submission.sent:3"),
    *("submission.submitted:2", "submission.ended:1", "submission.collected:2"),
    *("commit.shard_written:1", "commit.done:1", "journal.before_create:3", "journal.created:3"),
    *("shard.written:2", "journal.created:5"),
)
OF_PREPARE = ("submission.prepared:1", "submission.prepared:2")
EVERY = [(service, point) for service in SERVICES for point in POINTS]
EVERY += [("fence", point) for point in OF_PREPARE]


def spec_of(place: Path, service: str, **knobs: object) -> Spec:
    return Spec(str(place), knobs={**SERVICES[service], "lag": 0.1, "undone_each": 9, **knobs})


@pytest.mark.sample(kinds=True)
@pytest.mark.parametrize(("service", "point"), EVERY)
def test_killed_at_a_point(launch: Launcher, place: Path, service: str, point: str) -> None:
    spec = spec_of(place, service)
    kill(launch, replace(spec, faults=point))
    to_end(launch, spec if service == "idempotent" else recut(spec))
    paid_once(spec)


INSIDE = ("act_before:1", "act_before:3", "act_after:1", "act_after:2", "act_after:4")


@pytest.mark.sample
@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("inside", INSIDE)
def test_killed_inside_submit(launch: Launcher, place: Path, service: str, inside: str) -> None:
    knob, _, nth = inside.partition(":")
    spec = spec_of(place, service, **{knob: f"{nth}:SIGKILL"})
    kill(launch, spec)
    to_end(launch, recut(sound(spec)))
    paid_once(spec)


def test_killed_inside_prepare(launch: Launcher, place: Path) -> None:
    spec = spec_of(place, "fence", act_prepare="2:SIGKILL")
    kill(launch, spec)
    to_end(launch, recut(sound(spec)))
    paid_once(spec)


def test_killed_after_what_is_undone_was_withdrawn(launch: Launcher, place: Path) -> None:
    spec = spec_of(place, "fence", lost_before=2)
    kill(launch, replace(spec, faults="submission.withdrawn:1"))
    to_end(launch, recut(spec))
    paid_once(spec)


def test_killed_run_after_run_with_other_batches(launch: Launcher, place: Path) -> None:
    """Batches of 15, killed; of 7 in reverse, killed inside a submission; of 22 to the end."""
    spec = replace(spec_of(place, "lease", act_after="5:SIGKILL"), items=60)
    kill(launch, replace(spec, batch_size=15, faults="submission.sent:2"))
    kill(launch, replace(spec, batch_size=7, order=3))
    to_end(launch, replace(sound(spec), batch_size=22, order=9))
    paid_once(spec)


def killed_at_random(
    launch: Launcher, place: Path, kills: int, items: int, size: int, seed: int
) -> None:
    """Each 4th answer is lost, one submission expires at 30 %, and the driver dies at any time."""
    random = Random(seed)
    spec = replace(
        spec_of(place, "fence", lose_each=4, undone_each=0, expires=4, takes=0.6),
        items=items,
        batch_size=size,
    )
    died = 0
    for _ in range(kills):
        child = launch.fork(spec)
        sleep(random.uniform(0.05, 0.6))
        child.kill()
        died += child.wait() == KILLED
    print(f"{died} of {kills} died")
    to_end(launch, spec, most=3)
    paid_once(spec)
    begun = spec.service.all()
    assert sum(spec.service.paid().values()) == items
    print(f"{len(begun)} submissions")


def test_killed_at_random(launch: Launcher, place: Path) -> None:
    killed_at_random(launch, place, 5, 200, 20, 1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_681_items_killed_twelve_times(launch: Launcher, place: Path, seed: int) -> None:
    killed_at_random(launch, place, 12, 681, 69, seed)
