"""Many small shards become few: each row once at every moment, whatever fails, whoever reads."""

from __future__ import annotations

import itertools
import json
import os
import random
import shutil
import threading
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from resumable_tasks import (
    CheckpointDamaged,
    CheckpointHeld,
    StoreError,
    redo,
    resumable_task,
)
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory import folding, merging, shards, snapshots
from resumable_tasks.checkpoint.directory.compacting import compact
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.merging import Limits, choose
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import decode, encode, record_name
from resumable_tasks.checkpoint.directory.repair import repair, verify
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import main
from resumable_tasks.errors import Fenced
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.fingerprints import digest
from resumable_tasks.results.rows import table as all_rows
from resumable_tasks.runners.outcome import Done, Shard
from tests.checkpoint.directory.made import commit, filled, never, opened, rows_in
from tests.conftest import Bucket

OLD = Path(__file__).with_name("old")


def shards_of(place: Any) -> list[Shard]:
    return list(read_checkpoint(open_store(place))[1].shards.values())


def files(place: Path, folder: str = "shards") -> int:
    return len(list((place / folder).iterdir()))


def of_kind(place: Path, kind: str) -> list[int]:
    found = []
    for path in sorted((place / "journal").iterdir()):
        record = decode(path.read_bytes(), f"journal/{path.name}")
        found += [record.number] if record.kind == kind else []
    return found


ALL = [(n, "a") for n in range(100)]


# What is merged


def simulated(commits: int, limits: Limits, sizes: Iterable[int]) -> tuple[list[Shard], float, int]:
    """The shards after so many commits, how often a key was copied, and the most shards."""
    there: list[Shard] = []
    copied = total = most = 0
    for n, size in zip(range(commits), sizes, strict=False):
        there.append(Shard(f"s{n}", size, 900 + 20 * size, "", size))
        total += size
        if n % merging.FEWEST:
            continue
        for group in choose(there[-200:], limits):
            at = there.index(group[0])
            assert there[at : at + len(group)] == group, "they are neighbours"
            count = sum(shard.keys for shard in group)
            assert count <= limits.keys
            assert len(group) <= limits.parts
            copied += count
            there[at : at + len(group)] = [Shard(f"m{n}", count, 900 + 20 * count, "", count)]
        most = max(most, len(there))
    assert sum(shard.keys for shard in there) == total
    return there, copied / total, most


def test_a_hundred_thousand_commits_of_one_item_leave_few_shards() -> None:
    limits = Limits(merging.TARGET_BYTES, merging.MOST_KEYS, merging.MOST_PARTS_AT_ONCE)
    there, copied, most = simulated(100_000, limits, [1] * 100_000)
    assert len(there) < 100
    assert most < 150
    assert copied < 9, "as often as the logarithm says"


@pytest.mark.parametrize("seed", range(5))
def test_commits_of_any_size_are_copied_seldom(seed: int) -> None:
    chance = random.Random(seed)
    sizes = [int(10 ** chance.uniform(0, 4)) for _ in range(4_000)]
    limits = Limits(merging.TARGET_BYTES, merging.MOST_KEYS, merging.MOST_PARTS_AT_ONCE)
    there, copied, _ = simulated(4_000, limits, sizes)
    assert copied < 17, "as often as a shard can double"
    assert len(there) < sum(sizes) / (limits.keys / 4) + 150


def test_large_ones_and_few_are_left_alone() -> None:
    limits = Limits(1_000, 1_000, 256)
    small = [Shard(f"s{n}", 1, 10, "", 1) for n in range(31)]
    large = Shard("large", 1, 300, "", 1)
    assert choose(small, limits) == []
    assert choose([*small, large, *small], limits) == []
    more = [Shard(f"t{n}", 1, 10, "", 1) for n in range(40)]
    assert choose([large, *more, large], limits) == [more]


# What a run does


def test_a_run_merges_what_its_commits_leave(place: Path) -> None:
    filled(place, 100, tidy=True)
    assert len(shards_of(place)) < 40
    assert rows_in(place) == ALL, "in the order in which they were committed"
    assert of_kind(place, "merge")
    opened(place).close()
    assert files(place) == len(shards_of(place)), "the next run deletes what was merged"
    assert rows_in(place) == ALL


def test_a_job_merges_by_itself(place: Path) -> None:
    @resumable_task(key="id", batch_size=1, concurrency=1, name="job")
    def slow(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        wait.wait(0.01)  # so that each has a commit of its own
        return items

    wait = threading.Event()
    run = slow.run([{"id": n} for n in range(80)], checkpoint=place, progress=False)
    assert run.table()["id"].to_pylist() == list(range(80))
    assert of_kind(place, "merge")
    assert slow.run([{"id": n} for n in range(80)], checkpoint=place).skipped == 80


def test_parts_stay_for_their_readers_and_go_after_a_grace(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(place)
    for n in range(100):
        commit(checkpoint, [n])
        checkpoint.tidy(never)
    assert files(place) > 100, "nothing is deleted within the grace"
    checkpoint.end("done", {})
    checkpoint.close()
    left = files(place) - len(shards_of(place))
    assert merging.FEWEST <= left < 2 * merging.FEWEST, "the parts of the last merge are left"
    monkeypatch.setattr(merging, "GRACE_SECONDS", 0.0)
    filled(place.with_name("quick"), 100, tidy=True)
    assert files(place.with_name("quick")) < 100


def test_where_items_change_merged_shards_are_small(place: Path) -> None:
    filled(place, 40, changes=True)
    state = read_checkpoint(open_store(place))[1]
    assert Limits.of(state).keys == merging.MOST_KEYS_THAT_CHANGE
    state.fingerprint = None
    assert Limits.of(state).keys == merging.MOST_KEYS


def test_a_run_that_is_to_stop_merges_nothing(place: Path) -> None:
    checkpoint = opened(place)
    for n in range(40):
        commit(checkpoint, [n])
    asked = iter([False, False, True])
    checkpoint.tidy(lambda: next(asked, True))
    checkpoint.close()
    assert of_kind(place, "merge") == []
    assert files(place) == 40


def full(*_: Any) -> Any:
    raise StoreError("no space left on the disk")


@pytest.mark.parametrize("what", ["the shard", "the record", "a part"])
def test_a_merge_that_fails_fails_no_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    checkpoint = opened(place)
    for n in range(40):
        commit(checkpoint, [n])
    path = next(iter(checkpoint.state.shards))
    if what == "a part":
        (place / path).write_bytes(b"PAR1")
    with monkeypatch.context() as patched:
        if what != "a part":
            patched.setattr(LocalStore, "put" if what == "the shard" else "create", full)
        checkpoint.tidy(never)
        checkpoint.tidy(never)
    assert len([each for each in caplog.records if "no longer merges" in each.message]) == 1
    commit(checkpoint, range(40, 50))
    checkpoint.close()
    assert of_kind(place, "merge") == []
    assert len(read_checkpoint(open_store(place))[1].done) == 50
    if what == "a part":
        assert [damage.file for damage in verify(open_store(place)).damages] == [path]
    else:
        assert len(rows_in(place)) == 50


def test_a_run_that_was_overtaken_merges_nothing(place: Path) -> None:
    zombie = opened(place)
    for n in range(40):
        commit(zombie, [n])
    second = opened(place, takeover=True)
    with pytest.raises(Fenced):
        zombie.tidy(never)
    zombie.close()
    commit(second, range(40, 100))
    second.close()
    assert of_kind(place, "merge") == []
    assert rows_in(place) == ALL


def test_what_was_done_again_since_is_not_merged(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "MOST_PARTS_AT_ONCE", 32)
    filled(place, 70, changes=True)
    checkpoint = opened(place, changes=True)
    checkpoint.tidy(never)  # two groups: the last one is merged
    commit(checkpoint, [3], "b")
    checkpoint.tidy(never)  # the first one is not as it was
    checkpoint.close()
    assert sorted(rows_in(place)) == [(n, "b" if n == 3 else "a") for n in range(70)]


@pytest.mark.long
def test_in_a_bucket(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging, "GRACE_SECONDS", 0.0)
    filled(bucket.url, 100, tidy=True)
    assert len(shards_of(bucket.url)) < 40
    assert rows_in(bucket.url) == ALL
    assert sum(name.startswith("shards/") for name in bucket.stored()) < 100
    compact(open_store(bucket.url))
    assert rows_in(bucket.url) == ALL


def test_a_reader_that_never_stops_sees_one_state(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "GRACE_SECONDS", 0.0)
    checkpoint = opened(place)
    commit(checkpoint, [0])
    seen: list[list[int]] = []
    failed: list[BaseException] = []
    over = threading.Event()

    def read() -> None:
        reader = DirectoryReader(LocalStore(place))
        while not over.is_set():
            try:
                seen.append(reader.read(all_rows)["id"].to_pylist())
            except BaseException as error:
                failed.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for n in range(1, 400):
        commit(checkpoint, [n])
        checkpoint.tidy(never)
    checkpoint.end("done", {})
    checkpoint.close()
    opened(place).close()
    over.set()
    thread.join()
    assert failed == []
    assert len(seen) > 3
    assert all(ids == list(range(len(ids))) for ids in seen)
    assert len(of_kind(place, "merge")) > 8


def test_what_is_merged_and_deleted_while_all_is_verified_is_no_damage(place: Path) -> None:
    filled(place, 100)

    class Meanwhile(LocalStore):
        """A place that is compacted once its journal was read."""

        def list(self, folder: str) -> dict[str, int]:
            if folder == shards.FOLDER and files(place) == 100:
                compact(LocalStore(place))
                compact(LocalStore(place))  # deletes what the first has merged
            return super().list(folder)

    assert verify(Meanwhile(place)).damages == []
    assert files(place) == 1
    next((place / "shards").iterdir()).unlink()
    assert [damage.what for damage in verify(Meanwhile(place)).damages] == ["it is missing"]


# Items that are done again


@pytest.fixture
def merged(place: Path) -> Path:
    """100 items, committed one by one, in one shard by now."""
    filled(place, 100)
    compact(open_store(place))
    opened(place).close()
    assert len(shards_of(place)) == files(place) == 1
    return place


def test_changed_items_of_a_merged_shard_are_done_again(place: Path) -> None:
    filled(place, 100, changes=True)
    compact(open_store(place))
    checkpoint = opened(place, changes=True)
    commit(checkpoint, [3, 50], "b")
    checkpoint.close()
    wanted = [(n, "b" if n in (3, 50) else "a") for n in range(100)]
    assert sorted(rows_in(place)) == wanted
    done = read_checkpoint(open_store(place))[1].done
    assert {done.get(keys.canonical(n)) for n, v in wanted if v == "a"} == {digest("a")}
    assert done.get(keys.canonical(3)) == digest("b")


def test_a_changed_item_whose_shard_this_run_has_merged_with_its_own(place: Path) -> None:
    filled(place, 20, changes=True)
    checkpoint = opened(place, changes=True)
    commit(checkpoint, [1], "b")  # from here on it is known where each row is
    for n in range(20, 60):
        commit(checkpoint, [n])
    checkpoint.tidy(never)
    assert len(checkpoint.state.shards) == 1
    commit(checkpoint, [2], "b")
    checkpoint.close()
    assert sorted(rows_in(place)) == [(n, "b" if n in (1, 2) else "a") for n in range(60)]


def test_redo_takes_items_out_of_a_merged_shard(merged: Path) -> None:
    assert redo(merged, keys=[7, 9]) == [7, 9]
    assert rows_in(merged) == [(n, "a") for n in range(100) if n not in (7, 9)]
    compact(open_store(merged))
    checkpoint = opened(merged)
    commit(checkpoint, [7, 9])
    checkpoint.close()
    assert sorted(rows_in(merged)) == ALL


def test_rows_of_a_merged_shard_take_other_types(merged: Path) -> None:
    job = resumable_task(
        lambda items: [{"id": i["id"], "v": i["id"]} for i in items],
        name="job",
        key="id",
        json_columns=("v",),
    )
    run = job.run([{"id": n} for n in range(101)], checkpoint=merged)
    assert (run.skipped, run.completed) == (100, 1)
    assert sorted(rows_in(merged)) == [*((n, '"a"') for n in range(100)), (100, "100")]


# The command


def test_compact_merges_and_deletes_the_next_time(place: Path) -> None:
    filled(place, 100)
    found = compact(open_store(place))
    assert (found.before, found.after, found.deleted, found.left) == (100, 1, 0, 100)
    assert rows_in(place) == ALL
    again = compact(open_store(place))
    assert (again.before, again.after, again.deleted, again.left) == (1, 1, 100, 0)
    assert files(place) == 1
    assert rows_in(place) == ALL
    before = files(place, "journal")
    assert compact(open_store(place)).left == 0
    assert files(place, "journal") == before, "where there is nothing to do nothing is written"


def test_compact_on_the_command_line(place: Path) -> None:
    def cli(*arguments: str) -> Any:
        return CliRunner().invoke(main, [*arguments, str(place)], catch_exceptions=False)

    filled(place, 100)
    assert "100 shards are now 1" in cli("compact").stdout
    status = cli("status")
    assert (status.exit_code, "done" in status.stdout) == (0, True), "it is as done as before"
    assert "deleted 100 files" in cli("compact").stdout
    assert cli("compact").stdout == "nothing to merge: 1 shard\n"
    checkpoint = opened(place)
    assert cli("compact").exit_code == 3
    checkpoint.close()


def test_compact_fences_a_run_that_is_alive(place: Path) -> None:
    checkpoint = opened(place)
    for n in range(40):
        commit(checkpoint, [n])
    with pytest.raises(CheckpointHeld):
        compact(open_store(place))
    checkpoint._hold._release_lock()  # as if its machine had been cut off
    compact(open_store(place))
    with pytest.raises(Fenced):
        commit(checkpoint, [40])
    checkpoint.close()
    assert len(rows_in(place)) == 40


@pytest.mark.parametrize("name", ["changes", "composite", "failures", "stopped", "tuples"])
def test_checkpoints_of_earlier_versions_are_merged(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FEWEST", 2)
    place = shutil.copytree(OLD / name, tmp_path / name)
    before = DirectoryReader(open_store(place)).read(all_rows)
    status = CliRunner().invoke(main, ["status", str(place)]).exit_code
    count = len(shards_of(place))
    for _ in range(2):
        compact(open_store(place))
        assert verify(open_store(place)).damages == []
        assert DirectoryReader(open_store(place)).read(all_rows).equals(before)
    assert len(shards_of(place)) == files(place)
    assert len(shards_of(place)) < count or count < 3
    assert CliRunner().invoke(main, ["status", str(place)]).exit_code == status


# Damage


def test_a_damaged_merged_shard_costs_its_own_items_alone(place: Path) -> None:
    filled(place, 50)
    compact(open_store(place))
    checkpoint = opened(place)
    commit(checkpoint, range(50, 100))
    checkpoint.close()
    path = shards_of(place)[0].path
    data = bytearray((place / path).read_bytes())
    data[len(data) // 2] ^= 1
    (place / path).write_bytes(data)
    (damage,) = verify(open_store(place)).damages
    assert (damage.file, damage.items) == (path, 50)
    with pytest.raises(CheckpointDamaged, match=path):
        DirectoryReader(open_store(place)).read(all_rows)
    repair(open_store(place))
    assert rows_in(place) == [(n, "a") for n in range(50, 100)]


@pytest.mark.parametrize("again", [False, True])
def test_a_lost_record_costs_its_own_items_though_they_are_merged(
    place: Path, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = opened(place)
    for n in range(40):
        lost = commit(checkpoint, [n])
    checkpoint.tidy(never)
    for n in range(40, 90 if again else 60):
        commit(checkpoint, [n])
    checkpoint.end("done", {})
    checkpoint.close()
    if again:
        monkeypatch.setattr(folding, "FEWEST", 1_000)  # the record keeps its own file
        compact(open_store(place))
    opened(place).close()
    (place / record_name(lost)).unlink()
    home = next(shard.path for shard in shards_of_broken(place))
    assert {damage.file for damage in verify(open_store(place)).damages} == {
        record_name(lost),
        home,
    }
    repair(open_store(place))
    count = 90 if again else 60
    assert sorted(rows_in(place)) == [(n, "a") for n in range(count) if n != 39]
    checkpoint = opened(place)
    commit(checkpoint, [39])
    checkpoint.close()
    assert sorted(rows_in(place)) == [(n, "a") for n in range(count)]


def shards_of_broken(place: Path) -> list[Shard]:
    """The merged shards of a checkpoint one of whose records is lost, the largest first."""
    found: dict[str, Shard] = {}
    for path in sorted((place / "journal").iterdir()):
        record = decode(path.read_bytes(), f"journal/{path.name}")
        for shard, parts in record.merges():
            found[shard.path] = shard
            for part in parts:
                found.pop(part, None)
    return sorted(found.values(), key=lambda shard: -shard.keys)


def merged_after_40(place: Path) -> None:
    """A checkpoint of 42 items, of which those of one merge are between two commits."""
    checkpoint = opened(place)
    commit(checkpoint, [100])
    for n in range(40):
        commit(checkpoint, [n])
    checkpoint.tidy(never)
    commit(checkpoint, [101])
    checkpoint.close()


@pytest.mark.parametrize("swept", [False, True])
def test_a_lost_record_of_a_merge_costs_no_more_than_its_items(place: Path, swept: bool) -> None:
    merged_after_40(place)
    if swept:
        opened(place).close()
    (number,) = of_kind(place, "merge")
    (place / record_name(number)).write_bytes(b"")
    repair(open_store(place))
    assert sorted(rows_in(place)) == [(n, "a") for n in (*range(40), 100, 101)]
    assert verify(open_store(place)).damages == []


def without_record_of_merge(place: Path) -> str:
    """A checkpoint of 42 items: the record of its merge is lost, and the parts are deleted."""
    merged_after_40(place)
    opened(place).close()
    (merged,) = (shard.path for shard in shards_of_broken(place) if shard.keys > 1)
    (number,) = of_kind(place, "merge")
    (place / record_name(number)).unlink()
    return merged


def test_a_repair_that_dies_anywhere_finds_a_lost_merge_again(place: Path, tmp_path: Path) -> None:
    without_record_of_merge(place)
    for nth in itertools.count(1):
        copy = tmp_path / str(nth)
        shutil.copytree(place, copy)
        died = dies_in_repair(copy, nth)
        repair(open_store(copy))
        assert verify(open_store(copy)).damages == []
        opened(copy).close()
        assert sorted(rows_in(copy)) == [(n, "a") for n in (*range(40), 100, 101)]
        if not died:
            break
    assert nth > 5


def dies_in_repair(place: Path, nth: int) -> bool:
    class Died(BaseException):
        pass

    passed = itertools.count(1)

    def die(_: str) -> None:
        if next(passed) == nth:
            raise Died

    faults.arm(die)
    try:
        repair(open_store(place))
    except Died:
        return True
    finally:
        faults.arm(None)
    return False


@pytest.mark.parametrize(
    "how", ["a bit", "a row more", "another order", "another's rows", "a part"]
)
def test_what_has_not_just_the_rows_of_the_parts_is_no_merge_of_them(place: Path, how: str) -> None:
    path = place / without_record_of_merge(place)
    data, rows = path.read_bytes(), pq.read_table(path)
    if how == "a bit":
        middle = data.index(b"PAR1") + 60
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    elif how == "a row more":
        pq.write_table(pa.concat_tables([rows, rows.slice(0, 1)]), path)
    elif how == "another order":
        pq.write_table(rows.take(list(range(len(rows)))[::-1]), path)
    elif how == "another's rows":
        strange = pa.table({**rows.to_pydict(), "id": range(1_000, 1_000 + len(rows))})
        pq.write_table(strange.cast(rows.schema), path)
    else:
        pq.write_table(rows.slice(0, 1), path)
    repair(open_store(place))
    assert verify(open_store(place)).damages == []
    there = {n for n, _ in rows_in(place)}
    assert {101} <= there
    assert not there & {1, 20, 39}
    assert path.name in "".join(os.listdir(place / "damaged"))


def test_a_repair_that_dies_leaves_rows_of_a_lost_record_that_nobody_reads(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(place, 40)
    compact(open_store(place))
    (place / record_name(5)).write_bytes(b"")

    class Died(Exception):
        pass

    def die(name: str) -> None:
        if name == "shard.before_put":  # the lost record has its substitute
            raise Died

    faults.arm(die)
    with pytest.raises(Died):
        repair(open_store(place))
    faults.arm(None)
    for look in (opened, lambda place: DirectoryReader(open_store(place)).read(all_rows)):
        with pytest.raises(CheckpointDamaged, match="rows of items that a lost record"):
            look(place)
    repair(open_store(place))
    assert len(rows_in(place)) == 39


def test_what_was_made_by_hand_is_damage() -> None:
    shard = Shard("shards/e1-0a.parquet", 2, 10, "", 2)
    info = {"merged": [2], "retracted_shards": ["shards/e1-0b.parquet", "shards/e1-0c.parquet"]}
    good = Commit("merge", 1, "r", 3, shards=(shard,), info=info)
    assert decode(encode(good)[0], record_name(3)).info == info
    for wrong in (
        {},
        {"merged": [2]},
        info | {"merged": [1]},
        info | {"merged": [0, 2]},
        info | {"merged": ["2"]},
        info | {"merged": None},
        info | {"merged": 2},
        info | {"retracted_shards": None},
    ):
        record = Commit("merge", 1, "r", 3, shards=(shard,), info=wrong)
        with pytest.raises(CheckpointDamaged):
            decode(encode(record)[0], record_name(3))


# For others


def test_a_delta_table_has_each_row_once(place: Path, tmp_path: Path) -> None:
    deltalake = pytest.importorskip("deltalake")
    from resumable_tasks.results.publish import publish

    def published() -> Counter[int]:
        publish(DirectoryReader(open_store(place)), tmp_path / "table", form="delta")
        rows = deltalake.DeltaTable(tmp_path / "table").to_pyarrow_table()
        return Counter(rows["id"].to_pylist())

    def modes() -> list[str]:
        history = deltalake.DeltaTable(tmp_path / "table").history()
        found = [entry["operationParameters"]["mode"].lower() for entry in history]
        return found[-2::-1]  # without the first version, which has no rows

    filled(place, 40)
    assert published() == Counter(range(40))
    compact(open_store(place))
    assert published() == Counter(range(40))
    assert len(modes()) == 1, "the rows are the same, wherever they are"
    checkpoint = opened(place)
    for n in range(40, 60):
        commit(checkpoint, [n])
    assert published() == Counter(range(60))
    for n in range(60, 80):
        commit(checkpoint, [n])
    checkpoint.tidy(never)  # what is in the table already, with what is not
    checkpoint.close()
    assert len(shards_of(place)) == 1
    assert published() == Counter(range(80))
    assert modes()[1:] == ["append", "append"], "only what has come since is written"
    redo(place, keys=[5])
    assert published() == Counter([n for n in range(80) if n != 5])
    assert modes()[-1] == "overwrite"


def test_shards_of_several_groups_are_one_file(place: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(shards, "_GROUP_BYTES", 100)
    filled(place, 100)
    compact(open_store(place))
    assert rows_in(place) == ALL


def test_all_records_of_a_damaged_merged_shard_are_lost(place: Path) -> None:
    checkpoint = opened(place)
    numbers = [commit(checkpoint, [n]) for n in range(32)]
    checkpoint.tidy(never)
    commit(checkpoint, [100])
    commit(checkpoint, [101])
    (place / list(checkpoint.state.shards)[-1]).unlink()
    checkpoint.close()
    for number in numbers:
        (place / record_name(number)).unlink()
    home = next(shard.path for shard in shards_of_broken(place))
    (place / home).write_bytes((place / home).read_bytes()[:400])
    repair(open_store(place))
    assert rows_in(place) == [(100, "a")]
    for path in (place / "journal").iterdir():
        assert all(json.loads(line) for line in path.read_bytes().splitlines()), path.name


def test_what_compact_deletes_no_run_can_name_any_more(place: Path) -> None:
    checkpoint = opened(place)
    commit(checkpoint, [0])
    table = pa.table({"id": [1], "v": ["a"]})
    shard = checkpoint.shard_writer()(table, 1)  # of a batch that is under way
    checkpoint._hold._release_lock()  # as if its machine had been cut off
    found = compact(open_store(place))
    assert (found.left, found.deleted) == (0, 1)
    line = keys.canonical(1)
    unit = checkpoint.begin()
    unit.add(Done(Batch(0, [1], line, [{"id": 1}]), line, 1, shard=shard, schema=table.schema))
    with pytest.raises(Fenced):
        unit.commit()
    checkpoint.close()
    assert rows_in(place) == [(0, "a")]


def test_a_reader_whose_shards_were_merged_and_deleted_begins_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(place, 40)
    read = shards.read_all

    def slow(store: Any, wanted: Iterable[Shard]) -> Any:
        monkeypatch.setattr(shards, "read_all", read)
        compact(open_store(place))
        compact(open_store(place))
        return read(store, wanted)

    monkeypatch.setattr(shards, "read_all", slow)
    assert rows_in(place) == ALL[:40]
    assert shards.read_all is read
    assert files(place) == 1


def test_a_merge_has_few_groups_of_rows_in_memory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_GROUP_BYTES", 1_000_000)
    filled(place, 1)
    store = open_store(place)
    rows = pa.table({"id": range(10), "v": ["x" * 100_000] * 10})  # next to nothing in a file
    part = shards.write_all(store, 1, [rows] * 30, rows.schema, 300)
    taken: list[int] = []
    before = pa.total_allocated_bytes()

    def stop() -> bool:
        taken.append(pa.total_allocated_bytes() - before)
        return False

    shard = merging.merged(store, 1, [part, part], rows.schema, stop)
    assert shards.read(store, shard).equals(pa.concat_tables([rows] * 60))
    assert max(taken) < 10_000_000


def test_a_merged_shard_stands_where_its_parts_stood() -> None:
    each = [Shard(f"shards/e1-{n}.parquet", 1, 10, "", 1) for n in range(8)]
    state = State(shards={shard.path: shard for shard in each})
    merged = Shard("shards/e1-a.parquet", 2, 20, "", 2)
    state.apply(merging.record(1, "r", [(merged, each[2:4])]))
    assert list(state.shards.values()) == [*each[:2], merged, *each[4:]]
    last = Shard("shards/e1-b.parquet", 3, 30, "", 3)
    state.apply(merging.record(1, "r", [(last, [merged, *each[6:]])]))
    assert list(state.shards.values()) == [*each[:2], last, *each[4:6]]
    assert not state.gap
    state.apply(merging.record(1, "r", [(merged, [each[0], each[3]])]))
    assert state.gap, "one of them does not count"


def test_a_snapshot_of_the_journal_tells_of_merges(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(place, 100, tidy=True)
    compact(open_store(place))
    checkpoint = opened(place)
    for n in range(100, 120):
        commit(checkpoint, [n])
    checkpoint.close()
    plain = read_checkpoint(open_store(place))[1]
    assert plain.recalled[0] == 0, "there is no snapshot yet"
    monkeypatch.setattr(snapshots, "_RECORDS", 3)
    checkpoint = opened(place)
    checkpoint.end("done", {})
    checkpoint.close()
    found = read_checkpoint(open_store(place))[1]
    assert found.recalled[0] > 0
    assert list(found.shards.values()) == list(plain.shards.values())
    assert (found.merged, found.gap) == (plain.merged, plain.gap) == (True, False)
    assert rows_in(place)[:100] == ALL
    redo(place, keys=[5])
    compact(open_store(place))
    assert len(rows_in(place)) == 119
