"""Items from frames and tables survive what runs do to them: cut, chosen, joined, resumed."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import JobFailed, resumable_task
from resumable_tasks.items import arrow

polars = pytest.importorskip("polars")

COUNT = 40


def views() -> pa.Table:
    text = pa.array([f"t{n}" for n in range(COUNT)], pa.string_view())
    codes = pa.array([n % 3 for n in range(COUNT)], pa.int8())
    names = pa.array(["a", "b", "c"], pa.string_view())
    lists = pa.array([[n] for n in range(COUNT)], pa.list_view(pa.int64()))
    return pa.table(
        {
            "id": list(range(COUNT)),
            "text": text,
            "bytes": text.cast(pa.binary_view()),
            "deep": pa.StructArray.from_arrays([text], names=["x"]),
            "list": pa.array([[f"t{n}"] for n in range(COUNT)], pa.list_(pa.string_view())),
            "category": pa.DictionaryArray.from_arrays(codes, names),
            "plain_category": pa.array(["a", "b"] * (COUNT // 2)).dictionary_encode(),
            "runs": pa.RunEndEncodedArray.from_arrays([COUNT // 2, COUNT], ["a", "b"]),
            "list_view": lists,
            "map": pa.array([[("k", n)] for n in range(COUNT)], pa.map_(pa.string(), pa.int64())),
            "decimal": pa.array([Decimal(n) for n in range(COUNT)]),
        }
    )


def frame() -> polars.DataFrame:
    rows = range(COUNT)
    return polars.DataFrame(
        {
            "id": list(rows),
            "text": [f"t{n}" for n in rows],
            "category": polars.Series(["a", "b"] * 20, dtype=polars.Categorical),
            "enum": polars.Series(["a", "b"] * 20, dtype=polars.Enum(["a", "b"])),
            "lists": polars.Series([["a"], ["b"]] * 20, dtype=polars.List(polars.Categorical)),
            "structs": [[{"x": f"t{n}"}] for n in rows],
            "bytes": [b"x"] * COUNT,
            "time": [dt.time(1)] * COUNT,
            "none": [None] * COUNT,
            "array": polars.Series([[1, 2]] * COUNT, dtype=polars.Array(polars.Int8, 2)),
        }
    )


def from_pandas() -> Any:
    pandas = pytest.importorskip("pandas")
    found = frame().to_arrow().to_pandas()
    found["when"] = pandas.Timestamp("2026-01-01", tz="Europe/Berlin")
    return found


def from_duckdb() -> Any:
    duckdb = pytest.importorskip("duckdb")
    return duckdb.connect().sql(
        f"select range::int as id, 'x' || range as t, uuid() as u, {{'a': 'b'}} as s, ['x'] as l, "
        "map(['a'], [1]) as m, 'a'::ENUM('a','b') as e, interval 3 month as i, "
        f"1.5::decimal(10, 2) as d, 'ab'::blob as b from range({COUNT})"
    )


@pytest.mark.sample
@pytest.mark.parametrize("make", [views, frame, from_pandas, from_duckdb])
@pytest.mark.parametrize("form", ["rows", "arrow"])
def test_items_of_every_type_are_cut_failed_and_resumed(
    make: Any, form: Any, tmp_path: Path
) -> None:
    bad = {3, 17, 18, 30}
    seen: dict[int, Any] = {}

    def job(batch: Any) -> list[dict[str, Any]]:
        rows = batch if isinstance(batch, list) else batch.to_pylist()
        if bad & {row["id"] for row in rows}:
            raise ValueError("bad")
        seen.update((row["id"], row) for row in rows)
        return [{"id": row["id"]} for row in rows]

    task = resumable_task(job, key="id", batch_size=7, batch_format=form, name="job")
    with pytest.raises(JobFailed) as caught:
        task.run(make(), checkpoint=tmp_path / "c")
    assert caught.value.result.completed == COUNT - len(bad)
    bad.clear()
    run = task.run(make(), checkpoint=tmp_path / "c")
    assert (run.completed, run.skipped) == (4, COUNT - 4)
    if make in (views, frame):
        table = make() if make is views else make().to_arrow()
        assert [seen[n] for n in range(COUNT)] == table.to_pylist()


def test_rows_of_long_columns_are_taken_in_any_order(monkeypatch: pytest.MonkeyPatch) -> None:
    from resumable_tasks.runners.values import jsontype

    monkeypatch.setattr(arrow, "_LARGE", 100)  # all columns are long
    rows = [
        {"id": n, "text": "x" * n, "list": [str(n)], "s": {"a": [b"x" * n]}, "n": None}
        for n in range(30)
    ]
    table = pa.Table.from_pylist(rows)
    table = pa.concat_tables([table.slice(at, 7) for at in range(0, 30, 7)])
    json = jsontype.column([{"n": n} for n in range(30)])
    table = table.append_column("json", pa.chunked_array([json.slice(0, 9), json.slice(9)]))
    order = [(7 * n) % 30 for n in range(30)]
    found = arrow.taken(table, order)
    assert found.schema == table.schema
    assert found.to_pylist() == [table.to_pylist()[at] for at in order]


def test_record_batches_too_long_for_one_array_are_joined() -> None:
    from resumable_tasks.items.batch import Chunk

    batch = pa.record_batch({"text": ["a", "b"]})
    assert arrow.with_large_offsets(batch).schema.field("text").type == pa.large_string()
    other = Chunk([2], [b"2"], (), batch.slice(0, 1))
    assert Chunk.joined([Chunk([0, 1], [b"0", b"1"], (), batch), other]).items.num_rows == 3


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_more_than_2_gib_of_text_in_a_column(tmp_path: Path) -> None:
    """Takes 15 GiB of memory."""
    size, count = 24_000_000, 100
    letters = "abcdefghijklmnopqrstuvwxyz"

    def job(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {"id": i["id"], "text": letters[i["id"] % 26] * size, "list": [letters[i["id"] % 26]]}
            for i in items
        ]

    items = [{"id": n} for n in reversed(range(count))]
    task = resumable_task(job, key="id", batch_size=100, name="job")
    run = task.run(items, checkpoint=tmp_path / "c")
    for ordered in (False, True):
        table = run.table(ordered=ordered)
        assert table.num_rows == count
        assert table["text"].nbytes > 2**31
        for row in (table.slice(at, 1).to_pylist()[0] for at in (0, count - 1)):
            assert row["text"] == letters[row["id"] % 26] * size
        del table
    assert run.publish(tmp_path / "out", ordered=True).rows == count
