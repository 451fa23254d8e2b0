"""Columns keep their types over shards: Arrow's promotions, and conflicts before any commit."""

from __future__ import annotations

import datetime as dt
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import JobFailed, resumable_task
from resumable_tasks.runners.values.jsontype import JSON


def run(values: list[Any], place: Path, **options: Any) -> Any:
    """Item i's column ``v`` is ``values[i]``, a batch and a commit an item."""
    job = resumable_task(
        lambda rows: [{"id": i, **({} if values[i] is ... else {"v": values[i]})} for i in rows],
        name="job",
        key=lambda item: item,
        batch_size=1,
        concurrency=1,
        **options,
    )

    # ids double as keys by position
    def keyed(rows: list[Any]) -> list[Any]:
        return [{"id": i, **({} if values[i] is ... else {"v": values[i]})} for i in rows]

    job = resumable_task(keyed, name="job", batch_size=1, concurrency=1, **options)
    return job.run(range(len(values)), checkpoint=place)


UNIFIED: list[tuple[str, list[Any], pa.DataType]] = [
    ("null, int, float", [None, 1, 2.5], pa.float64()),
    ("float, int, null", [2.5, 1, None], pa.float64()),
    ("new later", [..., ..., "x"], pa.string()),
    ("gone later", ["x", ..., ...], pa.string()),
    ("null list, list", [[], [1, 2]], pa.list_(pa.int64())),
    ("structs of one form", [{"a": 1}, {"a": None}, None], pa.struct({"a": "int64"})),
    ("structs of two forms", [{"a": 1}, {"a": 2, "b": "x"}], JSON),
    ("structs whose fields disagree", [{"a": 5}, {"a": "5"}], JSON),
    ("an empty one", [{"a": 5}, {}, None], JSON),
    ("an empty one first", [{}, {"a": 5}, [1]], JSON),
    ("lists that disagree", [[1], ["a"], [[]]], JSON),
    ("text and no number", ["a", math.nan, None], pa.string()),
    ("no number and text", [math.nan, "a"], pa.string()),
    ("bool and null", [True, None, False], pa.bool_()),
    ("dates", [dt.date(2026, 11, 23), None], pa.date32()),
    ("only nulls", [None, None], pa.null()),
    ("exact floats", [2**53, 0.5], pa.float64()),
]


@pytest.mark.parametrize(("name", "values", "kind"), UNIFIED, ids=[name for name, *_ in UNIFIED])
def test_types_are_unified_over_shards(
    name: str, values: list[Any], kind: pa.DataType, place: Path
) -> None:
    result = run(values, place)
    table = result.table(ordered=True)
    assert table.schema.field("v").type == kind
    expected = [None if value in (..., math.nan) else value for value in values]
    assert table.column("v").to_pylist() == expected
    assert result.dataset().to_table().schema.equals(table.schema)
    assert result.dataset().count_rows() == len(values)


CONFLICTS: list[tuple[str, list[Any], str]] = [
    ("int then string", [1, "x"], "int64 in earlier rows but string"),
    ("bool then int", [True, 1], "bool in earlier rows but int64"),
    ("list then int", [[1], 1], "list"),
    ("a big integer then a float", [2**53 + 1, 0.5], "int64 in earlier rows but double"),
    ("a float then a big integer", [0.5, 2**53 + 1], "double in earlier rows but int64"),
]


@pytest.mark.parametrize(("name", "values", "says"), CONFLICTS, ids=[n for n, *_ in CONFLICTS])
def test_a_conflict_names_column_types_and_batch_and_commits_nothing_of_it(
    name: str, values: list[Any], says: str, place: Path
) -> None:
    with pytest.raises(
        JobFailed, match=f"ResultConflict: column 'v'.*{says}.* batch [0-9a-f]+"
    ) as e:
        run(values, place)
    result = e.value.result
    assert result is not None
    assert (result.completed, result.failed, result.parked) == (1, 0, 1)
    assert result.table().column("v").to_pylist() == [values[0]]


def test_a_conflict_within_one_group_of_batches_hits_only_its_batch(place: Path) -> None:
    def handler(rows: list[int]) -> list[dict[str, Any]]:
        return [{"v": "x" if 40 <= i < 50 else i} for i in rows]

    job = resumable_task(handler, name="job", batch_size=10)
    with pytest.raises(JobFailed, match="ResultConflict") as caught:
        job.run(range(1_000), checkpoint=place)
    assert caught.value.result is not None
    assert {f.key for f in caught.value.result.parked_items} in (
        {*range(40, 50)},
        {*range(1_000)} - {*range(40, 50)},  # the odd one came first
    )


def test_types_are_remembered_over_runs(place: Path) -> None:
    run([1], place)
    with pytest.raises(JobFailed, match="ResultConflict"):
        run([1, "x"], place)
    table = run([1, "x", 2.5], place, tolerated_failures=1).table()
    assert table.schema.field("v").type == pa.float64()
