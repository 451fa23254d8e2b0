"""Snapshots of the journal: what a run reads by one is what it reads without."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Changes,
    CheckpointDamaged,
    CheckpointUnusable,
    JobFailed,
    StoreError,
    resumable_task,
)
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory import repair as repairs
from resumable_tasks.checkpoint.directory import segments, snapshots
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.items import keys
from tests.checkpoint.store.plain import AtPlain, at


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(snapshots, "_RECORDS", 3)
    monkeypatch.setattr(snapshots, "_FEW_RECORDS", 2)
    yield
    faults.arm(None)


calls: list[int] = []


@resumable_task(name="job", key="id", batch_size=2, changes=Changes(by="etag"))
def job(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls.extend(item["id"] for item in items)
    if any(item["id"] == 7 for item in items):
        raise ValueError("seven")
    return [{"id": i["id"], "v": "x" if i["id"] == 15 else i["id"] * 2} for i in items]


def items(count: int, etag: str = "a") -> list[dict[str, Any]]:
    return [{"id": n, "etag": etag} for n in range(count)]


def run(path: Path, count: int, etag: str = "a") -> Any:
    calls.clear()
    with pytest.raises(JobFailed) as failed:
        job.run(items(count, etag), checkpoint=path, progress=False)
    return failed.value.result


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A checkpoint of two runs with a failure, a parked row and changed items; with snapshots."""
    place = tmp_path / "checkpoint"
    run(place, 12)
    run(place, 20)
    run(place, 20, "b")
    assert heads(place)
    return place


def heads(place: Path) -> list[Path]:
    return sorted((place / "snapshots").glob("*.jsonl"))


def of_keys(place: Path) -> list[Path]:
    return sorted((place / "snapshots").glob("*.zst"))


def without(place: Path) -> State:
    store = LocalStore(place)
    state = State(place=store.url)
    state.apply_all(Journal(store, read_manifest(store).id).read_new())
    return state


def everything(state: State) -> dict[str, Any]:
    found = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    # Objects that change are equal to themselves alone.
    for name in ("lately", "pace", "handlers"):
        found[name] = dataclasses.asdict(found[name])
    del found["recalled"]
    table = found.pop("done")
    return {**found, "done": table.living(), "shards": list(state.shards.items())}


def check_same(place: Path, *, recalled: bool) -> None:
    _, state = read_checkpoint(LocalStore(place))
    assert (state.recalled[0] > 0) is recalled
    assert everything(state) == everything(without(place))


def test_all_of_the_state_is_there(path: Path) -> None:
    check_same(path, recalled=True)
    _, state = read_checkpoint(LocalStore(path))
    assert state.failures
    assert state.parked
    assert state.schema
    by, plain = Reader(LocalStore(path)), LocalStore(path)
    by.read_new()
    shutil.rmtree(path / "snapshots")
    reader = Reader(plain)
    reader.read_new()
    assert by.describe() == reader.describe()


def test_a_rerun_handles_nothing_twice(path: Path) -> None:
    result = run(path, 24, "b")
    assert set(calls) == {7, *range(20, 24)}
    assert result.skipped == 18
    check_same(path, recalled=True)
    assert sorted(result.table()["id"].to_pylist()) == [n for n in range(24) if n not in (7, 15)]


def test_only_the_tail_is_read(tmp_path: Path) -> None:
    place = at(tmp_path / "checkpoint")
    simple = resumable_task(lambda rows: rows, name="job", key="id", batch_size=1)
    for count in (10, 20, 30):
        simple.run([{"id": n} for n in range(count)], checkpoint=place)
    assert isinstance(place, AtPlain)
    place.plain.counted()
    _, state = read_checkpoint(place.plain)
    tail = state.records - state.recalled[0]
    counted = place.plain.counted()
    assert counted["read ahead journal"] == tail + 1  # the record that the snapshot names
    assert counted["read snapshots"] == 1  # and not the keys
    assert len(state.done) == 30
    assert not place.plain.counted()["read snapshots"]
    assert keys.canonical(17) in state.done
    counted = place.plain.counted()
    assert (counted["read snapshots"], counted["read ahead journal"]) == (1, 0)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-9])


def edit(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


DAMAGE = {"cut": cut, "edited": edit, "empty": lambda file: file.write_bytes(b"")}
DAMAGE["gone"] = Path.unlink


@pytest.mark.parametrize("files", [heads, of_keys])
@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_does_not_count(path: Path, files: Any, damage: str) -> None:
    for file in files(path):
        DAMAGE[damage](file)
    _, state = read_checkpoint(LocalStore(path))
    assert everything(state) == everything(without(path))
    result = run(path, 20, "b")
    assert set(calls) == {7}
    assert repairs.verify(LocalStore(path)).damages == []
    assert result.table().num_rows == 18


def test_one_of_another_checkpoint_does_not_count(path: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for count in (12, 20, 30):
        run(other, count)
    shutil.rmtree(path / "snapshots")
    shutil.copytree(other / "snapshots", path / "snapshots")
    check_same(path, recalled=False)


def test_an_older_one_counts_for_what_it_has(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path / "snapshots", tmp_path / "older")
    run(path, 40, "b")
    shutil.rmtree(path / "snapshots")
    shutil.copytree(tmp_path / "older", path / "snapshots")
    check_same(path, recalled=True)


@pytest.mark.parametrize("copied", [True, False])
def test_one_of_somebody_else_hides_no_good_one(path: Path, copied: bool) -> None:
    newest = heads(path)[-1]
    foreign = newest.with_name("9" * 20 + ".jsonl")
    foreign.write_bytes(newest.read_bytes() if copied else b"mine")
    check_same(path, recalled=True)
    run(path, 40, "b")
    assert len(heads(path)) > 2
    check_same(path, recalled=True)


def test_one_that_is_damaged_hides_no_older_one(path: Path) -> None:
    older, newest = heads(path)[-2:]
    edit(newest)
    check_same(path, recalled=True)
    _, state = read_checkpoint(LocalStore(path))
    assert state.recalled[0] == int(older.stem) + 1


def test_a_repair_makes_older_ones_void(path: Path, tmp_path: Path) -> None:
    shutil.copytree(path / "snapshots", tmp_path / "older")
    reader = Reader(LocalStore(path))
    reader.read_new()
    edit(path / "journal" / f"{2:020d}.jsonl")
    assert repairs.repair(LocalStore(path)).damages
    assert not heads(path)
    # As by a run that slept: of before the repair, and the journal has its last record.
    shutil.rmtree(path / "snapshots")
    shutil.copytree(tmp_path / "older", path / "snapshots")
    check_same(path, recalled=False)
    reader.read_new()
    assert everything(reader.state) == everything(without(path))
    run(path, 20, "b")
    run(path, 20, "b")
    check_same(path, recalled=True)
    assert repairs.verify(LocalStore(path)).damages == []


def test_a_missing_record_is_damage_whatever_a_snapshot_says(path: Path) -> None:
    (path / "journal" / f"{1:020d}.jsonl").unlink()
    damages = [damage.file for damage in repairs.verify(LocalStore(path)).damages]
    assert f"journal/{1:020d}.jsonl" in damages
    with pytest.raises(Exception, match="missing"):
        read_checkpoint(LocalStore(path))


@pytest.mark.parametrize("left", [1, 3, -2, -1])
def test_a_journal_that_was_cut_is_damage(
    path: Path, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as one that was put back from an older copy: a snapshot knows that there was more."""
    monkeypatch.setattr(snapshots, "_FEW_RECORDS", 4)  # also where a snapshot would save nothing
    shards = {os.path.basename(name) for name in read_checkpoint(LocalStore(path))[1].shards}
    every = sorted((path / "journal").glob("0*.jsonl"))
    # One run may end before there are enough records for one more snapshot.
    records = [record for record in every if record.stem <= heads(path)[-1].stem]
    for record in every[every.index(records[left]) :]:
        record.unlink()
    first, told = records[left], r"existed when snapshots/.* was made"
    with pytest.raises(CheckpointDamaged, match=told) as error:
        job.run(items(20, "b"), checkpoint=path, progress=False)
    assert error.value.files == (f"journal/{first.name}",)
    reader = Reader(LocalStore(path))
    reader.examine()
    assert reader.status == "damaged"
    damages = [damage.file for damage in repairs.verify(LocalStore(path)).damages]
    assert {f"journal/{record.name}" for record in records[left:]} <= set(damages)
    repairs.repair(LocalStore(path))
    assert repairs.verify(LocalStore(path)).damages == []
    result = run(path, 20, "b")
    assert sorted(result.table()["id"].to_pylist()) == [n for n in range(20) if n not in (7, 15)]
    # What was paid for is not thrown away.
    kept = {name.split("-shards-")[-1] for name in os.listdir(path / "damaged")}
    assert shards <= kept | set(os.listdir(path / "shards"))


def test_a_snapshot_that_says_nothing_hides_no_cut(path: Path) -> None:
    older, newest = heads(path)[-2:]
    for record in sorted((path / "journal").glob("0*.jsonl")):
        if record.stem >= older.stem:
            record.unlink()
    newest.write_bytes(b"torn")
    calls.clear()
    with pytest.raises(CheckpointDamaged, match=f"existed when .*{older.name} was made"):
        job.run(items(20, "b"), checkpoint=path, progress=False)
    assert calls == []


def test_who_reads_while_a_run_ends_sees_no_cut(path: Path) -> None:
    """The records were listed before, and the snapshot after, as in a bucket that is slow."""
    before = segments.listed(LocalStore(path))
    run(path, 40, "b")
    made = read_manifest(LocalStore(path)).id
    state, _ = snapshots.read_state(LocalStore(path), made, before)
    assert state.records == len(before)


@pytest.mark.parametrize("point", ["before_keys", "keys_written", "written"])
def test_a_run_that_dies_at_a_snapshot_leaves_nothing_to_mind(path: Path, point: str) -> None:
    class Died(BaseException):
        pass

    def die(name: str) -> None:
        if name == f"snapshot.{point}":
            raise Died

    faults.arm(die)
    with pytest.raises(Died):
        job.run(items(40, "b"), checkpoint=path, progress=False)
    faults.arm(None)
    check_same(path, recalled=True)
    run(path, 60, "b")
    run(path, 80, "b")
    check_same(path, recalled=True)
    assert len(heads(path)) == len(of_keys(path)) == 2


def test_what_a_run_that_was_killed_has_left_of_one_goes(path: Path) -> None:
    for name in ("keys.zst", "jsonl"):
        left = heads(path)[-1].with_name(f".{heads(path)[-1].stem}-{7:016x}.{name}.0a1b.tmp")
        (path / "snapshots" / left.name.replace(f"-{7:016x}.json", ".json")).touch()
    of_a_newer_run = path / "snapshots" / f".{10**6:020d}.jsonl.0a1b.tmp"
    of_a_newer_run.touch()
    run(path, 40, "b")
    assert list(path.glob("snapshots/.*")) == [of_a_newer_run]


@pytest.mark.parametrize("kind", [StoreError, CheckpointUnusable])
def test_one_that_cannot_be_written_ends_no_run(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    put = LocalStore.put

    def full(self: LocalStore, name: str, data: bytes) -> None:
        if name.startswith("snapshots/"):
            raise kind("the disk is full")
        put(self, name, data)

    monkeypatch.setattr(LocalStore, "put", full)
    result = run(path, 40, "b")
    assert result.table().num_rows == 38
    assert "the snapshot of the journal could not be written" in caplog.text
    check_same(path, recalled=True)


def test_small_checkpoints_have_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    run(tmp_path / "checkpoint", 20)
    run(tmp_path / "checkpoint", 40)
    assert not (tmp_path / "checkpoint" / "snapshots").exists()


def test_many_keys_in_few_records_have_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(snapshots, "_KEYS_MORE", 30)
    run(tmp_path / "checkpoint", 40)
    assert len(segments.listed(LocalStore(tmp_path / "checkpoint"))) < snapshots._FEW_RECORDS
    check_same(tmp_path / "checkpoint", recalled=True)


def test_after_one_whose_keys_are_damaged_comes_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(snapshots, "_KEYS_MORE", 30)
    place = tmp_path / "checkpoint"
    run(place, 40)
    (keys,) = of_keys(place)
    keys.write_bytes(bytes([keys.read_bytes()[0] ^ 1]) + keys.read_bytes()[1:])
    run(place, 40)
    assert calls == [7], "what had failed alone"
    assert of_keys(place)[-1] != keys
    check_same(place, recalled=True)


def test_in_a_bucket_few_records_are_read_without_a_request_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(snapshots, "_KEYS_MORE", 30)
    place = at(tmp_path / "checkpoint")
    with pytest.raises(JobFailed):
        job.run(items(40), checkpoint=place, progress=False)
    read_checkpoint(place.plain)
    asked = place.plain.counted()
    assert not [request for request in asked if "snapshots" in request]
