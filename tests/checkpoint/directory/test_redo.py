"""Completed items that a person wants to be done again: missing at once, the others untouched."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

from resumable_tasks import (
    Changes,
    CheckpointHeld,
    Failing,
    JobFailed,
    ResumableTask,
    RunResult,
    UsageError,
    redo,
    resumable_task,
)
from resumable_tasks.checkpoint.directory import redo as redoing
from resumable_tasks.checkpoint.directory.compacting import compact
from resumable_tasks.checkpoint.directory.completed import completed_at
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.directory.where import Where
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import main
from resumable_tasks.testing import faults
from tests.checkpoint.directory.made import filled

ITEMS = [{"id": n, "text": f"t{n}"} for n in range(20)]


def cli(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)


def job(say: Any = "old", **options: Any) -> ResumableTask[Any]:
    def label(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": i["id"], "label": say, "even": i["id"] % 2 == 0} for i in items]

    return resumable_task(label, **{"key": "id", "batch_size": 6, **options})


def labels(run: RunResult) -> dict[int, str]:
    """The label of each item, each of which has one row."""
    table = run.table()
    assert table.num_rows == len(set(table["id"].to_pylist()))
    return dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))


@pytest.fixture
def place(tmp_path: Path) -> Path:
    job().run(ITEMS, checkpoint=tmp_path / "c")
    return tmp_path / "c"


CHOICES = [
    ({"keys": [3, 17]}, [3, 17]),
    ({"keys": []}, []),
    ({"where": "even"}, list(range(0, 20, 2))),
    ({"where": "id > 15 and label = 'old'"}, [16, 17, 18, 19]),
    ({"where": "label = 'none' -- a comment"}, []),
    ({"where": "even", "keys": [3, 4]}, [4]),
    ({"before": "2999-01-01"}, list(range(20))),
    ({"before": datetime.datetime(2020, 1, 1)}, []),
]


@pytest.mark.parametrize(("choice", "keys"), CHOICES, ids=str)
def test_the_chosen_items_are_done_again_and_no_others(
    place: Path, choice: dict[str, Any], keys: list[int]
) -> None:
    before = json.loads(cli("status", place, "--json").stdout)
    assert redo(place, **choice, dry_run=True) == keys
    assert json.loads(cli("status", place, "--json").stdout) == before
    assert redo(place, **choice) == keys
    left = job().run([], checkpoint=place)
    assert set(labels(left)) == {item["id"] for item in ITEMS} - set(keys)
    assert verify(open_store(str(place))).damages == []
    run = job("new").run(ITEMS, checkpoint=place)
    assert (run.completed, run.skipped) == (len(keys), 20 - len(keys))
    assert labels(run) == {n: "new" if n in keys else "old" for n in range(20)}


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({}, "choose what to redo"),
        ({"keys": [3, 99]}, "no item with key 99 is completed"),
        ({"keys": ["3"]}, 'no item with key "3" is completed'),
        ({"where": "lable = 'old'"}, "no such column: lable. Their columns are id, label, even"),
        ({"where": "1); DROP TABLE rows; --"}, "is not a valid condition"),
        ({"where": "id in (SELECT id FROM pragma_table_list)"}, "is not a valid condition"),
        ({"where": " "}, "where is empty"),
        ({"before": "yesterday"}, "is not a time"),
    ],
)
def test_what_chooses_nothing_is_refused(place: Path, choice: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError) as caught:
        redo(place, **choice)
    assert says in str(caught.value)
    assert job().run(ITEMS, checkpoint=place).skipped == 20


def test_a_dry_run_beside_what_merges_and_deletes_reads_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(tmp_path / "c", 100)
    left = 2  # the second time the merged files are deleted

    def meanwhile(*given: Any) -> Where:
        nonlocal left
        while left:
            compact(open_store(tmp_path / "c"))
            left -= 1
        return Where(*given)

    monkeypatch.setattr(redoing, "Where", meanwhile)
    assert redo(tmp_path / "c", where="id < 3", dry_run=True) == [0, 1, 2]


def test_the_command(place: Path) -> None:
    said = cli("redo", place, "--where", "even", "--dry-run").stdout
    assert "would handle these again: 10 items" in said
    done = cli("redo", place, "--key", "4", "--key", "7")
    assert (
        "2 of 20 completed items will be handled again\nnext: run the same command" in done.stdout
    )
    assert json.loads(cli("redo", place, "--where", "not even", "--json").stdout)["items"] == 9
    assert "no completed item matches" in cli("redo", place, "--where", "id = 4").stdout
    refused = cli("redo", place, "--key", "4")
    assert refused.exit_code == 2
    assert 'no item with key 4 or "4" is completed; nothing was changed' in refused.stderr
    assert f"`resumable keys {place}` lists" in refused.stderr
    assert cli("redo", place).exit_code == 2
    status = json.loads(cli("status", place, "--json").stdout)
    assert (status["status"], status["completed"]) == ("incomplete", 9)


def test_while_a_run_is_at_work_nothing_is_changed(place: Path) -> None:
    store = open_store(str(place))
    with_it = DirectoryCheckpoint.open(store, read_manifest(store))
    try:
        with pytest.raises(CheckpointHeld):
            redo(place, keys=[3])
    finally:
        with_it.close()
    assert job().run(ITEMS, checkpoint=place).skipped == 20


def test_a_run_that_sleeps_meanwhile_commits_nothing_any_more(place: Path) -> None:
    store = open_store(str(place))
    sleeper = DirectoryCheckpoint.open(store, read_manifest(store))
    sleeper.close()  # its lock has gone; it does not know
    redo(place, keys=[3])
    assert read_checkpoint(store)[1].epoch == sleeper.state.epoch + 1
    with pytest.raises(CheckpointHeld):
        sleeper.end("done", {})
    assert labels(job("new").run(ITEMS, checkpoint=place))[3] == "new"


@pytest.mark.parametrize("results", ["one", "many", "none"])
def test_items_of_every_form_of_results(tmp_path: Path, results: Any) -> None:
    def rows(items: list[dict[str, Any]]) -> Any:
        each = [{"id": i["id"], "n": n} for i in items for n in range(i["id"] % 3)]
        return {"one": [{"n": 1} for _ in items], "many": each, "none": None}[results]

    task = resumable_task(rows, key="id", results=results, batch_size=6)
    first = task.run(ITEMS, checkpoint=tmp_path / "c").table()
    assert redo(tmp_path / "c", keys=[3, 4, 5]) == [3, 4, 5]
    assert len(set(task.run([], checkpoint=tmp_path / "c").completed_keys())) == 17
    run = task.run(ITEMS, checkpoint=tmp_path / "c")
    assert run.completed == 3
    order = [(name, "ascending") for name in first.column_names]
    assert run.table().sort_by(order) == first.sort_by(order) if order else not run.table()
    if results == "none":
        with pytest.raises(UsageError, match="has no rows"):
            redo(tmp_path / "c", where="1")


def test_before_is_when_a_result_came_and_not_when_it_was_copied(place: Path) -> None:
    redo(place, keys=[0])  # which copies 1 to 5
    moment = datetime.datetime.now(datetime.UTC)
    job("new").run(ITEMS, checkpoint=place)
    redo(place, keys=[6])
    assert redo(place, before=moment, dry_run=True) == sorted({*range(1, 20)} - {6})
    times = {
        key: when for when, lines in completed_at(open_store(str(place))) for key in lines.split()
    }
    assert len({times[b"%d" % n] for n in (1, 5)}) == 1
    assert times[b"0"] > times[b"1"]


def test_fingerprints_of_the_others_stay(tmp_path: Path) -> None:
    task = job(changes=Changes("text"))
    task.run(ITEMS, checkpoint=tmp_path / "c")
    redo(tmp_path / "c", keys=[2])
    changed = [{**item, "text": "new"} if item["id"] in (1, 2) else item for item in ITEMS]
    run = task.run(changed, checkpoint=tmp_path / "c")
    assert (run.completed, run.changed) == (2, 1)


def test_a_quarantined_failure_of_the_item_is_forgotten(tmp_path: Path) -> None:
    def work(items: list[dict[str, Any]]) -> Any:
        if any(item["text"] == "bad" for item in items):
            raise ValueError("bad")
        return [{"n": 1} for _ in items]

    task = resumable_task(
        work, key="id", changes=Changes("text"), failing=Failing(max_attempts=1), batch_size=4
    )
    task.run(ITEMS, checkpoint=tmp_path / "c")
    with pytest.raises(JobFailed):
        task.run([{"id": 2, "text": "bad"}], checkpoint=tmp_path / "c")
    redo(tmp_path / "c", keys=[2])
    assert task.run(ITEMS, checkpoint=tmp_path / "c").completed == 1


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize(
    "point",
    ["shard.before_put", "shard.written", "store.created", "journal.created", "store.linked"],
)
def test_a_kill_anywhere_leaves_all_as_it_was_or_done(place: Path, point: str) -> None:
    program = (
        "from resumable_tasks import redo; from resumable_tasks.testing import faults; "
        f"faults.install_from_env(); redo({str(place)!r}, keys=[4])"
    )
    environment = {**os.environ, faults.VARIABLE: point}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, check=False)
    assert killed.returncode == -signal.SIGKILL
    run = job("new").run(ITEMS, checkpoint=place)
    assert labels(run) == {n: "new" if n == 4 and run.completed else "old" for n in range(20)}
    assert run.completed == (not point.startswith("shard"))


def test_values_are_compared_as_they_are() -> None:
    day = datetime.datetime(2026, 11, 23, 8, tzinfo=datetime.UTC)
    table = pa.table(
        {
            "text": ["5", None, "a'b"],
            "number": [5, 2**63, None],
            "price": [Decimal("1.50"), Decimal("20"), None],
            "at": [day, day + datetime.timedelta(days=1), None],
            "tags": [["a"], [], None],
            "rowid": [7, 8, 9],
        },
        schema=pa.schema(
            {
                "text": pa.string(),
                "number": pa.uint64(),
                "price": pa.decimal128(5, 2),
                "at": pa.timestamp("us", "Europe/Zurich"),
                "tags": pa.list_(pa.string()),
                "rowid": pa.int64(),
            }
        ),
    )
    expected = {
        "text = 5": [],
        "text = '5' and number = 5": [0],
        "number > 9e18": [1],
        "price > 10": [1],
        "\"at\" < '2026-11-23 09:00'": [0],
        "tags = '[]'": [1],
        "json_extract(tags, '$[0]') = 'a'": [0],
        "text is null": [1],
        "text = 'a''b'": [2],
        "rowid = 8": [1],
    }
    found = {text: Where(text, table.schema).fitting(table) for text in expected}
    assert found == expected
