"""Killed at every point that a run in a bucket passes: every row once, nothing left behind."""

from __future__ import annotations

import signal
from collections import Counter
from dataclasses import replace
from random import Random

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.base import faults as points
from tests.conftest import Bucket
from tests.proof.buckets.attacks import Attack

# Whatever the grouping of its commits, the small job passes each of these so often.
NTH = {
    "checkpoint.claimed": (1,),
    "commit.done": (1, 2, 3),
    "commit.shard_written": (1, 2, 3),
    "journal.before_create": (1, 2, 4),
    "journal.created": (1, 2, 4),
    "shard.before_put": (1, 2, 3),
    "shard.written": (1, 2, 3),
}
EVERY = [f"{point}:{nth}" for point, each in NTH.items() for nth in each]
SHORT = ("checkpoint.claimed:1", "commit.shard_written:2", "journal.created:2", "shard.written:1")


def every(fault: str) -> object:
    return pytest.param(fault, marks=() if fault in SHORT else pytest.mark.long)


def test_every_point_that_a_run_in_a_bucket_passes_is_attacked(bucket: Bucket) -> None:
    passed: Counter[str] = Counter()
    task = resumable_task(lambda items: items, name="passed", key="id", batch_size=5)
    bucket.server.fail("500-after", method="PUT", key="*/journal/*")
    points.arm(lambda name: passed.update([name]))
    try:
        task.run([{"id": n} for n in range(20)], checkpoint=bucket.url, progress=False)
    finally:
        points.arm(None)
    assert {*NTH, "object.unsettled"} == set(passed)


@pytest.mark.sample
@pytest.mark.usefixtures("metadata")
@pytest.mark.parametrize("fault", [every(fault) for fault in EVERY])
def test_killed_at_a_point(attack: Attack, fault: str) -> None:
    attack.kill_at_point(attack.spec(), fault)


@pytest.mark.usefixtures("metadata")
@pytest.mark.sample
@pytest.mark.parametrize("nth", [1, 2, pytest.param(3, marks=pytest.mark.long)])
@pytest.mark.parametrize("kind", ["500-after", "reset-after", "reset-before"])
def test_killed_while_a_create_is_unsettled(attack: Attack, kind: str, nth: int) -> None:
    """The manifest, its probe, the claim, a record: applied or not, and nobody was told."""
    server = attack.bucket.server
    server.fail(kind, method="PUT", key="*/job.json")
    server.fail(kind, method="PUT", key="*/journal/*0.jsonl")
    server.fail(kind, method="PUT", key="*/journal/*1.jsonl")
    attack.kill_at_point(attack.spec(), f"object.unsettled:{nth}")


@pytest.mark.sample(one_in=2)
@pytest.mark.usefixtures("metadata")
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(n, marks=pytest.mark.long) for n in range(1, 20))]
)
def test_killed_at_one_point_after_the_other(attack: Attack, seed: int) -> None:
    random = Random(seed)
    chosen = [random.choice(EVERY).partition(":")[0] for _ in range(4)]
    attack.kill_at_point(attack.spec(items=200), *(f"{point}:1" for point in chosen))


@pytest.mark.long
@pytest.mark.parametrize("fault", ["commit.shard_written:1", "journal.created:2"])
def test_the_driver_of_processes_is_killed(attack: Attack, fault: str) -> None:
    attack.kill_at_point(attack.spec(runner="processes", items=40), fault)


@pytest.mark.long
@pytest.mark.parametrize("fault", ["shard.before_put:2", "shard.written:2"])
def test_worker_processes_are_killed(attack: Attack, fault: str) -> None:
    """Each dies there, with its shard in the bucket or not, and those that come after it too."""
    spec = attack.spec(runner="processes", items=20)
    child = attack.launch.fork(replace(spec, worker_faults=fault))
    code = child.wait()
    assert code in (0, 1), child.says()
    found = attack.consistent(spec)
    lost = set(range(20)) - set(found.all_keys) - set(found.failed)
    assert not lost, f"neither done nor failed: {sorted(lost)}"
    attack.launch.to_end(spec)
    attack.complete(spec)


@pytest.mark.sample(kinds=True)
@pytest.mark.parametrize(
    "fault", ["merge.shard_written:1", "merge.done:1", "merge.shard_written:2", "merge.done:2"]
)
def test_killed_while_shards_are_merged(attack: Attack, fault: str) -> None:
    spec = attack.spec(items=24, batch_size=2, concurrency=1, fewest=3, pause_ms=(8.0, 8.0))
    child = attack.launch.fork(replace(spec, faults=fault))
    assert child.wait() == -signal.SIGKILL, child.says()
    attack.consistent(spec)
    attack.launch.to_end(spec)
    attack.launch.to_end(spec)  # what was merged has been deleted
    found = attack.complete(spec)
    assert any(head["kind"] == "merge" for head in found.heads)


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("point", ["before_create", "created", "deleted"])
def test_killed_while_records_are_folded(attack: Attack, point: str) -> None:
    spec = attack.spec(items=24, batch_size=2, concurrency=1, folds=4, pause_ms=(8.0, 8.0))
    child = attack.launch.fork(replace(spec, faults=f"segment.{point}:2"))
    assert child.wait() == -signal.SIGKILL, child.says()
    attack.consistent(spec)
    attack.launch.to_end(spec)
    assert attack.complete(spec).segments


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("fault", ["segment.created:1", "journal.before_create:1"])
def test_overtaken_while_records_are_folded(attack: Attack, fault: str) -> None:
    """Or asleep before its claim, whose number is then that of a record in a segment."""
    spec = attack.spec(items=24, batch_size=2, concurrency=1, folds=4, pause_ms=(8.0, 8.0))
    if fault.startswith("journal"):
        child = attack.launch.fork(replace(spec, faults="journal.created:3"))
        assert child.wait() == -signal.SIGKILL
    zombie = attack.stopped_at(spec, fault)
    attack.launch.to_end(spec)
    attack.launch.to_end(spec)
    assert attack.wake(zombie) in (0, 3), zombie.says()
    attack.complete(spec, tidy=False)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("fault", ["merge.shard_written:1", "merge.done:1"])
def test_overtaken_while_shards_are_merged(attack: Attack, fault: str) -> None:
    spec = attack.spec(items=24, batch_size=2, concurrency=1, fewest=3, pause_ms=(8.0, 8.0))
    zombie = attack.stopped_at(spec, fault)
    attack.launch.to_end(spec)
    attack.launch.to_end(spec)
    assert attack.wake(zombie) == 3, zombie.says()
    attack.complete(spec, tidy=False)
