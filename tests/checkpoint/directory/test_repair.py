"""Damage: found, named with its file, moved aside, and only what it hit is redone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointDamaged, CheckpointHeld, UsageError, resumable_task
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.repair import repair, verify
from resumable_tasks.checkpoint.store.urls import open_store

COUNT = 400


@pytest.fixture
def job(handled: list[Any]) -> Any:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        handled.extend(row["id"] for row in rows)
        wide = {"late": 1.5} if rows[0]["id"] >= COUNT // 2 else {}
        return [{"id": row["id"], "value": row["id"] * 3, **wide} for row in rows]

    # One at a time and not cheap: a commit a batch.
    return resumable_task(handler, name="job", key="id", batch_size=20, concurrency=1)


@pytest.fixture
def filled(job: Any, place: Path, handled: list[Any]) -> Path:
    for end in range(20, COUNT + 1, 20):  # a run a batch, so that there are many records
        job.run(({"id": i} for i in range(end)), checkpoint=place)
    handled.clear()
    return place


def records(place: Path, kind: str = "commit") -> list[Path]:
    found = sorted((place / "journal").glob("*.jsonl"))
    return [path for path in found if f'"kind":"{kind}"' in path.read_text().splitlines()[0]]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    # In the rows of a shard: what only repeats the schema, further on, is no matter to a reader.
    data[60 if path.suffix == ".parquet" else len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


DAMAGES: dict[str, tuple[Callable[[Path], list[Path]], Callable[[Path], None], int]] = {
    "a record's bit": (lambda p: [records(p)[7]], flip, 20),
    "a record cut": (lambda p: [records(p)[7]], cut, 20),
    "a record missing": (lambda p: [records(p)[7]], Path.unlink, 20),
    "the first record": (lambda p: [records(p, "claim")[0]], flip, 0),
    "the last record cut": (lambda p: [sorted((p / "journal").iterdir())[-1]], cut, 0),
    "the last commit and its close": (
        lambda p: sorted((p / "journal").iterdir())[-2:],
        cut,
        20,
    ),
    "two records in a row": (lambda p: sorted((p / "journal").iterdir())[10:12], flip, 20),
    "the record that widened the schema": (lambda p: [records(p)[10]], flip, 20),
    "a claim": (lambda p: [records(p, "claim")[3]], Path.unlink, 0),
    "a shard's bit": (lambda p: [sorted((p / "shards").iterdir())[5]], flip, 20),
    "a shard cut": (lambda p: [sorted((p / "shards").iterdir())[5]], cut, 20),
    "a shard missing": (lambda p: [sorted((p / "shards").iterdir())[5]], Path.unlink, 20),
    "shards and records": (
        lambda p: [records(p)[3], *sorted((p / "shards").iterdir())[5:7]],
        flip,
        60,
    ),
}


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_found_and_named_and_costs_only_what_it_hit(
    name: str, filled: Path, job: Any, handled: list[Any]
) -> None:
    choose, damage, cost = DAMAGES[name]
    hit = choose(filled)
    for path in hit:
        damage(path)
    store = open_store(filled)
    named = {str(path.relative_to(filled)) for path in hit}
    assert {damage.file for damage in verify(store).damages} == named
    if "bit" not in name or "shard" not in name:  # a flipped bit in a shard is found on reading
        with pytest.raises(CheckpointDamaged, match="resumable repair") as caught:
            job.run(({"id": i} for i in range(COUNT)), checkpoint=filled)
        assert set(caught.value.files) <= named
    else:
        done = job.run(({"id": i} for i in range(COUNT)), checkpoint=filled)
        with pytest.raises(CheckpointDamaged, match=r"checksum(?s:.)*resumable repair"):
            done.table()
        with pytest.raises(CheckpointDamaged, match="checksum"):
            done.publish(filled.parent / "out")
        assert not (filled.parent / "out").exists()
        with pytest.raises(CheckpointDamaged, match="checksum"):
            done.dataset()
    before = {path.name: path.read_bytes() for path in hit if path.exists()}

    assert {damage.file for damage in repair(store).damages} == named
    assert verify(store).damages == []
    kept = {path.read_bytes() for path in (filled / "damaged").glob("*")}
    assert set(before.values()) <= kept  # moved aside, not deleted
    result = job.run(({"id": i} for i in range(COUNT)), checkpoint=filled)
    assert result.completed == cost
    assert len(handled) <= cost + 20  # in the shards with several damages
    table = result.table(ordered=True)
    assert table.column("id").to_pylist() == list(range(COUNT))
    assert table.column("value").to_pylist() == [i * 3 for i in range(COUNT)]
    assert table.column("late").null_count == COUNT // 2
    assert repair(store).damages == []


def test_repair_waits_for_a_run_and_leaves_a_sound_checkpoint_alone(filled: Path) -> None:
    store = open_store(filled)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in filled.rglob("*.*"))
    assert repair(store).damages == []
    after = sorted((path.name, path.stat().st_mtime_ns) for path in filled.rglob("*.*"))
    assert [name for name in after if "holder" not in name[0]] == [
        name for name in before if "holder" not in name[0]
    ]
    hold = Holder(store, "other")
    hold.take(takeover=False)
    try:
        with pytest.raises(CheckpointHeld):
            repair(store)
    finally:
        hold.release()


def test_what_is_no_checkpoint_cannot_be_verified_or_repaired(tmp_path: Path) -> None:
    for act in (verify, repair):
        with pytest.raises(UsageError, match="not a checkpoint"):
            act(open_store(tmp_path / "nothing"))
    assert not (tmp_path / "nothing").exists()


def test_orphans_and_stray_files_cost_no_work(filled: Path, job: Any, handled: list[Any]) -> None:
    orphan = filled / "shards" / "e1-00000000deadbeef.parquet"
    stray = filled / "journal" / ".00000000000000000003.jsonl.0a1b2c3d.tmp"
    half = filled / "shards" / ".e1-00.parquet.0a1b2c3d.tmp"
    for path in (orphan, stray, half):
        path.write_bytes(b"half")
    assert verify(open_store(filled)).damages == []
    result = job.run(({"id": i} for i in range(COUNT)), checkpoint=filled)
    assert (result.completed, handled) == (0, [])
    assert not orphan.exists()
    assert not stray.exists()
    assert not half.exists()
