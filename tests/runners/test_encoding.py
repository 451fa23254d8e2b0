"""The encoding of parked rows: what goes in comes out, by way of JSON text in UTF-8."""

import json
import math
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, StrEnum
from fractions import Fraction
from pathlib import PurePosixPath
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from resumable_tasks import JobFailed, resumable_task
from resumable_tasks.runners.values.encoding import CannotEncode, decode, encode

_ZONES = st.none() | st.integers(-1439, 1439).map(lambda m: timezone(timedelta(minutes=m)))
_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**90), 2**90)
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.text(st.characters(categories=["Cs"]))
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.dates()
    | st.times()
    | st.datetimes(timezones=_ZONES)
    | st.timedeltas()
    | st.uuids()
    | st.complex_numbers(allow_nan=False)
)
_NAMES = st.text() | st.integers() | st.sampled_from(["$date", "$", "a"])
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(_NAMES, inner)
        | st.dictionaries(st.text(), inner)
    ),
    max_leaves=10,
)


def through_json(value):
    text = json.dumps(encode(value), ensure_ascii=False, allow_nan=False).encode()
    return decode(json.loads(text))


def kinds(value):
    """The value with the class of everything in it: 1 equals True and 1.0."""
    if isinstance(value, dict):
        return [(kinds(name), kinds(each)) for name, each in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value), [kinds(each) for each in value]
    return type(value), value


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_VALUES)
def test_what_goes_in_comes_out(value):
    assert kinds(through_json(value)) == kinds(value)


def test_values_that_equal_nothing_and_sets():
    assert math.isnan(through_json(float("nan")))
    assert through_json(Decimal("NaN")).is_nan()
    assert through_json({1, "a"}) == {1, "a"}
    assert through_json(PurePosixPath("a/b")) == PurePosixPath("a/b")
    assert through_json(UUID(int=7)) == UUID(int=7)
    assert through_json(datetime(2026, 1, 1, fold=1, tzinfo=UTC)).tzinfo is not None
    assert through_json([date.min, time.max]) == [date.min, time.max]


def test_text_and_numbers_of_other_classes_are_what_they_hold():
    class Color(StrEnum):
        RED = "red"

    class Plain(Enum):
        ONE = 1

    class Name(str):
        __slots__ = ()

    assert through_json([Color.RED, Plain.ONE, Name("x")]) == ["red", 1, "x"]


def test_numpy_and_arrow():
    import pyarrow as pa

    numpy = pytest.importorskip("numpy")
    assert through_json(numpy.array([[1, 2]])) == [[1, 2]]
    assert through_json(numpy.float32(0.5)) == 0.5
    for kind in (pa.timestamp("ns"), pa.timestamp("ns", "Europe/Berlin"), pa.duration("ns")):
        scalar = pa.scalar(1_234_567_891, pa.int64()).cast(kind)
        assert through_json(scalar).equals(scalar)


def test_what_has_no_exact_form_is_refused_with_its_class():
    with pytest.raises(CannotEncode, match=r"builtins\.object"):
        encode({"a": [object()]})
    deep: list = []
    for _ in range(1_000):
        deep = [deep]
    with pytest.raises(CannotEncode, match="deep"):
        encode(deep)


def test_what_cannot_be_kept_is_said_once_and_without_a_way_out_that_is_none(tmp_path):
    def job(items):
        return [{"id": item, "v": Fraction(1, 2)} for item in items]

    task = resumable_task(job, name="job", key=None, batch_size=1)
    for each, says in [
        (task, "which no column can hold. The item cannot be kept either: cannot store exactly:"),
        (task.with_options(json_columns=["v"]), "column 'v' is not JSON: cannot store exactly"),
    ]:
        with pytest.raises(JobFailed, match=r"Fraction\(1, 2\)") as error:
            each.run([1], checkpoint=tmp_path / "c")
        (failure,) = error.value.result.failures
        assert says in failure.message
        assert failure.message.count("Let the handler return") == 1
        assert "json_columns=" not in failure.message


@pytest.mark.parametrize("bad", [{"$uuid": "x"}, {"$date": 3}, {"$bytes": "é"}, {"$decimal": "x"}])
def test_what_was_not_encoded_is_no_value(bad):
    with pytest.raises(ValueError):
        decode(bad)
