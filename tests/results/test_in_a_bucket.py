"""What a run gives and keeps, in a bucket as in a directory."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from resumable_tasks import Budget, BudgetUsedUp, Changes, JobFailed, redo, resumable_task
from tests.conftest import Bucket

pytest.importorskip("obstore")


def test_rows_are_read_published_and_redone(bucket: Bucket, tmp_path: Path) -> None:
    calls: list[int] = []

    @resumable_task(key="id", batch_size=10, changes=Changes(by="n"))
    def double(items: list[dict[str, int]]) -> list[dict[str, int]]:
        calls.extend(item["id"] for item in items)
        return [{"id": item["id"], "value": item["n"] * 2} for item in items]

    items = [{"id": n, "n": n} for n in range(40)]
    run = double.run(items, checkpoint=bucket.url, partition=date(2026, 11, 28))
    assert run.checkpoint == f"{bucket.url}/2026-11-28"
    assert {name.partition("/")[0] for name in bucket.stored()} == {"2026-11-28"}
    assert sorted(run.table()["value"].to_pylist()) == [n * 2 for n in range(40)]
    assert run.dataset().count_rows() == 40
    run.publish(str(tmp_path / "published"))
    assert pq.read_table(tmp_path / "published").num_rows == 40

    items[3]["n"] = 100
    calls.clear()
    changed = double.run(items, checkpoint=run.checkpoint)
    assert (changed.changed, calls) == (1, [3])
    assert redo(run.checkpoint, keys=[5]) == [5]
    again = double.run(items, checkpoint=run.checkpoint)
    assert (again.completed, calls) == (1, [3, 5])
    assert sorted(again.dataset().to_table()["value"].to_pylist()) == sorted(
        n * 2 if n != 3 else 200 for n in range(40)
    )


def test_what_does_not_fit_is_parked_and_taken_over_without_a_call(bucket: Bucket) -> None:
    calls: list[int] = []

    @resumable_task(key="id", batch_size=5, concurrency=1)
    def ask(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.extend(item["id"] for item in items)
        return [{**item, "limit": "five" if item["id"] > 4 else 5} for item in items]

    items = [{"id": n} for n in range(10)]
    with pytest.raises(JobFailed) as caught:
        ask.run(items, checkpoint=bucket.url)
    assert caught.value.result.parked == 5
    run = ask.with_options(json_columns=["limit"]).run(items, checkpoint=bucket.url)
    assert (run.skipped, run.parked, sorted(calls)) == (10, 0, list(range(10)))
    assert run.dataset().to_table().num_rows == run.table().num_rows == 10


def test_a_budget_of_all_runs_is_remembered(bucket: Bucket) -> None:
    @resumable_task(key="id", batch_size=5, concurrency=1, cost=lambda outcome: 1.0)
    def paid(items: list[dict[str, int]]) -> list[dict[str, int]]:
        return items

    items = [{"id": n} for n in range(100)]
    for done in (15, 0):
        with pytest.raises(BudgetUsedUp) as caught:
            paid.run(items, checkpoint=bucket.url, budget=Budget(total=3))
        assert caught.value.result is not None
        assert caught.value.result.completed == done
