"""``schema=``: the columns and types of all partitions, from a schema of Arrow or from a class."""

from __future__ import annotations

import dataclasses
import datetime as dt
import enum
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import pyarrow as pa
import pytest

from resumable_tasks import resumable_task
from resumable_tasks.errors import UsageError
from resumable_tasks.runners.values.columns import columns_of, json_names
from resumable_tasks.runners.values.tables import separate

pydantic = pytest.importorskip("pydantic")


class Color(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Inner:
    x: float


class Answer(pydantic.BaseModel):
    id: int
    label: Literal["a", "b"] | None
    color: Color
    tags: list[str]
    inner: Inner
    many: list[Inner]
    url: pydantic.HttpUrl
    uuid: UUID
    path: Path
    day: dt.date
    arguments: dict[str, Any]
    either: int | str
    anything: Any
    at: dt.datetime
    price: Decimal


def test_a_class_says_the_types() -> None:
    columns = columns_of(Answer)
    assert columns.schema is not None
    kinds = {field.name: field.type for field in columns.schema}
    inner = pa.struct({"x": "double"})
    assert kinds == {
        "id": pa.int64(),
        "label": pa.string(),
        "color": pa.string(),
        "tags": pa.list_(pa.string()),
        "inner": inner,
        "many": pa.list_(inner),
        "url": pa.string(),
        "uuid": pa.uuid(),
        "path": pa.string(),
        "day": pa.date32(),
        **dict.fromkeys(["arguments", "either", "anything"], pa.string()),
        **dict.fromkeys(["at", "price"], pa.null()),
    }
    assert columns.json == json_names(columns.schema) == {"arguments", "either", "anything"}


def test_rows_become_exactly_what_is_declared_in_all_partitions(tmp_path: Path) -> None:
    def job(items: list[int]) -> list[dict[str, Any]]:
        return [{"key": item, "v": None, "d": {} if item % 2 else {"a": [1]}} for item in items]

    schema = pa.schema([("v", pa.float32()), ("d", pa.struct({"a": pa.list_(pa.int8())}))])
    task = resumable_task(job, schema=schema, batch_size=2)
    tables = [task.run([n], checkpoint=tmp_path / str(n)).table() for n in range(3)]
    for table in tables:
        assert {name: table.schema.field(name).type for name in ("v", "d")} == {
            field.name: field.type for field in schema
        }
    assert pa.concat_tables(tables)["d"].to_pylist() == [{"a": [1]}, {"a": None}, {"a": [1]}]


NAIVE = dt.datetime(2026, 1, 1)
UNFIT: list[tuple[pa.DataType, list[Any], list[Any]]] = [
    (pa.int8(), [1, 2.0, None], [300, "1", 1.5, True]),
    (pa.float64(), [1, 0.5], [2**53 + 1, "1", Decimal(1)]),
    (pa.string(), ["a", UUID(int=1), Color.RED], [b"a", 1]),
    (pa.binary(), [b"a"], ["a"]),
    (
        pa.timestamp("us"),
        [dt.datetime(2026, 1, 1)],
        [dt.date(2026, 1, 1), 5, dt.datetime.now(dt.UTC)],
    ),
    (pa.timestamp("us", "UTC"), [dt.datetime.now(dt.UTC)], [dt.datetime(2026, 1, 1)]),
    (pa.date32(), [dt.date(2026, 1, 1)], [dt.datetime(2026, 1, 1), 5]),
    (pa.duration("us"), [dt.timedelta(1)], [5]),
    (pa.decimal128(5, 2), [Decimal("1.5"), 3], [Decimal("1.234"), 1.5]),
    (pa.struct({"a": pa.int64()}), [{"a": 1}, {}], [{"b": 1}, {"a": "1"}, [1]]),
    (pa.list_(pa.int64()), [[1], []], [[1, "a"], {}, 1]),
]


@pytest.mark.parametrize(("kind", "fit", "unfit"), UNFIT, ids=lambda value: str(value)[:20])
def test_a_value_that_is_not_of_the_type_sets_its_row_apart(
    kind: pa.DataType, fit: list[Any], unfit: list[Any]
) -> None:
    columns = columns_of(pa.schema([("v", kind)]))
    table, odd = separate([{"v": value} for value in fit], columns)
    assert not odd
    assert table is not None
    assert table.schema.field("v").type == kind
    _, odd = separate([{"v": value} for value in [*fit, *unfit]], columns)
    assert sorted(odd) == list(range(len(fit), len(fit) + len(unfit)))
    assert all("by schema=" in why for why in odd.values())


def test_what_may_not_be_null_is_not() -> None:
    columns = columns_of(pa.schema([pa.field("v", pa.int64(), nullable=False)]))
    _, odd = separate([{"v": 1}, {"v": None}, {}], columns)
    assert sorted(odd) == [1, 2]


def test_tables_become_what_is_declared_too(tmp_path: Path) -> None:
    def job(items: list[int]) -> pa.Table:
        return pa.table({"key": items, "v": pa.array([1] * len(items), pa.int64())})

    task = resumable_task(job, schema=pa.schema([("v", pa.int16()), ("w", pa.string())]))
    table = task.run(range(3), checkpoint=tmp_path / "c").table()
    assert table.schema.field("v").type == pa.int16()
    assert table.schema.field("w").type == pa.string()


@pytest.mark.parametrize("bad", [7, "x", int, {"a": "int"}])
def test_what_says_no_columns_is_refused(bad: Any) -> None:
    with pytest.raises(UsageError, match="schema="):
        columns_of(bad)
