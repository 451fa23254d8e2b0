"""Types in a Delta table: each value stays what it is, or is refused by name."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import UsageError, resumable_task
from resumable_tasks.results.deltatypes import delta_schema, to_delta
from resumable_tasks.runners.values import jsontype

duckdb = pytest.importorskip("duckdb")
DeltaTable = pytest.importorskip("deltalake").DeltaTable


def published(column: pa.Array, place: Path, dest: Path) -> list[Any]:
    """The values of a column, as they come out of a table."""

    def rows(items: pa.Table) -> pa.Table:
        return pa.table({"id": list(range(len(column))), "c": column})

    items = [{"id": i} for i in range(len(column))]
    job = resumable_task(rows, name="job", key="id", batch_size=len(column))
    job.run(items, checkpoint=place).publish(dest, form="delta")
    uris = DeltaTable(dest).file_uris()
    found = duckdb.sql(f"SELECT c FROM read_parquet({uris!r}) ORDER BY id").fetchall()
    return [value for (value,) in found]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([200, None], pa.uint8()),
        pa.array([60_000, 1], pa.uint16()),
        pa.array([2**32 - 1, 1], pa.uint32()),
        pa.array([2**63 - 1, 1], pa.uint64()),
        pa.array([86_400_000, None], pa.date64()),
        pa.array([5, None], pa.timestamp("s")),
        pa.array(["x", None]).dictionary_encode(),
        pa.array([b"ab", None], pa.binary(2)),
        pa.array([Decimal("1.50"), None]).cast(pa.decimal256(20, 2)),
        pa.array([[200], None, [1]], pa.list_(pa.uint8())),
    ],
    ids=lambda column: str(column.type)[:20],
)
def test_values_stay_what_they_are(column: pa.Array, place: Path, tmp_path: Path) -> None:
    assert published(column, place, tmp_path / "table") == column.to_pylist()


@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**63], pa.uint64()),
        pa.array([1_001], pa.timestamp("ns")),
        pa.array([[2**63]], pa.list_(pa.uint64())),
    ],
    ids=lambda column: str(column.type)[:20],
)
def test_a_value_that_would_change_is_refused(
    column: pa.Array, place: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"column 'c'.*does not fit"):
        published(column, place, tmp_path / "table")
    assert DeltaTable(tmp_path / "table").count() == 0


@pytest.mark.parametrize(
    "kind",
    [
        pa.duration("us"),
        pa.time64("us"),
        pa.decimal256(40, 2),
        pa.list_view(pa.int64()),
        pa.list_(pa.duration("s")),
        pa.struct([("a", pa.time32("s"))]),
        pa.month_day_nano_interval(),
    ],
    ids=str,
)
def test_types_that_delta_has_not_are_refused_by_name(kind: pa.DataType) -> None:
    schema = pa.schema([("id", pa.int64()), ("took", kind)])
    with pytest.raises(UsageError, match="'took' is ") as caught:
        delta_schema(schema)
    assert "Publish Parquet" in str(caught.value)


def test_names_that_differ_in_case_alone_are_refused() -> None:
    with pytest.raises(UsageError, match="'A' from 'a'"):
        delta_schema(pa.schema([("A", pa.int64()), ("a", pa.int64())]))


def test_json_is_its_text() -> None:
    table = pa.table({"c": jsontype.column([{"x": 1}, None])})
    assert to_delta(table, delta_schema(table.schema))["c"].to_pylist() == ['{"x": 1}', None]
