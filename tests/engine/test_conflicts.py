"""Rows whose types do not fit those before them: found without another call of the handler."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Failing, JobFailed, resumable_task
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.urls import open_store

Rows = list[dict[str, Any]]


def first_of(place: Path, key: Any = "id") -> None:
    """A checkpoint in which `value` is an integer."""
    task = resumable_task(lambda items: [{**i, "value": 1} for i in items], name="job", key=key)
    task.run([{"id": n} for n in range(10)], checkpoint=place)


@pytest.mark.parametrize("results", ["one", "many"])
def test_the_rows_that_do_not_fit_are_parked_alone(tmp_path: Path, results: Any) -> None:
    place = tmp_path / "checkpoint"
    handled: Counter[int] = Counter()

    def job(items: Rows) -> Rows:
        handled.update(item["id"] for item in items)
        times = 2 if results == "many" else 1
        return [
            {"id": i["id"], "value": "text" if i["id"] in (17, 33) else None}
            for i in items
            for _ in range(times)
        ]

    resumable_task(
        lambda items: [{**i, "value": 1} for i in items], name="job", key="id", results=results
    ).run([{"id": n} for n in range(10)], checkpoint=place)
    task = resumable_task(job, key="id", batch_size=20, concurrency=1, results=results)
    with pytest.raises(JobFailed) as caught:
        task.run([{"id": n} for n in range(10, 60)], checkpoint=place)
    result = caught.value.result
    rows = [{"id": key, "value": "text"} for key in (17, 33)]
    times = 2 if results == "many" else 1
    assert sorted((each.key, each.error, each.rows) for each in result.parked_items) == [
        (row["id"], "ResultConflict", (row,) * times) for row in rows
    ]
    assert "int64" in result.parked_items[0].message
    assert "string" in result.parked_items[0].message
    assert (result.completed, result.failed, result.parked) == (48, 0, 2)
    assert (len(handled), set(handled.values())) == (50, {1})
    assert not verify(open_store(place)).damages
    table = result.table()
    found = Counter(table.column("id").to_pylist())
    assert set(found) == set(range(60)) - {17, 33}
    assert set(found.values()) <= {1, 2}
    # They are not handled again; nor is the run done as long as they are not in the table.
    with pytest.raises(JobFailed) as caught:
        task.run([{"id": n} for n in range(10, 60)], checkpoint=place)
    assert (len(handled), set(handled.values())) == (50, {1})
    result = caught.value.result
    assert (result.completed, result.skipped, result.failed, result.parked) == (0, 48, 0, 2)
    assert [each.rows for each in result.parked_items if each.key == 17] == [(rows[0],) * times]


@pytest.mark.parametrize("pause_after", [5, None])
def test_a_run_ends_where_nothing_of_it_fits(tmp_path: Path, pause_after: int | None) -> None:
    place, count = tmp_path / "checkpoint", 4_000 if pause_after else 600
    first_of(place)
    handled: Counter[int] = Counter()

    def job(items: Rows) -> Rows:
        handled.update(item["id"] for item in items)
        return [{"id": item["id"], "value": "text"} for item in items]

    task = resumable_task(
        job, key="id", batch_size=5, concurrency=1, failing=Failing(pause_after=pause_after)
    )
    with pytest.raises(JobFailed) as caught:
        task.run([{"id": n} for n in range(10, 10 + count)], checkpoint=place)
    assert set(handled.values()) == {1}
    assert caught.value.result.parked == len(handled)
    assert len(handled) < count if pause_after else len(handled) == count
    assert ("batches in a row could not be stored" in str(caught.value)) == bool(pause_after)


def test_keys_that_a_callable_made_are_found_as_well(tmp_path: Path) -> None:
    place = tmp_path / "checkpoint"

    def key(item: dict[str, Any]) -> tuple[str, int]:
        return "page", item["id"]

    def job(items: Rows) -> Rows:
        return [{"value": "text" if i["id"] == 17 else i.get("value")} for i in items]

    task = resumable_task(job, key=key, batch_size=20)
    task.run([{"id": n, "value": n} for n in range(10)], checkpoint=place)
    with pytest.raises(JobFailed) as caught:
        task.run([{"id": n} for n in range(10, 30)], checkpoint=place)
    assert [each.key for each in caught.value.result.parked_items] == [("page", 17)]
    assert caught.value.result.completed == 19


@pytest.mark.parametrize("results", ["one", "many"])
@pytest.mark.parametrize("first", [0, 25])
def test_a_few_rows_of_another_type_than_their_batch_fail_alone(
    tmp_path: Path, results: Any, first: int
) -> None:
    """Also where the odd one comes first: it does not give the column its type."""
    handled: Counter[int] = Counter()

    def job(items: Rows) -> Rows:
        handled.update(item["id"] for item in items)
        return [
            {"id": i["id"], "n": i["id"], "v": "n/a" if i["id"] % 50 == first else 1.5}
            for i in items
            for _ in range(2 if results == "many" else 1)
        ]

    task = resumable_task(job, key="id", results=results, tolerated_failures=20)
    run = task.run([{"id": n} for n in range(1_000)], checkpoint=tmp_path / "checkpoint")
    assert (run.completed, run.parked, run.failed, set(handled.values())) == (980, 20, 0, {1})
    assert {failure.error for failure in run.parked_items} == {"ResultConflict"}
    assert "'n/a' of type str here, but of type float in most rows" in run.parked_items[0].message
    table = run.table()
    assert table.num_rows == (980 if results == "one" else 1_960)
    assert not {n for n in table.column("n").to_pylist() if n % 50 == first}


def test_where_no_type_prevails_one_half_of_the_rows_is_kept_and_none_is_handled_again(
    tmp_path: Path,
) -> None:
    handled: Counter[int] = Counter()

    def job(items: Rows) -> Rows:
        handled.update(item["id"] for item in items)
        return [{**i, "v": "a" if i["id"] % 2 else 1} for i in items]

    task = resumable_task(job, key="id", batch_size=4, tolerated_failures=1.0)
    run = task.run([{"id": n} for n in range(8)], checkpoint=tmp_path / "checkpoint")
    assert (run.completed, run.parked, set(handled.values())) == (4, 4, {1})


@pytest.mark.parametrize("key", ["id", lambda item: ("page", item["id"])], ids=["field", "tuple"])
def test_rows_fit_the_checkpoint_or_do_not_whatever_most_of_their_batch_are(
    tmp_path: Path, key: Any
) -> None:
    """Else a batch of mostly text would take its numbers with it."""
    first_of(tmp_path / "c", key)
    values = {n: "text" if n % 10 < 6 else n for n in range(10, 50)}
    task = resumable_task(
        lambda items: [{"id": i["id"], "value": values[i["id"]]} for i in items],
        name="job",
        key=key,
        batch_size=10,
        tolerated_failures=1.0,
    )
    run = task.run([{"id": n} for n in values], checkpoint=tmp_path / "c")
    assert (run.completed, run.parked) == (16, 24)
    assert {"text"} == {each.rows[0]["value"] for each in run.parked_items if each.rows}
    task = task.with_options(json_columns=["value"])
    run = task.run([{"id": n} for n in values], checkpoint=tmp_path / "c")
    assert (run.skipped, run.completed, run.parked) == (40, 0, 0)
    assert not verify(open_store(str(tmp_path / "c"))).damages
