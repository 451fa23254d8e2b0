"""The planner: exactly the missing keys, once, in order, in batches; from rows as from Arrow."""

from __future__ import annotations

from itertools import islice, pairwise

import pyarrow as pa
import pyarrow.dataset as pads
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_tasks.errors import DuplicateKey, InvalidKey
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.items.plan import Planner, Planning
from tests.proof.properties import strategies

sizes = st.integers(1, 7)
few = st.integers(0, 30)
some_keys = st.one_of(st.lists(few), st.lists(few.map(str)), st.lists(strategies.keys, max_size=12))
of_arrow = st.one_of(
    st.lists(st.integers(-(2**63), 2**63 - 1) | few, max_size=40),
    st.lists(few.map(str) | strategies.texts, max_size=40),
)


def table_of(done) -> KeyTable:
    table = KeyTable()
    for key in done:
        table.add(keys.canonical(key), -1)
    return table


def chosen(data, pool) -> list:
    unique = list(dict.fromkeys(pool))
    return data.draw(st.lists(st.sampled_from(unique), unique=True)) if unique else []


def marked(many: list) -> list[tuple]:
    """Keys that differ where 1 and True would not."""
    return [(type(key), key) for key in many]


def planned_until(error: type[Exception], batches) -> tuple[list, str]:
    """The keys that were given out before this error came, and its message."""
    given_out: list = []

    def plan() -> None:
        for batch in batches:
            given_out.extend(batch.keys)

    with pytest.raises(error) as caught:
        plan()
    return given_out, str(caught.value)


def check(planner: Planner, items, many: list, done: list, size: int) -> list:
    """Plan these items, whose keys are unique, and hold the batches to the promise."""
    batches = list(planner.batches(items))
    missing = [key for key in many if key not in done]
    assert marked([key for batch in batches for key in batch.keys]) == marked(missing)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert all(0 < len(batch) <= size for batch in batches)
    assert [batch.number for batch in batches] == list(range(len(batches)))
    for batch in batches:
        assert batch.lines == keys.join(map(keys.canonical, batch.keys))
    assert planner.total == len(many)
    assert planner.skipped == len(many) - len(missing)
    for position, key in enumerate(many):
        assert planner.seen.get(keys.canonical(key)) == position
    return batches


@given(st.data(), sizes, some_keys)
def test_batches_hold_the_missing_keys_once_in_order(data, size, many) -> None:
    many = list(dict.fromkeys(many))
    done = chosen(data, many)
    planner = Planner(Planning("id", size), table_of(done))
    items = [{"id": key, "n": n} for n, key in enumerate(many)]
    batches = check(planner, iter(items), many, done, size)
    assert [item for batch in batches for item in batch.items] == [
        item for item in items if item["id"] not in done
    ]
    assert planner.duplicates == 0


@given(st.data(), sizes, some_keys)
def test_other_batches_hold_the_same_keys(data, size, many) -> None:
    """What a run with another batch size does after a crash between any two batches."""
    many = list(dict.fromkeys(many))
    first = Planner(Planning(None, size), KeyTable()).batches(many)
    stop = data.draw(st.integers(0, len(many)))
    done = [key for batch in islice(first, stop) for key in batch.keys]
    other = data.draw(sizes)
    again = Planner(Planning(None, other), table_of(done)).batches(many)
    assert marked([*done, *(key for batch in again for key in batch.keys)]) == marked(many)


@given(st.data(), sizes, some_keys)
def test_a_batch_of_the_same_keys_has_the_same_id(data, size, many) -> None:
    many = list(dict.fromkeys(many))
    one = [batch.id for batch in Planner(Planning(None, size), KeyTable()).batches(many)]
    assert len(set(one)) == len(one)
    assert one == [b.id for b in Planner(Planning(None, size), KeyTable()).batches(iter(many))]


@given(st.data(), sizes, some_keys.filter(lambda many: len(set(many)) < len(many)))
def test_the_first_duplicate_is_told_with_both_positions(data, size, many) -> None:
    first: dict = {}
    for position, key in enumerate(many):
        if key in first:
            break
        first[key] = position
    done = chosen(data, many)
    planner = Planner(Planning(None, size), table_of(done))
    given_out, error = planned_until(DuplicateKey, planner.batches(many))
    assert f"items {first[key]:,} and {position:,} " in error
    missing = [key for key in many[:position] if key not in done]
    assert marked(given_out) == marked(missing[: len(given_out)])


@given(st.data(), sizes, some_keys)
def test_duplicates_are_passed_over_if_that_is_wanted(data, size, many) -> None:
    unique = list(dict.fromkeys(many))
    done = chosen(data, unique)
    planner = Planner(Planning(None, size, on_duplicate="skip"), table_of(done))
    batches = list(planner.batches(many))
    missing = [key for key in unique if key not in done]
    assert marked([key for batch in batches for key in batch.keys]) == marked(missing)
    assert [len(batch) for batch in batches[:-1]] == [size] * (len(batches) - 1)
    assert planner.total == len(many)
    assert planner.duplicates == len(many) - len(unique)
    assert planner.total == len(missing) + planner.skipped + planner.duplicates


@given(st.lists(few, unique=True, max_size=20), st.integers(0, 20), sizes)
def test_an_item_without_a_key_is_told_with_its_position(many, at, size) -> None:
    at = min(at, len(many))
    items = [{"id": key} for key in many]
    for bad in ({"id": None}, {"id": True}, {"id": ""}, {"other": 1}):
        with_bad = [*items[:at], bad, *items[at:]]
        planner = Planner(Planning("id", size), KeyTable())
        given_out, error = planned_until(InvalidKey, planner.batches(iter(with_bad)))
        assert error.startswith(f"item {at}:")
        assert given_out == many[: at - at % size]
        planner = Planner(Planning("id", size), KeyTable())
        assert planned_until(InvalidKey, planner.batches(with_bad))[1] == error


def forms(table: pa.Table):
    """The same items in each form that Arrow has for them."""
    yield "table", table
    yield "reader", table.to_reader()
    yield "dataset", pads.dataset(table)
    yield "batches", pa.RecordBatchReader.from_batches(table.schema, table.to_batches())
    if table.num_rows:
        yield "batch", table.combine_chunks().to_batches()[0]


def cut(data, table: pa.Table) -> pa.Table:
    """The same table in other chunks."""
    at = sorted(data.draw(st.lists(st.integers(0, table.num_rows), max_size=4)))
    edges = [0, *at, table.num_rows]
    return pa.concat_tables([table.slice(a, b - a) for a, b in pairwise(edges)])


@given(st.data(), sizes, of_arrow)
def test_items_from_arrow_are_planned_as_rows_are(data, size, many) -> None:
    many = list(dict.fromkeys(many))
    done = chosen(data, many)
    kind = pa.int64() if many and isinstance(many[0], int) else pa.string()
    whole = pa.table({"n": range(len(many)), "id": pa.array(many, kind)})
    rows = check(Planner(Planning("id", size), table_of(done)), whole.to_pylist(), many, done, size)
    for name, items in forms(cut(data, whole)):
        batches = check(Planner(Planning("id", size), table_of(done)), items, many, done, size)
        for batch, of_rows in zip(batches, rows, strict=True):
            assert isinstance(batch.items, pa.RecordBatch), name
            assert batch.items.to_pylist() == of_rows.items
            assert batch.id == of_rows.id


@given(st.data(), sizes, of_arrow)
def test_composite_keys_from_arrow_are_planned_as_rows_are(data, size, many) -> None:
    many = [(key, n % 3) for n, key in enumerate(dict.fromkeys(many))]
    done = chosen(data, many)
    kind = pa.int64() if many and isinstance(many[0][0], int) else pa.string()
    whole = pa.table(
        {
            "b": pa.array([b for _, b in many], pa.int64()),
            "a": pa.array([a for a, _ in many], kind),
        }
    )
    scheme = KeyScheme(("a", "b"))
    check(Planner(Planning(scheme.spec, size), table_of(done)), whole.to_pylist(), many, done, size)
    for _, items in forms(cut(data, whole)):
        check(Planner(Planning(scheme.spec, size), table_of(done)), items, many, done, size)


@given(st.data(), sizes, st.lists(few, min_size=2).filter(lambda many: len(set(many)) < len(many)))
def test_duplicates_from_arrow_are_told_as_those_of_rows_are(data, size, many) -> None:
    table = cut(data, pa.table({"id": many}))
    messages = set()
    for _, items in (("rows", table.to_pylist()), *forms(table)):
        with pytest.raises(DuplicateKey) as caught:
            list(Planner(Planning("id", size), KeyTable()).batches(items))
        messages.add(str(caught.value))
        skipping = Planner(Planning("id", size, on_duplicate="skip"), KeyTable())
        assert skipping.duplicates == 0
    assert len(messages) == 1
    for _, items in forms(table):
        skipping = Planner(Planning("id", size, on_duplicate="skip"), KeyTable())
        planned = [key for batch in skipping.batches(items) for key in batch.keys]
        assert planned == list(dict.fromkeys(many))
        assert skipping.duplicates == len(many) - len(planned)


@given(sizes, st.lists(few, unique=True, min_size=1))
def test_the_handler_gets_the_form_that_it_asked_for(size, many) -> None:
    rows = [{"id": key} for key in many]
    for items in (rows, pa.table({"id": many})):
        as_rows = Planner(Planning("id", size, batch_format="rows"), KeyTable()).batches(items)
        assert [item for batch in as_rows for item in batch.items] == rows
        as_arrow = Planner(Planning("id", size, batch_format="arrow"), KeyTable()).batches(items)
        assert [row for batch in as_arrow for row in batch.items.to_pylist()] == rows
