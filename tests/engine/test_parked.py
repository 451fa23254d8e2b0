"""Results that do not fit the table: kept, not paid for again, and taken over once they fit."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import CheckpointMismatch, JobFailed, ResumableTask, resumable_task
from resumable_tasks.checkpoint.directory.reader import Reader as DirectoryReader
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import main

Rows = list[dict[str, Any]]
ITEMS = [{"id": n} for n in range(100)]


class Job:
    """Answers that have an integer in every other batch, and text in those between."""

    def __init__(self, **options: Any) -> None:
        self.handled: Counter[int] = Counter()
        self.task: ResumableTask[Any] = resumable_task(
            self._ask, name="ask", key="id", batch_size=10, concurrency=1, **options
        )

    def _ask(self, items: Rows) -> Rows:
        self.handled.update(item["id"] for item in items)
        return [
            {**item, "limit": "five" if item["id"] // 10 % 2 else 5, "n": item["id"]}
            for item in items
        ]

    def run(self, place: Path) -> Any:
        try:
            return self.task.run(ITEMS, checkpoint=place)
        except JobFailed as error:
            return error.result


def parked(place: Path) -> int:
    """A first run, which pays for every item once and parks some; how many."""
    job = Job()
    run = job.run(place)
    assert (run.completed + run.parked, run.failed, set(job.handled.values())) == (100, 0, {1})
    assert run.parked >= 50
    return run.parked


def test_they_are_not_handled_again_and_the_run_is_not_done(tmp_path: Path) -> None:
    count = parked(tmp_path / "c")
    job = Job()
    with pytest.raises(JobFailed, match="are parked: their results are kept"):
        job.task.run(ITEMS, checkpoint=tmp_path / "c")
    run = job.run(tmp_path / "c")
    assert not job.handled
    assert (run.skipped, run.parked, run.failed) == (100 - count, count, 0)
    assert {"id", "limit", "n"} == set(run.parked_items[0].rows[0])


def test_a_json_column_takes_all_of_them_over(tmp_path: Path) -> None:
    parked(tmp_path / "c")
    job = Job(json_columns=["limit"])
    run = job.run(tmp_path / "c")
    assert not job.handled
    assert (run.skipped, run.parked, run.failed) == (100, 0, 0)
    found = {row["id"]: row["limit"] for row in run.table().to_pylist()}
    assert found == {n: '"five"' if n // 10 % 2 else "5" for n in range(100)}
    assert run.dataset().to_table().num_rows == 100
    assert not verify(open_store(tmp_path / "c")).damages
    # Once is enough: the checkpoint knows that the column is JSON.
    assert Job().run(tmp_path / "c").skipped == 100


def test_rows_of_before_take_a_declared_type_where_they_stay_what_they_are(tmp_path: Path) -> None:
    import pyarrow as pa

    count = parked(tmp_path / "c")
    run = Job(schema=pa.schema([("n", pa.float64())])).run(tmp_path / "c")
    assert (run.skipped, run.parked) == (100 - count, count)
    assert run.table().schema.field("n").type == pa.float64()
    assert not verify(open_store(tmp_path / "c")).damages


def test_the_command_takes_over_what_a_converter_makes_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = parked(tmp_path / "c")
    (tmp_path / "conversions.py").write_text(
        "def number(row):\n"
        "    if row['id'] == 11: raise ValueError('no number')\n"
        "    return row | {'limit': {'five': 5}[row['limit']]}\n"
    )
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(main, ["accept", "c", "--convert", "conversions:number", "--json"])
    document = json.loads(answer.stdout)
    assert (answer.exit_code, document["accepted"], document["parked"]) == (1, count - 1, 1)
    status = json.loads(CliRunner().invoke(main, ["status", "c", "--json"]).stdout)
    found = [status[name] for name in ("status", "completed", "failed", "parked", "exit_code")]
    assert found == ["failed", 99, 0, 1, 1]
    answer = CliRunner().invoke(main, ["accept", "c", "--json-column", "limit"])
    assert (answer.exit_code, answer.stdout.splitlines()[0]) == (
        0,
        "1 item accepted, 0 items still parked",
    )
    status = json.loads(CliRunner().invoke(main, ["status", "c", "--json"]).stdout)
    assert [status[name] for name in ("status", "completed", "parked")] == ["done", 100, 0]
    job = Job()
    run = job.run(tmp_path / "c")
    assert (run.skipped, job.handled) == (100, Counter())


def test_a_run_that_ended_before_its_items_is_not_done_once_all_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of some batches in a row fitted, so it has handled a part of its items."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "euros.py").write_text("def fit(row): return row | {'price': 5.0}\n")
    schema = {"id": int, "price": float}
    task = resumable_task(
        lambda items: [{**item, "price": "5 EUR"} for item in items],
        name="job",
        key="id",
        batch_size=2,
        schema=type("Row", (), {"__annotations__": schema}),
    )
    with pytest.raises(
        JobFailed, match=r"`resumable accept --convert` .*`resumable sql accept --convert`"
    ):
        task.run(ITEMS, checkpoint="c")
    status = json.loads(CliRunner().invoke(main, ["status", "c", "--json"]).stdout)
    assert "--convert MODULE:FUNCTION`" in status["next"]
    answer = CliRunner().invoke(main, ["accept", "c", "--convert", "euros:fit"])
    assert answer.exit_code == 0
    assert (
        "next: make the handler return such rows, and run the same command again" in answer.stdout
    )
    status = json.loads(CliRunner().invoke(main, ["status", "c", "--json"]).stdout)
    assert 0 < status["completed"] < 100
    assert (status["status"], status["exit_code"], status["parked"]) == ("interrupted", 75, 0)


def test_a_parked_item_is_handled_again_if_it_is_to_be_redone(tmp_path: Path) -> None:
    count = parked(tmp_path / "c")
    answer = CliRunner().invoke(main, ["redo", str(tmp_path / "c"), "--key", "11"])
    many = f"1 of {100 - count} completed items and {count} parked ones"
    assert f"{many} will be handled again" in answer.stdout
    job = Job()
    run = job.run(tmp_path / "c")
    assert (job.handled, run.parked) == (Counter([11]), count)


def test_a_misspelt_column_is_told(tmp_path: Path) -> None:
    count = parked(tmp_path / "c")
    place = str(tmp_path / "c")
    answer = CliRunner().invoke(main, ["accept", place, "--json-column", "limits"])
    assert (answer.exit_code, "--json-column limits: no row has such" in answer.output) == (2, True)
    assert "Did you mean limit?" in answer.output
    assert len(DirectoryReader.at(place).state.parked) == count


def test_names_that_cannot_be_imported_change_nothing(tmp_path: Path) -> None:
    count = parked(tmp_path / "c")
    place = str(tmp_path / "c")
    for name in ("nothing", "no.such:module"):
        assert CliRunner().invoke(main, ["accept", place, "--convert", name]).exit_code == 2
    assert len(DirectoryReader.at(place).state.parked) == count


def test_a_declared_schema_is_the_type_of_each_partition(tmp_path: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([("id", pa.int64()), ("v", pa.float64()), ("w", pa.string())])
    task = resumable_task(
        lambda items: [{"id": i["id"], "v": i["v"], "w": None} for i in items],
        name="job",
        key="id",
        schema=schema,
    )
    for partition, value in (("a", None), ("b", 1.5)):
        run = task.run([{"id": 1, "v": value}], checkpoint=tmp_path, partition=partition)
        assert run.table().schema.equals(schema)
    with pytest.raises(JobFailed) as caught:
        task.run([{"id": 2, "v": "text"}], checkpoint=tmp_path, partition="b")
    assert caught.value.result.parked == 1


@pytest.mark.parametrize("kind", ["string", "bool", "date32", "binary", "timestamp[us]"])
def test_rows_of_before_are_never_turned_into_something_else(tmp_path: Path, kind: str) -> None:
    """An integer could be written as text, and no one would know that it had been one."""
    import pyarrow as pa

    def job(items: Rows) -> Rows:
        return [{**item, "n": item["id"]} for item in items]

    task = resumable_task(job, key="id")
    task.run(ITEMS, checkpoint=tmp_path / "c")
    declared = task.with_options(schema=pa.schema([("n", pa.type_for_alias(kind))]))
    with pytest.raises(CheckpointMismatch, match="'n' of the results is int64 in the stored rows"):
        declared.run(ITEMS, checkpoint=tmp_path / "c")
    # Nothing was started, so there is no run that could have died.
    found = CliRunner().invoke(main, ["status", str(tmp_path / "c"), "--json"])
    assert (json.loads(found.output)["status"], json.loads(found.output)["runs"]) == ("done", 1)
    run = task.run(ITEMS, checkpoint=tmp_path / "c")
    assert run.table(ordered=True)["n"].to_pylist() == list(range(100))
