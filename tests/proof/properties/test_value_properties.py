"""Whatever a handler returns: each value comes back as it went in, or is parked whole."""

from __future__ import annotations

import datetime as dt
import math
import tempfile
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from resumable_tasks import Failing, resumable_task
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.failures import parked
from resumable_tasks.runners.match import Matched, match
from resumable_tasks.runners.values.encoding import decode

ZONES = st.none() | st.integers(-1439, 1439).map(lambda m: dt.timezone(dt.timedelta(minutes=m)))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([2**53, 2**53 + 1, 2**63, 2**64 - 1, -(2**63)])
    | st.floats()
    | st.text(max_size=3)
    | st.text(st.characters(categories=["Cs"]), max_size=1)
    | st.binary(max_size=3)
    | st.decimals()
    | st.dates()
    | st.times()
    | st.datetimes(timezones=ZONES)
    | st.timedeltas()
    | st.uuids()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=2) | st.sampled_from("ab"), inner, max_size=3)
        | st.fixed_dictionaries({"a": inner})
    ),
    max_leaves=5,
)


def batch_of(count: int) -> Batch:
    many: list[Any] = list(range(count))
    return Batch(0, many, keys.join(map(keys.canonical, many)), [])


def matched(values: list[Any]) -> Matched:
    rows = [{"id": at, "v": value} for at, value in enumerate(values)]
    return match(rows, batch_of(len(values)), KeyScheme("id"), "one")


def same(found: Any, wanted: Any, others: bool) -> bool:
    """Equal, and of the same kind; but an integer among floats is one of them, and so on."""
    if type(wanted) is float and math.isnan(wanted):
        return (found is None and others) or (type(found) is float and math.isnan(found))
    if isinstance(wanted, list):
        return (
            isinstance(found, list)
            and len(found) == len(wanted)
            and all(same(f, w, False) for f, w in zip(found, wanted, strict=True))
        )
    if isinstance(wanted, dict):
        return (
            isinstance(found, dict)
            and found.keys() == wanted.keys()
            and all(same(found[name], each, False) for name, each in wanted.items())
        )
    if isinstance(wanted, Decimal) and wanted.is_nan():
        return isinstance(found, Decimal) and found.is_nan()
    if isinstance(wanted, dt.datetime):
        return found == wanted and (found.tzinfo is None) == (wanted.tzinfo is None)
    numbers = (int, float, Decimal)
    if type(wanted) in numbers and type(found) in numbers:
        return found == wanted
    return type(found) is type(wanted) and found == wanted


@given(st.lists(VALUES, min_size=1, max_size=8))
def test_every_value_comes_back_equal_or_is_parked_whole(values: list[Any]) -> None:
    found = matched(values)
    assert not found.failed
    rows = found.table.to_pylist() if found.table is not None else []
    kept = {row["id"]: row["v"] for row in rows}
    for failure in parked(batch_of(len(values)), found.parked, 1):
        assert failure.rows is not None
        assert "'v'" in failure.message
        assert "schema=" in failure.message
        kept[failure.key] = decode(failure.rows[0])["v"]
    assert kept.keys() == set(range(len(values)))
    for at, value in enumerate(values):
        assert same(kept[at], value, len(values) > 1), (kept[at], value)


@given(st.lists(VALUES, min_size=1, max_size=6))
def test_a_value_that_has_a_place_has_one_beside_no_value(values: list[Any]) -> None:
    """Whether a row is parked for what it holds depends on no other row."""
    for value in values:
        assert bool(matched([value]).parked) == bool(matched([None, value, None]).parked)


STRUCTURES = (
    st.none()
    | st.lists(VALUES, max_size=3)
    | st.fixed_dictionaries({"a": VALUES})
    | st.dictionaries(st.sampled_from("abc"), VALUES, max_size=2)
)


@given(st.lists(STRUCTURES, min_size=1, max_size=8), st.data())
def test_the_table_is_the_same_for_every_size_of_batches_and_order(
    values: list[Any], data: st.DataObject
) -> None:
    order = data.draw(st.permutations(range(len(values))))
    size = data.draw(st.integers(1, len(values)))
    with tempfile.TemporaryDirectory() as folder:
        alone = run(values, range(len(values)), 1, Path(folder) / "alone")
        together = run(values, order, size, Path(folder) / "together")
    assert alone[0] == together[0]
    assert alone[2] == together[2]
    assert alone[1].keys() == together[1].keys()
    for at, value in alone[1].items():
        assert same(together[1][at], value, False), (together[1][at], value)


def run(
    values: list[Any], order: Iterable[int], size: int, place: Path
) -> tuple[Any, dict[int, Any], set[Any]]:
    def job(items: list[int]) -> list[dict[str, Any]]:
        return [{"key": item, "v": values[item]} for item in items]

    task = resumable_task(
        job,
        batch_size=size,
        concurrency=1,
        tolerated_failures=1.0,
        failing=Failing(pause_after=None),
    )
    result = task.run(order, checkpoint=place, progress=False)
    table = result.table()
    kind = table.schema.field("v").type if "v" in table.column_names else None
    rows = {row["key"]: row.get("v") for row in table.to_pylist()}
    return kind, rows, {failure.key for failure in result.parked_items}
