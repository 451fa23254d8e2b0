"""Rows of items that are no longer given can be left out."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from resumable_tasks import Budget, Interrupted, ResumableTask, UsageError, resumable_task

KEYS: list[Any] = ["id", ("shop", "id"), lambda item: (item["shop"], item["id"])]


def items(*ids: int) -> list[dict[str, Any]]:
    return [{"shop": "eu", "id": n} for n in ids]


def job(key: Any, **options: Any) -> ResumableTask[Any]:
    def work(given: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"n": item["id"]} for item in given]

    return resumable_task(work, key=key, batch_size=3, **options)


@pytest.mark.parametrize("key", KEYS, ids=["field", "fields", "callable"])
def test_items_that_are_not_given_any_more_are_left_out(tmp_path: Path, key: Any) -> None:
    job(key).run(items(*range(10)), checkpoint=tmp_path / "c")
    run = job(key).run(items(8, 20, 3), checkpoint=tmp_path / "c")
    assert run.table().num_rows == 11
    assert sorted(run.table(only_given=True)["n"].to_pylist()) == [3, 8, 20]
    assert run.table(ordered=True, only_given=True)["n"].to_pylist() == [8, 20, 3]
    for ordered in (False, True):
        published = run.publish(tmp_path / "out", only_given=True, ordered=ordered)
        assert published.rows == 3
        assert sorted(pq.read_table(tmp_path / "out")["n"].to_pylist()) == [3, 8, 20]
    assert run.publish(tmp_path / "out").rows == 11
    none = job(key).run([], checkpoint=tmp_path / "c")
    assert none.table(only_given=True).num_rows == 0
    assert none.table(only_given=True).schema == run.table().schema


def test_where_it_is_not_known_what_was_given_nothing_is_left_out(tmp_path: Path) -> None:
    run = job("id").run(items(1, 2), checkpoint=tmp_path / "c")
    elsewhere = pickle.loads(pickle.dumps(run))
    with pytest.raises(UsageError, match="in the process of the run"):
        elsewhere.table(only_given=True)

    with pytest.raises(Interrupted) as caught:
        job("id").run(items(*range(9)), checkpoint=tmp_path / "c", budget=Budget(items=3))
    result = caught.value.result  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="was stopped before it had read all items"):
        result.publish(tmp_path / "out", only_given=True)
    assert not (tmp_path / "out").exists()
