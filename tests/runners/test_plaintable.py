"""Rows that stay plain values until their commit: the same table comes of them, and none raises."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resumable_tasks import resumable_task
from resumable_tasks.runners.values.columns import Columns
from resumable_tasks.runners.values.plaintable import (
    PlainTable,
    arrow_table,
    arrow_tables,
    plain_table,
)
from resumable_tasks.runners.values.tables import separate

INTEGERS = (
    st.integers()
    | st.integers(2**63 - 2, 2**63 + 1)
    | st.integers(-(2**63) - 2, -(2**63) + 1)
    | st.booleans()  # which are integers, of another type
)
KINDS = [
    st.text(st.characters(), max_size=3),  # with halves of surrogate pairs
    INTEGERS,
    st.floats(),
    st.booleans(),
    st.binary(max_size=2),
]
COLUMNS = [*KINDS, st.one_of(*KINDS)]


@st.composite
def tables(draw: st.DrawFn) -> dict[str, list[Any]]:
    rows = draw(st.integers(1, 4))
    found = {}
    for name in draw(st.lists(st.sampled_from("abc"), min_size=1, max_size=2, unique=True)):
        values = draw(st.sampled_from(COLUMNS)) | st.none()
        found[name] = draw(st.lists(values, min_size=rows, max_size=rows))
    return found


def alone(columns: dict[str, list[Any]]) -> pa.Table:
    return pa.table({name: pa.array(values) for name, values in columns.items()})


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(tables(), min_size=1, max_size=5))
def test_what_is_taken_makes_the_table_that_arrow_makes(
    many: list[dict[str, list[Any]]],
) -> None:
    plain = [(each, plain_table(each, len(next(iter(each.values()))))) for each in many]
    taken = [(columns, table) for columns, table in plain if table is not None]
    for columns, table in taken:
        assert str(table.schema) == str(alone(columns).schema)
    found = list(arrow_tables(table for _, table in taken))
    wanted = [row for columns, _ in taken for row in alone(columns).to_pylist()]
    assert repr([row for table in found for row in table.to_pylist()]) == repr(wanted)


def test_tables_of_one_schema_become_one_and_the_order_stays() -> None:
    a = [plain_table({"id": [at], "v": ["x"]}, 1) for at in range(3)]
    b = plain_table({"id": [3], "v": [0.5]}, 1)
    other = pa.table({"id": [4]})
    c = plain_table({"id": [5], "v": ["y"]}, 1)
    found = list(arrow_tables([*a, b, other, c]))  # type: ignore[list-item]
    assert [table.column("id").to_pylist() for table in found] == [[0, 1, 2], [3], [4], [5]]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param([2**63], id="beyond int64"),
        pytest.param([-(2**63) - 1], id="below int64"),
        pytest.param(["\ud800"], id="half of a surrogate pair"),
        pytest.param([None], id="no type"),
        pytest.param([1, True], id="two types"),
        pytest.param([b"x"], id="another type"),
        pytest.param(["x" * 1_000_001], id="long text"),
        pytest.param([1] * 1_001, id="many rows"),
    ],
)
def test_what_may_not_fit_and_what_is_long_is_not_taken(values: list[Any]) -> None:
    assert plain_table({"v": values}, len(values)) is None


def test_a_handler_may_use_its_rows_again(tmp_path: Path) -> None:
    row: dict[str, Any] = {}
    rows = [row]

    def handler(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        row.update(id=items[0]["id"], value=items[0]["id"] * 10)
        return rows

    job = resumable_task(handler, name="again", key="id", batch_size=1, concurrency=1)
    result = job.run([{"id": at} for at in range(200)], checkpoint=tmp_path / "c", progress=False)
    found = sorted(result.table().to_pylist(), key=lambda each: int(each["id"]))
    assert found == [{"id": at, "value": at * 10} for at in range(200)]


def test_a_batch_of_plain_rows_waits_for_others_as_it_is() -> None:
    assert isinstance(plain_table({"id": ["a", None], "v": [1, 2]}, 2), PlainTable)


@pytest.mark.parametrize(
    ("declared", "is_plain"),
    [
        pytest.param(pa.schema([("id", pa.string()), ("v", pa.int64())]), True, id="the same"),
        pytest.param(pa.schema([("id", pa.string()), ("v", pa.float64())]), False, id="another"),
        pytest.param(
            pa.schema([pa.field("id", pa.string(), nullable=False), ("v", pa.int64())]),
            False,
            id="no nulls",
        ),
    ],
)
def test_rows_of_declared_types_stay_plain_too(declared: pa.Schema, is_plain: bool) -> None:
    table, odd = separate([{"id": "a", "v": 1}, {"id": "b", "v": None}], Columns(declared))
    assert (isinstance(table, PlainTable), odd) == (is_plain, {})
    assert arrow_table(table).schema.types == declared.types  # type: ignore[union-attr]


def test_long_texts_are_not_put_together_to_find_out_that_they_are_long() -> None:
    values = ["x" * 1_000_000] * 20 + ["\U0001f600"]  # four bytes each, were they one text
    tracemalloc.start()
    try:
        assert plain_table({"v": values}, len(values)) is None
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
