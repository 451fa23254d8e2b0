"""Frames and tables that handlers return: stored as what they hold, or refused with words."""

from __future__ import annotations

import datetime as dt
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from resumable_tasks import ItemFailure, JobFailed, resumable_task
from resumable_tasks.errors import BadResult
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.match import Matched, match
from resumable_tasks.runners.values.jsontype import JSON

polars = pytest.importorskip("polars")


def matched(frame: Any, count: int = 2) -> Matched:
    many: list[Any] = list(range(count))
    batch = Batch(0, many, keys.join(map(keys.canonical, many)), [])
    return match(frame, batch, KeyScheme("id"), "one")


def column(frame: Any) -> tuple[pa.DataType, list[Any]]:
    found = matched(frame)
    assert not found.parked
    assert found.table is not None
    assert set(found.table.column_names) == {"id", "v"}
    return found.table.schema.field("v").type, found.table["v"].to_pylist()


POLARS: dict[str, tuple[Any, list[Any]]] = {
    "text": (polars.Series(["a", None]), ["a", None]),
    "category": (polars.Series(["a", "b"], dtype=polars.Categorical), ["a", "b"]),
    "enum": (polars.Series(["a", "b"], dtype=polars.Enum(["a", "b"])), ["a", "b"]),
    "categories in lists": (
        polars.Series([["a"], []], dtype=polars.List(polars.Categorical)),
        [["a"], []],
    ),
    "structs in lists": (polars.Series([[{"x": "a"}], None]), [[{"x": "a"}], None]),
    "arrays": (polars.Series([[1], [2]], dtype=polars.Array(polars.Int8, 1)), [[1], [2]]),
    "times": (polars.Series([dt.time(1), None]), [dt.time(1), None]),
}


@pytest.mark.parametrize("name", POLARS)
def test_polars(name: str) -> None:
    series, wanted = POLARS[name]
    frame = polars.DataFrame({"id": [0, 1]}).with_columns(v=series)
    assert column(frame)[1] == wanted
    assert column(frame.to_arrow())[1] == wanted


def test_a_column_alone_is_no_table() -> None:
    with pytest.raises(BadResult, match=r"(?s)Series .* it has no columns") as caught:
        matched(polars.Series("v", [1, 2]))
    assert caught.value.of_shape


def test_objects_of_polars_are_refused_with_a_way_out() -> None:
    objects = polars.Series([UUID(int=1), UUID(int=2)], dtype=polars.Object)
    with pytest.raises(BadResult, match=r"column 'v' holds Python objects .*cast it") as caught:
        matched(polars.DataFrame({"id": [0, 1], "v": objects}))
    assert caught.value.of_shape


def test_values_of_polars_for_which_arrow_has_no_type_cost_their_rows_alone() -> None:
    def of(*values: int) -> polars.DataFrame:
        return polars.DataFrame({"id": [0, 1], "v": polars.Series(values, dtype=polars.Int128)})

    assert column(of(1, 2)) == (pa.int64(), [1, 2])
    found = matched(of(1, 2**70))
    assert [key for key, *_ in found.parked] == [1]
    assert found.parked[0][1] == [{"id": 1, "v": 2**70}]


def test_pandas() -> None:
    pandas = pytest.importorskip("pandas")
    numpy = pytest.importorskip("numpy")

    def of(values: Any, **how: Any) -> list[Any]:
        return column(pandas.DataFrame({"id": [0, 1], "v": values}, **how))[1]

    assert of(["a", None]) == ["a", None]
    assert of(["a", None], index=["x", "y"]) == ["a", None]  # no index
    assert of(pandas.Categorical(["a", "b"])) == ["a", "b"]
    assert of([UUID(int=1), None]) == [UUID(int=1), None]
    assert of(pandas.arrays.SparseArray([0, 1])) == [0, 1]
    assert of(numpy.array([1.5, 2.5], dtype="float32")) == [1.5, 2.5]
    assert of(pandas.array([1, None], dtype="Int64")) == [1, None]
    assert of(pandas.Series([{"a": 1}, {}], dtype=object)) == [{"a": 1}, {}]
    berlin = pandas.date_range("2026-01-01", periods=2, tz="Europe/Berlin")
    assert of(berlin) == list(berlin)


def test_values_of_pandas_that_do_not_go_together_set_their_rows_apart() -> None:
    pandas = pytest.importorskip("pandas")
    naive = dt.datetime(2026, 1, 1)
    for odd in (naive.replace(tzinfo=dt.UTC), "text", 1j):
        values = pandas.Series([naive, naive, odd], dtype=object)
        found = matched(pandas.DataFrame({"id": [0, 1, 2], "v": values}), 3)
        assert [key for key, *_ in found.parked] == [2]
    found = matched(pandas.DataFrame({"id": [0, 1], "v": [1j, 2j]}))
    assert "complex" in str(found.parked[0][2])


def test_an_index_that_seems_to_be_meant_is_not_lost_in_silence() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"v": [1, 2]}, index=pandas.Index([0, 1], name="id"))
    with pytest.raises(BadResult, match="reset_index"):
        matched(frame)


def test_types_that_no_file_holds_become_rows() -> None:
    table = pa.table({"id": [0, 1], "v": pa.array([{}, {}], pa.struct([]))})
    assert column(table) == (JSON, [{}, {}])
    months = pa.array([pa.MonthDayNano([3, 0, 0])] * 2, pa.month_day_nano_interval())
    found = matched(pa.table({"id": [0, 1], "v": months}))
    assert found.table is not None or len(found.parked) == 2


def test_columns_without_a_name_of_their_own_are_refused() -> None:
    pandas = pytest.importorskip("pandas")
    with pytest.raises(BadResult, match="two columns are named 'v'"):
        matched(pa.table([[0, 1], [1, 2], [3, 4]], names=["id", "v", "v"]))
    with pytest.raises(BadResult, match="names must be strings"):
        matched(pandas.DataFrame({"id": [0, 1], 7: [1, 2]}))


@pytest.mark.parametrize("keyed", [True, False])
@pytest.mark.parametrize("how", ["list", "generator"])
def test_a_failure_among_tables_is_of_its_item_alone(how: str, keyed: bool, tmp_path: Path) -> None:
    calls = []

    def each(items: list[dict[str, Any]]) -> Any:
        calls.append(len(items))
        for item in items:
            n = item["id"]
            row = {"v": [n], "cost": [0.5]} | ({"id": [n]} if keyed else {})
            yield ItemFailure(n, "no") if n % 3 == 2 else polars.DataFrame(row)

    job = each if how == "generator" else lambda items: list(each(items))
    task = resumable_task(job, name="job", key="id", batch_size=6, cost="cost")
    with pytest.raises(JobFailed) as error:
        task.run([{"id": n} for n in range(12)], checkpoint=tmp_path / "c")
    run = error.value.result
    assert (calls, run.completed, run.cost) == ([6, 6], 8, 4.0)
    assert {failure.key for failure in run.failures} == {2, 5, 8, 11}
    rows = run.table(ordered=True).select(["id", "v"]).to_pylist()
    assert rows == [{"id": n, "v": n} for n in range(12) if n % 3 != 2]


def test_tables_in_a_list_are_one_behind_the_other() -> None:
    first, second = pa.table({"id": [0], "v": [1]}), pa.record_batch({"id": [1], "v": [2]})
    assert column([first, second]) == (pa.int64(), [1, 2])
    assert column([first, polars.DataFrame({"id": [1], "v": [None]})])[1] == [1, None]
    assert column([first, second.to_pandas()])[1] == [1, 2]
    assert column([first, pa.table({"id": [1], "v": [2.5]})]) == (pa.float64(), [1, 2.5])
    assert column([first, pa.table({"id": [1]})])[1] == [1, None]
    found = matched([first, pa.table({"id": [1], "v": ["text"]})])
    assert [key for key, *_ in found.parked] == [1]
    with pytest.raises(BadResult, match="a list that contains Table") as caught:
        matched([first, {"id": 1, "v": 2}])
    assert caught.value.of_shape
