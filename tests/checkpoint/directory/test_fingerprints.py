"""Changed items: found by their fingerprint, done again, and their new rows replace the old."""

from __future__ import annotations

import asyncio
import json
import pickle
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from resumable_tasks import (
    ChangedItem,
    Changes,
    CheckpointMismatch,
    ItemFailure,
    JobFailed,
    UsageError,
)
from resumable_tasks import resumable_task as task
from resumable_tasks.checkpoint import form
from resumable_tasks.checkpoint.directory import layout, shards, snapshots
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import decode, record_name
from resumable_tasks.checkpoint.directory.repair import repair, verify
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import CheckpointDamaged, Fenced, InvalidItems, InvalidKey
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.fingerprints import Fingerprinter, digest
from resumable_tasks.items.keys import KeyScheme, written
from resumable_tasks.items.plan import Planning
from resumable_tasks.results.rows import table as all_rows
from resumable_tasks.runners.outcome import Done


def items_of(count: int, **changed: str) -> list[dict]:
    """Items with an etag; ``k3="new"`` gives item 3 another one."""
    return [{"id": n, "etag": changed.get(f"k{n}", f"old {n}")} for n in range(count)]


class Job:
    """A job that notes what it is given, in one folder."""

    def __init__(self, folder: Path, **options) -> None:
        self.place = str(folder / "checkpoint")
        self.handled: list = []
        self.bad: set = set()
        self.task = task(self.handle, **{"name": "job", "key": "id", "batch_size": 7, **options})

    def handle(self, items):
        rows = items.to_pylist() if isinstance(items, pa.RecordBatch) else items
        self.handled += [row["id"] for row in rows]
        return [
            ItemFailure(row["id"], "no luck")
            if row["id"] in self.bad
            else {"id": row["id"], "v": row.get("etag")}
            for row in rows
        ]

    def run(self, items, on_version_change="error", **options):
        self.handled.clear()
        return self.task.with_options(**options).run(
            items,
            checkpoint=self.place,
            progress=False,
            on_version_change=on_version_change,
        )

    def rows(self) -> dict:
        """The rows by key, each of which is there once, and nothing is damaged."""
        store = open_store(self.place)
        assert verify(store).damages == []
        rows = self.run_result.table().to_pylist()
        assert len({row["id"] for row in rows}) == len(rows)
        assert len(list(self.run_result.completed_keys())) == len(read_checkpoint(store)[1].done)
        return {row["id"]: row["v"] for row in rows}

    @property
    def run_result(self):
        return self.task.with_options(changes=None).run([], checkpoint=self.place)


def test_ten_of_a_thousand_that_have_changed_are_done_again(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"))
    assert job.run(items_of(1000)).completed == 1000
    changed = {f"k{n}": "new" for n in range(5, 1000, 100)}
    run = job.run(items_of(1000, **changed))
    assert (run.total, run.completed, run.skipped, run.changed) == (1000, 10, 990, 10)
    assert sorted(job.handled) == list(range(5, 1000, 100))
    table = run.table(ordered=True)
    assert table["id"].to_pylist() == list(range(1000))
    assert table["v"].to_pylist().count("new") == 10
    assert run.dataset().to_table().num_rows == 1000
    run.publish(tmp_path / "published")
    rows = pads.dataset(tmp_path / "published").to_table().to_pylist()
    assert {row["id"] for row in rows if row["v"] == "new"} == set(range(5, 1000, 100))
    assert len(rows) == 1000
    again = job.run(items_of(1000, **changed))
    assert (again.completed, again.skipped, again.changed) == (0, 1000, 0)
    assert job.rows() == {n: changed.get(f"k{n}", f"old {n}") for n in range(1000)}
    assert pickle.loads(pickle.dumps(run)).changed == 10


class Alike(Job):
    """A tuple and a string are keys here that read the same in a column of text."""

    KEYS = (("a", 1), '["a",1]', "x")

    def __init__(self, folder: Path, **options) -> None:
        super().__init__(folder, key=lambda row: self.KEYS[row["id"]], **options)

    def handle(self, items):
        return [{"v": row["etag"]} for row in items]


@pytest.mark.parametrize("first", [0, 1])
def test_two_keys_of_the_same_text_are_not_in_one_checkpoint(tmp_path: Path, first: int) -> None:
    job = Alike(tmp_path, changes=Changes("etag"), batch_size=1)
    one, other, third = (items_of(3)[n] for n in (first, 1 - first, 2))
    with pytest.raises(InvalidKey, match=r"become the same text in column 'key'") as caught:
        job.run([one, third, other])
    assert written(Alike.KEYS[0]) in str(caught.value)
    assert not job.handled  # a list is looked through before the first call
    job.run([one, third])
    with pytest.raises(InvalidKey, match="Make both keys tuples, or both strings"):
        job.run([other])  # neither in a later run
    for etag in ("new", "newer"):
        run = job.run([{**one, "etag": etag}, {**third, "etag": etag}])
        assert sorted(run.table()["v"].to_pylist()) == [etag, etag]
        assert run.table(ordered=True)["key"].to_pylist() == ['["a",1]', "x"]
    assert verify(open_store(job.place)).damages == []


def test_an_old_checkpoint_may_hold_two_keys_of_the_same_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such a one opens, and its other keys are handled again; that the two are not is said."""
    job = Alike(tmp_path, changes=Changes("etag"))
    with monkeypatch.context() as before:
        before.setattr(KeyScheme, "clash", lambda *_: None)
        job.run(items_of(3))
    assert job.run(items_of(3)).skipped == 3
    assert job.run(items_of(3, k2="new")).completed == 1
    run = job.run(items_of(3, k2="newer"))
    assert sorted(run.table(ordered=True)["v"].to_pylist()) == ["newer", "old 0", "old 1"]
    with pytest.raises(InvalidKey, match="could not be told apart"):
        job.run(items_of(3, k0="new", k2="newer"))
    assert job.run(items_of(3, k2="newer")).skipped == 3
    assert verify(open_store(job.place)).damages == []


def test_over_many_runs_each_key_has_its_newest_row(tmp_path: Path) -> None:
    """Also where the shards that are rewritten hold what was done again before."""
    job = Job(tmp_path, changes=Changes("etag"), batch_size=3, concurrency=1)
    changed: dict[str, str] = {}
    for run in range(12):
        changed |= {f"k{n}": f"run {run}" for n in range(run % 5, 40, run % 3 + 2)}
        job.run(items_of(30 + run, **changed))
        assert job.rows() == {n: changed.get(f"k{n}", f"old {n}") for n in range(30 + run)}


def test_the_record_takes_the_whole_shard_back_and_completes_it_again(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), batch_size=100)
    job.run(items_of(5))
    job.run(items_of(5, k2="new"))
    records = [
        [json.loads(line) for line in path.read_bytes().splitlines()]
        for path in sorted(Path(job.place).glob("journal/*"))
    ]
    first, second = (r for r in records if r[0]["kind"] == "commit")
    lines = second[1:-1]
    assert sorted(line["retracted"] for line in lines if "retracted" in line) == [0, 1, 2, 3, 4]
    prints = {line["key"]: line["fingerprint"] for line in first[1:-1]}
    assert prints[1] == f"{digest('old 1'):016x}"
    again = {line["key"]: line["fingerprint"] for line in lines if "key" in line}
    assert again == {**prints, 2: f"{digest('new'):016x}"}
    assert second[0]["info"]["retracted_shards"] == [s["path"] for s in first[0]["shards"]]
    assert second[0]["info"]["copied"] == 4
    assert [shard["keys"] for shard in second[0]["shards"]] == [4, 1]


def test_without_fingerprints_records_are_as_they_were(tmp_path: Path) -> None:
    job = Job(tmp_path)
    job.run(items_of(20))
    text = b"".join(path.read_bytes() for path in Path(job.place).glob("journal/*"))
    assert b'"fingerprint"' not in text  # the file of the handler is called so
    assert b"adopted" not in text
    assert text.count(b'{"key":') == 20


# What is to become of a changed item


def test_keep_leaves_the_old_row_until_it_is_to_be_redone(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"))
    job.run(items_of(20))
    run = job.run(items_of(20, k3="new"), changes=Changes("etag", then="keep"))
    assert (run.completed, run.skipped, run.changed) == (0, 20, 1)
    assert job.rows()[3] == "old 3"
    assert job.run(items_of(20, k3="new")).completed == 1
    assert job.rows()[3] == "new"


def test_error_names_the_item_before_its_batch_is_handled(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), concurrency=1)
    job.run(items_of(20))
    text = f"item 10 with key 10 has changed .* was {digest('old 10'):016x} and is "
    with pytest.raises(ChangedItem, match=text + f"{digest('new'):016x}"):
        job.run(items_of(30, k10="new"), changes=Changes("etag", then="error"))
    assert job.handled == []
    assert job.rows() == {n: f"old {n}" for n in range(20)}


def test_a_redo_that_fails_leaves_the_old_row_and_is_tried_again(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"))
    job.run(items_of(20))
    job.bad = {3}
    for attempt in (1, 2):
        with pytest.raises(JobFailed) as caught:
            job.run(items_of(20, k3="new"))
        result = caught.value.result
        assert (result.completed, result.skipped, result.failed) == (0, 19, 1)
        assert result.failures[0].attempts == attempt
        assert job.rows() == {n: f"old {n}" for n in range(20)}
    # A neighbour in its shard is done again: the failure is still known, and is no news.
    with pytest.raises(JobFailed):
        job.run(items_of(20, k3="new"))
    run = job.run(items_of(20, k4="new")[4:])
    assert (run.completed, run.failed, run.changed) == (1, 0, 1)
    assert Reader.at(job.place).state.failures[b"3"].attempts == 3
    job.bad = set()
    assert job.run(items_of(20, k3="new", k4="new")).completed == 1
    assert job.rows() == {n: "new" if n in (3, 4) else f"old {n}" for n in range(20)}
    assert Reader.at(job.place).status == "done"


@pytest.mark.parametrize(
    "options", [{}, {"changes": None}, {"changes": Changes("etag", then="keep")}]
)
def test_a_failure_is_over_once_its_item_is_not_to_be_redone(tmp_path: Path, options) -> None:
    """As it was again, or its changes are not looked at any more."""
    job = Job(tmp_path, changes=Changes("etag"))
    job.run(items_of(20))
    job.bad = {3}
    with pytest.raises(JobFailed):
        job.run(items_of(20, k3="new"))
    assert Reader.at(job.place).status == "failed"
    back = {"k3": "new"} if options.get("changes") else {}
    assert job.run(items_of(20, **back), **options).skipped == 20
    assert Reader.at(job.place).status == "done"
    assert job.run(items_of(20)).changed == 0


# Fingerprints come, go, and are taken in another way


def test_what_was_completed_without_a_fingerprint_is_kept_and_compared_from_then_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = Job(tmp_path)
    job.run(items_of(20))
    run = job.run(items_of(20), changes=Changes("etag"))
    assert (run.completed, run.skipped, run.changed) == (0, 20, 0)
    assert "20 items were completed without this kind of fingerprint" in caplog.text
    caplog.clear()
    run = job.run(items_of(20, k3="new"), changes=Changes("etag"))
    assert (run.completed, run.skipped, run.changed) == (1, 19, 1)
    assert "kind of fingerprint" not in caplog.text
    # The neighbours of item 3 have been completed again, with what they had adopted.
    assert job.run(items_of(20, k3="new", k4="newer"), changes=Changes("etag")).changed == 1
    assert job.rows() == {n: {3: "new", 4: "newer"}.get(n, f"old {n}") for n in range(20)}


def test_some_have_a_fingerprint_and_some_have_none(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), batch_size=100)
    job.run(items_of(5))
    job.run(items_of(10), changes=None)
    # Item 2 has changed in a run that sees only it, so that nothing else is adopted.
    assert job.run(items_of(10, k2="new")[2:3]).changed == 1
    assert job.run(items_of(10, k2="new", k1="new")).changed == 1
    assert job.run(items_of(10, k2="new", k1="new", k8="new")).changed == 1
    assert job.rows() == {n: "new" if n in (1, 2, 8) else f"old {n}" for n in range(10)}


def test_without_a_fingerprint_nothing_is_looked_at(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"))
    job.run(items_of(20))
    assert job.run(items_of(20, k3="new"), changes=None).skipped == 20
    assert job.run(items_of(20, k3="new")).changed == 1


def test_another_kind_of_fingerprint_is_refused_and_nothing_is_redone(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"))
    job.run(items_of(20))
    journal = sorted(Path(job.place).glob("journal/*"))
    with pytest.raises(CheckpointMismatch, match="another kind of fingerprints") as caught:
        job.run(items_of(20), changes=Changes("content"))
    assert '{"field": "etag"}' in str(caught.value)
    assert sorted(Path(job.place).glob("journal/*")) == journal
    run = job.run(items_of(20), changes=Changes("content"), on_version_change="reuse")
    assert (run.skipped, run.changed) == (20, 0)
    run = job.run(items_of(20, k3="new"), changes=Changes("content"))
    assert (run.completed, run.changed) == (1, 1)
    assert (
        job.run(items_of(20), changes=Changes("etag"), on_version_change="restart").completed == 20
    )


def test_fingerprints_of_another_kind_are_forgotten_in_copies_too(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), batch_size=100)
    job.run(items_of(6))
    job.run(items_of(3), changes=Changes("content"), on_version_change="reuse")  # three of them
    assert job.run(items_of(6, k0="new")[:1], changes=Changes("content")).changed == 1
    run = job.run(items_of(6, k0="new"), changes=Changes("content"))
    assert (run.completed, run.changed) == (0, 0)
    assert job.run(items_of(6, k0="new", k5="new"), changes=Changes("content")).changed == 1


# All kinds of results, keys and items


def test_many_rows_are_replaced_by_other_many(tmp_path: Path) -> None:
    @task(name="job", key="id", results="many", changes=Changes("n"), batch_size=3)
    def repeat(items):
        return [{"id": i["id"], "at": at} for i in items for at in range(i["n"])]

    counts = {0: 2, 1: 0, 2: 3, 3: 0, 4: 1}

    def run():
        items = [{"id": key, "n": n} for key, n in counts.items()]
        return repeat.run(items, checkpoint=tmp_path / "c")

    run()
    for change in ({0: 0, 1: 2}, {2: 0}, {4: 0}, {3: 1, 0: 5}, {}):
        counts |= change
        result = run()
        assert (result.completed, result.changed) == (len(change), len(change))
        found = result.table().to_pylist()
        wanted = [{"id": key, "at": at} for key, n in counts.items() for at in range(n)]
        assert sorted(map(str, found)) == sorted(map(str, wanted))
        assert verify(open_store(result.checkpoint)).damages == []
        assert sorted(result.completed_keys()) == [0, 1, 2, 3, 4]


def test_without_results_a_changed_item_is_handled_again(tmp_path: Path) -> None:
    sent = []

    @task(name="job", key="id", results="none", changes=Changes("etag"))
    def send(items):
        sent.extend(item["id"] for item in items)

    for items in (items_of(20), items_of(20, k3="new"), items_of(20, k3="new")):
        run = send.run(items, checkpoint=tmp_path / "c")
    assert sent == [*range(20), 3]
    assert (run.skipped, run.changed) == (20, 0)
    assert verify(open_store(run.checkpoint)).items == 20


@pytest.mark.parametrize(
    "key",
    [("a", "b"), ("a",), lambda i: (i["a"], i["b"]), lambda i: f"{i['a']} {i['b']}"],
    ids=["two fields", "a tuple of one", "a callable's tuple", "a callable"],
)
def test_keys_of_all_kinds(tmp_path: Path, key) -> None:
    @task(name="job", key=key, changes=Changes("etag"), batch_size=5)
    def work(items):
        return [{"v": item["etag"]} for item in items]

    items = [{"a": f"ü\n{n}", "b": n, "etag": "old"} for n in range(12)]
    work.run(items, checkpoint=tmp_path / "c")
    items[3]["etag"] = items[11]["etag"] = "new"
    run = work.run(items, checkpoint=tmp_path / "c")
    assert (run.completed, run.changed) == (2, 2)
    found = run.table(ordered=True)["v"].to_pylist()
    assert found == ["new" if n in (3, 11) else "old" for n in range(12)]
    assert verify(open_store(run.checkpoint)).damages == []


@pytest.mark.parametrize("spec", ["etag", "content", lambda item: item["etag"]])
@pytest.mark.parametrize("form", ["list", "generator", "table", "reader", "batch"])
def test_items_of_all_forms_have_the_same_fingerprints(tmp_path: Path, form: str, spec) -> None:
    """What was completed from dicts is not redone from Arrow, nor the other way round."""
    forms = {
        "list": lambda items: items,
        "generator": iter,
        "table": pa.Table.from_pylist,
        "reader": lambda items: pa.Table.from_pylist(items).to_reader(max_chunksize=4),
        "batch": pa.RecordBatch.from_pylist,
    }
    job = Job(tmp_path, changes=Changes(spec))
    job.run(items_of(20))
    run = job.run(forms[form](items_of(20, k3="new", k17="new")))
    assert (run.completed, run.skipped, run.changed) == (2, 18, 2)
    assert sorted(job.handled) == [3, 17]
    assert job.run(items_of(20, k3="new", k17="new")).changed == 0


def test_async_items_to_a_coroutine_are_compared_too(tmp_path: Path) -> None:
    async def handle(items):
        return [{"id": item["id"], "v": item["etag"]} for item in items]

    async def give(items):
        for item in items:
            yield item

    job = task(handle, key="id", changes=Changes("etag"))
    for items, changed in ((items_of(20), 0), (items_of(20, k3="new"), 1)):
        run = asyncio.run(job.arun(give(items), checkpoint=tmp_path / "c"))
        assert run.changed == changed
    assert run.completed == 1
    assert run.table(ordered=True)["v"].to_pylist()[3] == "new"


def test_an_interrupted_run_goes_on_with_the_changed_items_that_are_left(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), concurrency=1)
    job.run(items_of(100))
    changed = {f"k{n}": "new" for n in range(100)}

    def until_there_is_no_more():
        yield from items_of(50, **changed)
        raise OSError("the source has gone")

    with pytest.raises(OSError, match="the source has gone"):
        job.run(until_there_is_no_more())
    first = set(job.handled)
    assert 0 < len(first) <= 50
    assert job.run(items_of(100, **changed)).changed == 100 - len(first)
    assert not first & set(job.handled)
    assert job.rows() == dict.fromkeys(range(100), "new")


def test_the_fingerprint_of_a_key_that_comes_twice_is_that_of_the_first(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), on_duplicate="skip")
    job.run(items_of(5))
    run = job.run([*items_of(5, k3="new"), *items_of(5)])
    assert (run.completed, run.duplicates, run.changed) == (1, 5, 1)
    assert job.rows()[3] == "new"


@pytest.mark.parametrize("snapshot", [False, True])
def test_an_item_that_changes_while_its_result_is_parked_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: bool
) -> None:
    if snapshot:
        for name in ("_RECORDS", "_FEW_RECORDS"):
            monkeypatch.setattr(snapshots, name, 1)
    job = Job(tmp_path, changes=Changes("etag"))
    job.run([{"id": n, "etag": n} for n in range(5)])
    items = [{"id": n, "etag": f"text {n}" if n > 4 else n} for n in range(8)]
    with pytest.raises(JobFailed):
        job.run(items)
    items[6]["etag"] = "changed"
    run = job.run(items, json_columns=["v"])  # which takes the parked results over first
    assert (run.completed, run.changed, job.handled) == (1, 1, [6])
    assert (job.rows()[5], job.rows()[6]) == ('"text 5"', '"changed"')


def test_a_parked_result_has_no_fingerprint_of_another_kind(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"))
    job.run([{"id": n, "etag": n} for n in range(5)])
    items = [{"id": n, "etag": f"text {n}" if n > 4 else n} for n in range(8)]
    with pytest.raises(JobFailed):
        job.run(items)
    other = {"changes": Changes(lambda item: len(str(item))), "on_version_change": "reuse"}
    job.run(items, json_columns=["v"], **other)
    assert job.handled == []
    assert len(job.rows()) == 8


# Damage


def test_a_damaged_shard_costs_its_own_keys_alone(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), batch_size=100)
    job.run(items_of(10))
    job.run(items_of(20))
    job.run(items_of(20, k3="new"))
    _, state = read_checkpoint(store := open_store(job.place))
    assert [shard.keys for shard in state.shards.values()] == [10, 9, 1]
    for path in list(state.shards)[1:]:
        (Path(job.place) / path).write_bytes(b"")
    assert {damage.items for damage in verify(store).damages} == {9, 1}
    repair(store)
    assert verify(store).damages == []
    assert job.run(items_of(20, k3="new")).completed == 10
    assert sorted(job.handled) == list(range(10))
    assert job.rows() == {n: "new" if n == 3 else f"old {n}" for n in range(20)}


def test_old_rows_that_are_damaged_stop_the_run_with_the_way_out(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"), batch_size=100)
    job.run(items_of(10))
    _, state = read_checkpoint(open_store(job.place))
    (path,) = state.shards
    data = bytearray((Path(job.place) / path).read_bytes())
    data[40] ^= 1
    (Path(job.place) / path).write_bytes(data)
    with pytest.raises(CheckpointDamaged, match=f"{path}: its checksum .*resumable repair"):
        job.run(items_of(10, k3="new"))
    repair(open_store(job.place))
    assert job.run(items_of(10, k3="new")).completed == 10
    assert job.rows() == {n: "new" if n == 3 else f"old {n}" for n in range(10)}


def commit_of(checkpoint: DirectoryCheckpoint, etags: dict[int, str]) -> Commit:
    """Commit one batch of these items, as a driver does."""
    found = [{"id": n, "v": etag} for n, etag in etags.items()]
    lines = [keys.canonical(n) for n in etags]
    table = pa.Table.from_pylist(found)
    taken = [digest(etag) for etag in etags.values()]
    batch = Batch(0, list(etags), keys.join(lines), found, fingerprints=taken)
    outcome = Done(batch, batch.lines, len(batch), table, schema=table.schema)
    unit = checkpoint.begin()
    unit.add(outcome)
    name = record_name(unit.commit().number)
    return decode(checkpoint.store.read(name), name)


def opened(folder: Path, *, takeover: bool = False) -> DirectoryCheckpoint:
    return DirectoryCheckpoint.open(
        open_store(folder),
        Manifest("job", "1", {"field": "id"}, "one"),
        form.Job("job", "1", "one", Planning("id", changes=Changes("etag"))),
        form.Opening(takeover=takeover),
    )


def lose(folder: Path, number: int) -> None:
    (folder / record_name(number)).write_bytes(b"")


def rows_in(folder: Path) -> dict[int, str]:
    store = open_store(folder)
    assert verify(store).damages == []
    _, state = read_checkpoint(store)
    rows = DirectoryReader(store).read(all_rows).to_pylist()
    assert len(rows) == len({row["id"] for row in rows}) == len(state.done)
    return {row["id"]: row["v"] for row in rows}


def test_a_driver_that_was_overtaken_is_fenced_also_where_the_old_rows_are_swept(
    tmp_path: Path,
) -> None:
    first = opened(tmp_path)
    commit_of(first, {0: "a", 1: "a", 2: "a"})
    first.close()
    zombie = opened(tmp_path)
    second = opened(tmp_path, takeover=True)
    commit_of(second, {0: "b"})
    second.close()
    opened(tmp_path).close()  # sweeps
    with pytest.raises(Fenced):
        commit_of(zombie, {0: "c"})
    zombie.close()
    assert rows_in(tmp_path) == {0: "b", 1: "a", 2: "a"}


@pytest.mark.parametrize("swept", [False, True])
def test_a_lost_record_that_had_superseded_others_costs_what_it_held(
    tmp_path: Path, swept: bool
) -> None:
    """What it had completed again is as it was before, or is missing; never there twice."""
    checkpoint = opened(tmp_path)
    first = commit_of(checkpoint, dict.fromkeys(range(4), "a"))
    checkpoint.close()
    checkpoint = opened(tmp_path)
    lost = commit_of(checkpoint, {0: "b"})  # with copies of 1, 2 and 3
    commit_of(checkpoint, {1: "b"})  # with copies of 2 and 3
    checkpoint.close()
    if swept:
        opened(tmp_path).close()
        assert not (tmp_path / first.shards[0].path).exists()
    lose(tmp_path, lost.number)
    damaged = {damage.file for damage in verify(open_store(tmp_path)).damages}
    assert damaged == {record_name(lost.number), first.shards[0].path}
    repair(open_store(tmp_path))
    assert rows_in(tmp_path) == {1: "b", 2: "a", 3: "a"}


def test_a_reader_beside_a_run_takes_no_newer_record_for_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a record was lost, shards are looked at beside the records that name them."""
    checkpoint = opened(tmp_path)
    commit_of(checkpoint, dict.fromkeys(range(4), "a"))
    checkpoint.close()
    checkpoint = opened(tmp_path)
    lost = commit_of(checkpoint, {0: "b"})
    commit_of(checkpoint, {1: "b"})
    checkpoint.close()
    opened(tmp_path).close()
    lose(tmp_path, lost.number)
    repair(open_store(tmp_path))
    check = layout.check

    def meanwhile(*given: Any, **options: Any) -> None:
        monkeypatch.undo()
        running = opened(tmp_path)
        commit_of(running, {2: "b"})
        running.close()
        check(*given, **options)

    monkeypatch.setattr(layout, "check", meanwhile)
    _, state = read_checkpoint(open_store(tmp_path))
    assert state.gap
    assert rows_in(tmp_path) == {1: "b", 2: "b", 3: "a"}


def test_a_repair_that_was_cut_short_leaves_no_row_twice(tmp_path: Path, monkeypatch) -> None:
    checkpoint = opened(tmp_path)
    commit_of(checkpoint, dict.fromkeys(range(4), "a"))
    checkpoint.close()
    checkpoint = opened(tmp_path)
    lost = commit_of(checkpoint, {0: "b"})
    commit_of(checkpoint, {1: "b"})
    checkpoint.close()
    lose(tmp_path, lost.number)
    append = Journal.append

    def fence_only(self: Journal, commit: Commit) -> Commit:
        patched.setattr(Journal, "append", lambda *_: 1 / 0)
        return append(self, commit)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "append", fence_only)
        with pytest.raises(ZeroDivisionError):
            repair(open_store(tmp_path))
    for look in (opened, lambda folder: read_checkpoint(open_store(folder))):
        with pytest.raises(CheckpointDamaged, match="a lost record had taken back"):
            look(tmp_path)
    repair(open_store(tmp_path))
    assert rows_in(tmp_path) == {1: "b", 2: "a", 3: "a"}


def test_a_reader_whose_rows_are_done_anew_and_swept_begins_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, changes=Changes("etag"), batch_size=100)
    run = job.run(items_of(10))
    read = shards.read_all

    def slow(store, wanted):
        monkeypatch.setattr(shards, "read_all", read)
        job.run(items_of(10, k3="new"))
        job.run(items_of(10, k3="new"))
        return read(store, wanted)

    for look in (run.table, lambda: run.publish(tmp_path / "published")):
        monkeypatch.setattr(shards, "read_all", slow)
        look()
        assert shards.read_all is read
        job.run(items_of(10))
    assert run.table().num_rows == 10


# Fingerprints themselves


@dataclass
class Thing:
    id: int
    etag: str


def test_the_same_content_has_the_same_fingerprint_in_all_its_forms() -> None:
    content = Fingerprinter("content")
    wanted = content.of([{"id": 1, "etag": "a"}], 0)
    assert content.of([{"etag": "a", "id": 1}], 0) == wanted
    assert content.of([Thing(1, "a")], 0) == wanted
    assert content.of(pa.RecordBatch.from_pylist([{"id": 1, "etag": "a"}]), 0) == wanted
    assert content.of(["a"], 0) == Fingerprinter("etag").of([Thing(1, "a")], 0)
    values = {
        "d": date(2026, 11, 23),
        "t": datetime(2026, 11, 23, 1, 2, 3, 4, UTC),
        "n": Decimal("1.50"),
        "b": b"\x00\xff",
        "none": None,
        "list": [{"x": "ü", "y": [1.5, None]}],
    }
    assert content.of([values], 0) == content.of(pa.RecordBatch.from_pylist([values]), 0)


def test_a_model_of_pydantic_has_the_fingerprint_of_its_fields() -> None:
    model = pytest.importorskip("pydantic").create_model("Model", id=int, etag=str)
    content = Fingerprinter("content")
    assert content.of([model(id=1, etag="a")], 0) == content.of([{"id": 1, "etag": "a"}], 0)


def test_values_that_differ_have_fingerprints_that_differ() -> None:
    values = [
        None, "", "None", 0, "0", 0.5, True, "true", [], [0], {}, {"a": None}, b"a", "a", ["a"],
        date(2026, 1, 1), datetime(2026, 1, 1), "2026-01-01", Decimal(1), 1, {1, 2}, [1, 2],
        UUID(int=1), "\ud800", float("inf"), 2**70,
    ]  # fmt: skip
    assert len({digest(value) for value in values}) == len(values)


def test_none_is_a_value_and_no_field_is_an_error(tmp_path: Path) -> None:
    job = Job(tmp_path, changes=Changes("etag"))
    items = [{"id": n, "etag": None} for n in range(20)]
    job.run(items)
    assert job.run(items).skipped == 20
    items[3]["etag"] = "new"
    assert job.run(items).changed == 1
    for bad in ([*items_of(20), {"id": 20}], pa.table({"id": list(range(21))})):
        at = 20 if isinstance(bad, list) else 0
        with pytest.raises(InvalidItems, match=rf"item {at}: .* 'etag' \(found: .*Changes"):
            job.run(bad)


def test_what_has_no_fingerprint_is_told_with_its_position(tmp_path: Path) -> None:
    loop: list = []
    loop.append(loop)
    for value in (object(), loop, {1: 0, "a": 0}):
        items = [*items_of(10), {"id": 10, "etag": value}]
        for spec in ("etag", "content", lambda item: item["etag"]):
            job = Job(tmp_path / str(id(value)) / str(spec)[:9], changes=Changes(spec))
            with pytest.raises(InvalidItems, match="item 10: cannot compute a fingerprint of"):
                job.run(items)


@pytest.mark.parametrize("wrong", ["", 5, ("etag",), True])
def test_a_fingerprint_that_is_none_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match="is not a field name"):
        task(lambda items: items, name="job", key="id", changes=Changes(wrong))
    with pytest.raises(UsageError, match="then='never' is not one of"):
        task(lambda items: items, name="job", key="id", changes=Changes("etag", then="never"))
