"""Killed, refused or overtaken while changed items are done again: old row or new, never none."""

from __future__ import annotations

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from tests.proof.crash import oracle
from tests.proof.crash.child import Spec, items_of, value_of
from tests.proof.crash.launcher import Launcher, until
from tests.proof.crash.system_calls import Point, calls, traced
from tests.proof.crash.test_system_calls import SEED, all_of

# Which passings there are in a run that does nine changed items again, in batches of two.
NTH = {
    "checkpoint.claimed": (1,),
    "commit.done": (1, 2),
    "commit.shard_written": (1, 2),
    "journal.before_create": (1, 2, 3),
    "journal.created": (1, 2, 3),
    "shard.before_put": (1, 2, 4),
    "shard.written": (1, 2, 3),
    "store.created": (1, 2),
    "store.linked": (2, 3),
    "store.renamed": (1, 2, 3, 5),
    "store.temp_written": (2, 4, 5, 6),
}
EVERY = [f"{point}:{nth}" for point, each in NTH.items() for nth in each]


def done_once(launch: Launcher, place: Path, **more: object) -> Spec:
    """A checkpoint in which all is completed, and the specification of the next run."""
    place.mkdir(exist_ok=True)
    spec = Spec(str(place), edition=0, concurrency=1, batch_size=10)
    launch.to_end(spec)
    return replace(spec, edition=1, batch_size=2, **more)


def editions(spec: Spec) -> dict[int, int]:
    """The edition of each key's row, read without the library: each has one, at every moment."""
    checkpoint = Path(spec.checkpoint_path)
    heads = oracle.read_journal(checkpoint).heads
    lost = oracle.acked(spec) - set(range(len(heads)))
    assert not lost, f"told as committed, and not in the journal: {sorted(lost)}"
    owners: dict[int, int] = {}
    shards: list[str] = []
    for number, head in enumerate(heads):
        lines = (checkpoint / f"journal/{number:020d}.jsonl").read_bytes().splitlines()
        entries = [json.loads(line) for line in lines[1:-1]]
        for entry in entries:
            if "retracted" in entry:
                del owners[entry["retracted"]]
        for entry in entries:
            if "key" in entry:
                assert entry["key"] not in owners, f"completed twice: {entry['key']}"
                owners[entry["key"]] = number
        for path in head.get("info", {}).get("retracted_shards", ()):
            shards.remove(path)
        shards += [shard["path"] for shard in head.get("shards", ())]
    rows: dict[int, int] = {}
    for path in shards:
        for row in pq.ParquetFile(checkpoint / path).read().to_pylist():
            assert row["id"] not in rows, f"{row['id']} has two rows"
            assert row["value"] == value_of(row["id"])
            rows[row["id"]] = row["edition"]
    assert rows.keys() == owners.keys() == set(range(spec.items))
    return rows


def all_new(spec: Spec) -> None:
    assert editions(spec) == {item["id"]: item["edition"] for item in items_of(spec)}


def killed(launch: Launcher, spec: Spec, fault: str) -> None:
    child = launch.fork(replace(spec, faults=fault))
    code = child.wait()
    assert code == -signal.SIGKILL, f"{fault} was not reached: {code}: {child.says()}"
    editions(spec)
    launch.to_end(spec)
    all_new(spec)
    more = (
        sum(oracle.handled(spec).values())
        - spec.items
        - sum(item["edition"] for item in items_of(spec))
    )
    assert 0 <= more <= 2 * spec.batch_size, f"{more} items were handled again"


@pytest.mark.sample(one_in=6)
@pytest.mark.parametrize("fault", EVERY)
def test_killed_at_a_point(launch: Launcher, place: Path, fault: str) -> None:
    killed(launch, done_once(launch, place), fault)


@pytest.mark.long
@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("fault", ["shard.written:1", "commit.shard_written:1", "commit.done:1"])
def test_the_driver_of_processes_is_killed(launch: Launcher, place: Path, fault: str) -> None:
    killed(launch, done_once(launch, place, runner="processes"), fault)


@pytest.mark.sample(one_in=10)
@pytest.mark.parametrize(
    "fault", [f for f in EVERY if f[-1] != "1" or f[:6] in ("commit", "shard.")]
)
def test_a_zombie_wakes_up(launch: Launcher, place: Path, fault: str) -> None:
    """After two runs, of which the first does the items again, and the second sweeps."""
    spec = done_once(launch, place)
    zombie = launch.fork(replace(spec, faults=f"{fault}:stop"))
    until(f"stopped at {fault}", zombie.stopped)
    launch.to_end(replace(spec, takeover=True))
    launch.to_end(replace(spec, takeover=True))
    all_new(spec)
    zombie.signal(signal.SIGCONT)
    assert zombie.wait() in (0, 3), zombie.says()
    all_new(spec)


@pytest.mark.strace
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("count", [2, pytest.param(12, marks=pytest.mark.long)])
def test_killed_at_system_calls(launch: Launcher, tmp_path: Path, count: int) -> None:
    counted = done_once(launch, tmp_path / "count")
    child, log = traced(launch, replace(counted, committer_first=True))
    assert child.code == 0, child.says()
    every = [Point(c, n, True) for c, total in calls(log).items() for n in range(1, total + 1)]
    print(f"{len(every)} points, seed {SEED}")

    def attack(number: int, point: Point) -> None:
        spec = done_once(launch, tmp_path / str(number))
        attacked = replace(spec, committer_first=True)
        child, _ = traced(launch, attacked, f"{point.call}:signal=KILL:when={point.nth}")
        assert child.code in (0, -signal.SIGKILL), f"{point}: {child.code}: {child.says()}"
        editions(spec)
        launch.to_end(spec)
        all_new(spec)

    all_of(attack, [(point,) for point in Random(SEED).sample(every, count)])
