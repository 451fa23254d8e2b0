"""Values of handlers' rows come back as they went in, or their rows are set apart, with words."""

import collections.abc
import dataclasses
import datetime as dt
import enum
import ipaddress
import math
import re
from array import array
from collections import Counter, OrderedDict, UserList, UserString, deque, namedtuple
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pyarrow as pa
import pytest

from resumable_tasks.errors import ResultConflict
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.failures import parked
from resumable_tasks.runners.match import Matched, match
from resumable_tasks.runners.values.columns import Columns
from resumable_tasks.runners.values.jsontype import JSON
from resumable_tasks.runners.values.plain import plain
from resumable_tasks.runners.values.tables import separate, to_table

pydantic = pytest.importorskip("pydantic")

attrs = pytest.importorskip("attrs")


def batch_of(count: int) -> Batch:
    many: list[Any] = list(range(count))
    return Batch(0, many, keys.join(map(keys.canonical, many)), [])


def matched(values: list[Any], columns: Columns | None = None) -> Matched:
    rows = [{"id": at, "v": value} for at, value in enumerate(values)]
    return match(rows, batch_of(len(values)), KeyScheme("id"), "one", columns or Columns())


def stored(values: list[Any]) -> list[Any]:
    """These values, all of which have to be stored, as they come back."""
    found = matched(values)
    assert not found.parked
    assert found.table is not None
    return found.table["v"].to_pylist()


class Color(enum.Enum):
    RED = "red"


class Name(str):
    __slots__ = ()


@attrs.define
class Attrs:
    id: int
    inner: "Attrs | None" = None


class Model(pydantic.BaseModel):
    id: int
    url: pydantic.HttpUrl = pydantic.HttpUrl("https://a.example/b")
    color: Color = Color.RED
    when: dt.date = dt.date(2026, 1, 2)


@dataclasses.dataclass
class Data:
    id: int
    label: Color = Color.RED
    model: Model | None = None


class Tags(collections.abc.Set[str]):
    """A set by its methods."""

    def __init__(self, members: str) -> None:
        self._members = members

    def __contains__(self, member: object) -> bool:
        return member in self._members

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


Point = namedtuple("Point", ["x", "y"])

CASES: dict[str, tuple[Any, Any]] = {
    "an enum": (Color.RED, "red"),
    "text of a class of its own": (Name("x"), "x"),
    "a path": (Path("a/b"), "a/b"),
    "an address": (ipaddress.ip_address("::1"), "::1"),
    "a URL": (pydantic.HttpUrl("https://a.example/b"), "https://a.example/b"),
    "a UUID": (UUID(int=7), UUID(int=7)),
    "deep ones": (
        [{"a": UUID(int=1), "b": [Color.RED, Path("x")]}],
        [{"a": UUID(int=1), "b": ["red", "x"]}],
    ),
    "a tuple": ((1, 2), [1, 2]),
    "a set": ({2, 1}, [1, 2]),
    "a frozen set": (frozenset((2, 1)), [1, 2]),
    "a range": (range(3), [0, 1, 2]),
    "a deque": (deque([Color.RED, range(2)]), ["red", [0, 1]]),
    "an array": (array("i", [2, 1]), [2, 1]),
    "a list of another class": (UserList([2, 1]), [2, 1]),
    "text of another class": (UserString("x"), "x"),
    "the values of a dict": ({"b": 2, "a": 1}.values(), [2, 1]),
    "the names of a dict": ({"b": 2, "a": 1}.keys(), ["b", "a"]),
    "the items of a dict": ({"b": 2}.items(), [["b", 2]]),
    "a set of another class": (Tags("ba"), ["a", "b"]),
    "a named tuple": (Point(1, 2), {"x": 1, "y": 2}),
    "a mapping": (MappingProxyType({"a": Color.RED}), {"a": "red"}),
    "an ordered dict": (OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    "a counter": (Counter("aab"), {"a": 2, "b": 1}),
    "a model": (
        Model(id=1),
        {"id": 1, "url": "https://a.example/b", "color": "red", "when": dt.date(2026, 1, 2)},
    ),
    "a dataclass with a model": (
        Data(1, model=Model(id=2)),
        {"id": 1, "label": "red", "model": plain(Model(id=2))},
    ),
    "attrs": (Attrs(1, Attrs(2)), {"id": 1, "inner": {"id": 2, "inner": None}}),
    "an empty dict": ({}, {}),
    "an empty list": ([], []),
    "lists of empty dicts": ([{}], [{}]),
    "a dict in which a dict is empty": ({"a": {}, "b": 1}, {"a": {}, "b": 1}),
    "a list of two types": ([1, "a", None], [1, "a", None]),
    "names that are no text": ({1: "a", (2, 3): "b"}, {1: "a", (2, 3): "b"}),
    "a name of ours": ({"$date": "2026"}, {"$date": "2026"}),
    "bytes": (bytearray(b"a"), b"a"),
    "a decimal": (Decimal("1E+5"), Decimal(100_000)),
    "long text": ("ü" * 1000, "ü" * 1000),
}


@pytest.mark.parametrize("name", CASES)
def test_what_people_return_is_stored(name: str) -> None:
    value, wanted = CASES[name]
    for values in ([value], [None, value, value]):
        assert stored(values)[-1] == wanted


def test_rows_may_be_records_of_any_kind() -> None:
    msgspec = pytest.importorskip("msgspec")
    struct = msgspec.defstruct("Struct", [("id", int), ("v", int)])
    of_attrs = attrs.make_class("OfAttrs", ["id", "v"])
    record = namedtuple("record", ["id", "v"])
    for kind in (struct, of_attrs, record, dataclasses.make_dataclass("D", ["id", "v"])):
        found = match([kind(0, 5)], batch_of(1), KeyScheme("id"), "one").table
        assert found is not None
        assert found.to_pylist() == [{"id": 0, "v": 5}]


UNFIT: dict[str, Any] = {
    "a lone surrogate": "\ud800",
    "70 bits": 2**70,
    "no decimal": Decimal("NaN"),
    "too many digits": Decimal("1" * 80),
    "a time with an offset": dt.time(1, tzinfo=dt.UTC),
    "a long timedelta": dt.timedelta.max,
    "complex": 1j,
    "an object": object(),
    "one deep within": {"a": [{"b": "\ud800"}]},
}


@pytest.mark.parametrize("name", UNFIT)
@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("others", [1, "a", {"a": [{"b": "x"}]}, {"z": 1}])
def test_one_that_has_no_place_is_set_apart_and_no_other(name: str, at: int, others: Any) -> None:
    values = [others, others, others]
    values.insert(at, UNFIT[name])
    found = matched(values)
    assert [key for key, *_ in found.parked] == [at]
    assert found.completed == 3
    message = str(found.parked[0][2])
    assert message.startswith("column 'v' is ")
    assert "json_columns=" in message


def test_secrets_fail_with_words_and_without_the_secret() -> None:
    found = matched([{"a": pydantic.SecretStr("hunter2")}, {"a": "x"}])
    (failure,) = parked(batch_of(2), found.parked, 1)
    assert failure.rows is None
    assert "SecretStr" in failure.message
    assert "hunter2" not in failure.message


DISAGREE = [
    (dt.datetime(2026, 1, 1), dt.datetime(2026, 1, 1, tzinfo=dt.UTC)),
    (dt.date(2026, 1, 1), dt.datetime(2026, 1, 1)),
    (b"a", "a"),
    (dt.timedelta(1), 1),
    (True, 1),
    (Decimal("1.5"), 1.5),
    (2**53 + 1, 0.5),
    (1, "1"),
    ([1], 1),
    ("a", {"a": 1}),
]


@pytest.mark.parametrize(("usual", "odd"), [*DISAGREE, *(pair[::-1] for pair in DISAGREE)])
@pytest.mark.parametrize("at", [0, 1, 3])
def test_the_type_that_most_have_prevails(usual: Any, odd: Any, at: int) -> None:
    values = [usual, usual, usual]
    values.insert(at, odd)
    found = matched(values)
    assert [key for key, *_ in found.parked] == [at]
    assert found.table is not None
    assert found.table["v"].to_pylist() == [usual] * 3
    assert re.search(r"of type .* here, but of type .* in most rows", str(found.parked[0][2]))


def test_moments_with_several_offsets_are_the_same_moments_in_utc() -> None:
    two, minus = (dt.timezone(dt.timedelta(hours=hours)) for hours in (2, -7))
    moments = [dt.datetime(2026, 1, 1, 12, tzinfo=zone) for zone in (two, minus, dt.UTC)]
    found = stored(moments)
    assert found == moments
    assert {moment.utcoffset() for moment in found} == {dt.timedelta(0)}


def test_nan_is_none_among_all_but_numbers() -> None:
    nan = float("nan")
    assert stored(["a", nan, None]) == ["a", None, None]
    assert stored([dt.date(2026, 1, 1), nan]) == [dt.date(2026, 1, 1), None]
    assert stored([[1], nan]) == [[1], None]
    among_numbers = stored([1, nan, None])
    assert among_numbers[::2] == [1.0, None]
    assert math.isnan(among_numbers[1])


def test_no_value_of_pandas_is_none_among_others() -> None:
    pandas = pytest.importorskip("pandas")
    assert stored(["a", pandas.NA, float("nan"), pandas.NaT]) == ["a", None, None, None]
    assert stored([dt.date(2026, 1, 1), pandas.NaT, float("nan")])[1:] == [None, None]
    assert stored([1, pandas.NA]) == [1, None]
    moment = pandas.Timestamp("2026-01-01T00:00:00.000000001")
    (back,) = stored([moment])
    assert back == moment
    assert stored([pandas.Timestamp("2026-01-01")]) == [dt.datetime(2026, 1, 1)]
    assert stored([pandas.Timedelta("1h")]) == [dt.timedelta(hours=1)]


def test_numpy_is_stored_as_what_python_has() -> None:
    numpy = pytest.importorskip("numpy")
    assert stored([numpy.float32(0.5), 1.25, numpy.int8(3)]) == [0.5, 1.25, 3.0]
    assert stored([numpy.bool_(True), False]) == [True, False]
    assert stored([numpy.array([[1, 2], [3, 4]]), [[5]]]) == [[[1, 2], [3, 4]], [[5]]]
    assert stored([numpy.array([0.5], dtype="float16")]) == [[0.5]]
    assert stored([numpy.datetime64("2026-01-01T00:00:01", "ns")]) == [
        dt.datetime(2026, 1, 1, 0, 0, 1)
    ]
    assert stored([numpy.datetime64("2026-01-01"), numpy.datetime64("NaT")]) == [
        dt.date(2026, 1, 1),
        None,
    ]
    assert stored([numpy.str_("a"), "b", numpy.array(["c"])[0]]) == ["a", "b", "c"]
    assert [key for key, *_ in matched([numpy.complex64(1j), 1]).parked] == [0]


def test_a_series_of_polars_is_a_list() -> None:
    polars = pytest.importorskip("polars")
    assert stored([polars.Series([2, None, 1]), [5]]) == [[2, None, 1], [5]]
    assert stored([polars.Series([{"a": [1]}])]) == [[{"a": [1]}]]
    assert stored([polars.Series(["a"], dtype=polars.Categorical)]) == [["a"]]
    assert stored([polars.Series([Color.RED], dtype=polars.Object)]) == [["red"]]
    moment = polars.Series([1_000_001]).cast(polars.Datetime("ns"))
    table = matched([moment]).table
    assert table is not None
    assert table["v"].combine_chunks().flatten().cast("int64").to_pylist() == [1_000_001]


@pytest.mark.parametrize("make", [lambda: range(10**30), lambda: iter([1]), lambda: map(str, [1])])
def test_what_is_read_once_or_without_end_is_not_read(make: Any) -> None:
    value = make()
    ((_, _, error),) = matched([value]).parked
    assert "no column can hold" in str(error)
    assert next(iter(value)) in (0, 1, "1")


def test_forms_of_dicts_decide_between_a_struct_and_json() -> None:
    def kind(*values: Any) -> pa.DataType:
        table = to_table([{"v": value} for value in values])
        assert table is not None
        return table.schema.field("v").type

    assert kind({"a": 1, "b": None}, {"b": 2.5, "a": 2}) == pa.struct({"a": "int64", "b": "double"})
    assert kind([{"a": 1}], [], None) == pa.list_(pa.struct({"a": "int64"}))
    assert kind({"a": 1}, {"b": 1}) == JSON
    assert kind({"a": 1}, {"a": "1"}) == JSON
    assert kind({}) == JSON


@pytest.mark.parametrize(
    "value", [[2**53 + 2, 0.5], {"a": [2**53 + 2, 0.0]}, [{"a": 1}, {"a": 2**60, "b": 0.5}]]
)
def test_a_structure_of_no_exact_type_is_json_alone_and_beside_others(value: Any) -> None:
    """Whether it is parked does not depend on what else is in its batch."""
    for values in ([value], [None, value], [[], value], [value, {}]):
        assert stored(values) == values
        table = matched(values).table
        assert table is not None
        assert table.schema.field("v").type == JSON


def test_declared_json_is_text_for_everybody() -> None:
    columns = Columns(json=frozenset({"v"}))
    values = [{"a": {}}, [1, "ü"], "text", None, 2**70, {"at": dt.date(2026, 1, 1)}, {1: 2}]
    found = matched(values, columns)
    assert not found.parked
    assert found.table is not None
    assert found.table["v"].to_pylist() == [
        '{"a": {}}',
        '[1, "ü"]',
        '"text"',
        None,
        str(2**70),
        '{"at": {"$date": "2026-01-01"}}',
        '{"$dict": [[1, 2]]}',
    ]


def test_rows_that_cannot_be_stored_together_are_refused_as_one_table() -> None:
    with pytest.raises(ResultConflict, match="column 'v'"):
        to_table([{"v": 1}, {"v": "a"}])
    assert separate([{"v": 1}, {"v": "a"}])[1].keys() == {1}
