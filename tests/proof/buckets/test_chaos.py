"""Requests that fail in all ways, worker processes, drivers that are killed: every row once."""

from __future__ import annotations

import time
from random import Random

import pytest

from tests.proof.buckets.attacks import Attack
from tests.proof.crash.launcher import until

RATE = 0.05
# Done, or a service that did not answer for too long: run again.
CODES = (0, 75)


@pytest.mark.parametrize(
    ("seed", "workers"), [(0, 2), *(pytest.param(n, 3, marks=pytest.mark.long) for n in range(3))]
)
def test_a_bucket_that_fails_and_drivers_that_die(attack: Attack, seed: int, workers: int) -> None:
    fail_and_die(attack, seed, workers=workers, kills=2)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(100, 120))
def test_many_workers_and_many_deaths(attack: Attack, seed: int) -> None:
    fail_and_die(attack, seed, workers=8, kills=5)


def fail_and_die(attack: Attack, seed: int, workers: int, kills: int) -> None:
    random = Random(seed)
    print(f"seed {seed}")
    server = attack.bucket.server
    spec = attack.spec(
        runner="processes",
        items=150 * workers,
        batch_size=10,
        concurrency=workers,
        pause_ms=(60.0, 120.0),
        silence=1.0,
    )
    server.options.metadata = seed % 4 != 3
    server.fail_often(RATE, seed, seconds=0.2)
    started, killed = 0, 0
    for _ in range(kills):
        child = attack.launch.fork(spec)
        until(
            "at work",
            lambda: attack.lines("handled") > started + 8 or not child.running(),  # noqa: B023
        )
        time.sleep(random.uniform(0.0, 0.5))
        if child.running():
            child.kill()
            killed += 1
        else:
            attack.ended_well(child, CODES)
        started = attack.lines("handled")
        attack.consistent(spec)
    assert killed >= kills // 2, "the job is too short to be killed"
    while True:
        child = attack.launch.fork(spec)
        attack.ended_well(child, CODES)
        attack.consistent(spec)
        if child.code == 0:
            break
    found = attack.complete(spec, tidy=False)
    assert not found.failed, "no worker was lost, and no batch has failed"
    server.heal()
    attack.launch.to_end(spec)  # sweeps what was written late
    attack.complete(spec)
