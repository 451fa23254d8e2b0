"""Rows are matched to items: whatever their order and form, no item is done without its row."""

from __future__ import annotations

import dataclasses

import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from resumable_tasks.errors import BadResult, MissingResult
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.match import match
from resumable_tasks.runners.outcome import ItemFailure
from tests.proof.properties import strategies

texts = st.text(min_size=1, max_size=8) | strategies.one_of_these(strategies.NASTY[:-2])
numbers = st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)
kinds_of_keys = st.sampled_from(["text", "number", "pair", "single"])
forms = st.sampled_from(["dicts", "dataclasses", "table", "batch", "chunks"])


@dataclasses.dataclass
class Job:
    """A batch, and a row for each of its items."""

    scheme: KeyScheme
    batch: Batch
    rows: list[dict]


@st.composite
def jobs(draw, least: int = 0) -> Job:
    kind = draw(kinds_of_keys)
    one = {"text": texts, "number": numbers, "pair": st.tuples(texts, numbers)}.get(
        kind, st.tuples(texts)
    )
    many = draw(st.lists(one, unique=True, min_size=least, max_size=8))
    scheme = KeyScheme({"pair": ("a", "b"), "single": ("a",)}.get(kind, "a"))
    batch = Batch(0, many, keys.join(map(keys.canonical, many)), [])
    rows = [
        dict(zip(scheme.columns, scheme.values(key), strict=True)) | {"v": n, "w": str(n)}
        for n, key in enumerate(many)
    ]
    return Job(scheme, batch, rows)


def as_form(rows: list[dict], form: str):
    if form == "dicts" or not rows:
        return rows
    if form == "dataclasses":
        row = dataclasses.make_dataclass("Row", list(rows[0]))
        return [row(**each) for each in rows]
    table = pa.Table.from_pylist(rows)
    if form == "batch":
        return table.to_batches()[0]
    if form == "chunks":
        return pa.concat_tables([table.slice(0, 1), table.slice(1)])
    return table


def without_keys(job: Job, rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in job.scheme.columns} for row in rows]


def values_of(job: Job, table: pa.Table | None) -> dict:
    """The value that each key's row has; asserts one row a key."""
    found = {}
    for row in table.to_pylist() if table is not None else ():
        parts = tuple(row[column] for column in job.scheme.columns)
        key = parts if job.scheme.composite else parts[0]
        assert key not in found
        found[key] = row["v"]
    return found


def right(job: Job) -> dict:
    return {key: n for n, key in enumerate(job.batch.keys)}


@given(st.data(), jobs(), forms, st.sampled_from(["one", "many"]))
def test_rows_in_any_order_complete_every_item(data, job, form, results) -> None:
    rows = data.draw(st.permutations(job.rows))
    matched = match(as_form(rows, form), job.batch, job.scheme, results)
    assert matched.failed in ((), [])
    assert matched.completed == len(job.batch)
    assert sorted(keys.split(matched.done)) == sorted(keys.split(job.batch.lines))
    assert values_of(job, matched.table) == right(job)


@given(jobs(), forms)
def test_rows_without_keys_are_taken_in_the_order_of_the_items(job, form) -> None:
    matched = match(as_form(without_keys(job, job.rows), form), job.batch, job.scheme, "one")
    assert matched.completed == len(job.batch)
    assert values_of(job, matched.table) == right(job)


@given(st.data(), jobs(least=1), forms)
def test_exactly_the_items_without_a_row_are_missing(data, job, form) -> None:
    left = data.draw(st.lists(st.sampled_from(job.rows), unique_by=lambda row: row["v"]))
    there = {row["v"] for row in left}
    assume(left or form in ("dicts", "dataclasses"))
    matched = match(as_form(left, form), job.batch, job.scheme, "one")
    missing = [key for n, key in enumerate(job.batch.keys) if n not in there]
    assert [key for key, _ in matched.failed] == missing
    assert all(type(error) is MissingResult for _, error in matched.failed)
    assert matched.completed == len(there)
    done = [keys.parse(line) for line in keys.split(matched.done)]
    assert sorted(done) == sorted(key for key in job.batch.keys if key not in missing)
    assert values_of(job, matched.table) == {k: n for k, n in right(job).items() if n in there}


@given(st.data(), jobs(least=1))
def test_items_that_the_handler_fails_are_failed_and_no_others(data, job) -> None:
    bad = data.draw(st.sets(st.integers(0, len(job.rows) - 1)))
    keyed = data.draw(st.booleans())
    rows = job.rows if keyed else without_keys(job, job.rows)
    returned = [
        ItemFailure(job.batch.keys[n], f"no luck with {n}") if n in bad else row
        for n, row in enumerate(rows)
    ]
    if keyed:
        returned = data.draw(st.permutations(returned))
    matched = match(returned, job.batch, job.scheme, "one")
    wanted = {job.batch.keys[n]: f"no luck with {n}" for n in bad}
    assert dict(matched.failed) == wanted
    assert matched.completed == len(job.rows) - len(bad)
    assert values_of(job, matched.table) == {k: n for k, n in right(job).items() if n not in bad}


@given(st.data(), jobs(least=1))
def test_many_rows_an_item_are_all_kept(data, job) -> None:
    rows = data.draw(st.lists(st.sampled_from(job.rows), max_size=20))
    matched = match(rows, job.batch, job.scheme, "many")
    assert matched.done == job.batch.lines
    assert matched.completed == len(job.batch)
    found = matched.table.to_pylist() if matched.table is not None else []
    assert [row["v"] for row in found] == [row["v"] for row in rows]


def refused(returned, job: Job, results: str = "one") -> None:
    with pytest.raises(BadResult) as caught:
        match(returned, job.batch, job.scheme, results)
    assert not isinstance(caught.value, MissingResult)


def told_apart(returned, job: Job, completed: set, missing: set, parked: set) -> None:
    """Matched: each item is in one of these, and the table has the rows of the first alone."""
    matched = match(returned, job.batch, job.scheme, "one")
    assert set(keys.parse_lines(matched.done)) == completed
    assert {key for key, error in matched.failed if isinstance(error, MissingResult)} == missing
    assert len(matched.failed) == len(missing)
    assert {key for key, _, _ in matched.parked} == parked
    rows = matched.table.num_rows if matched.table is not None else 0
    assert rows == len(completed) == matched.completed


@given(st.data(), jobs(least=1), jobs(least=1), forms, st.sampled_from(["one", "many"]))
def test_a_row_of_another_batch_costs_its_own_item_at_most(data, job, other, form, results) -> None:
    assume(job.scheme == other.scheme)
    assume([type(key) for key in job.batch.keys[:1]] == [type(other.batch.keys[0])])
    foreign = [row for key, row in zip(other.batch.keys, other.rows, strict=True)
               if key not in job.batch.keys]  # fmt: skip
    assume(foreign)
    whole = as_form(data.draw(st.permutations([*job.rows, foreign[0]])), form)
    lacking = as_form(data.draw(st.permutations([*job.rows[1:], foreign[0]])), form)
    first, *others = job.batch.keys
    if results == "many" or not others:
        refused(lacking, job, results)
    if results == "many":
        refused(whole, job, results)  # which item it is of is not known: any may lack a row
    else:
        told_apart(whole, job, {first, *others}, set(), set())
        if others:
            told_apart(lacking, job, set(others), {first}, set())


@given(st.data(), jobs(least=1), forms)
def test_two_rows_of_one_item_are_parked_with_it(data, job, form) -> None:
    at = data.draw(st.integers(0, len(job.rows) - 1))
    key, others = job.batch.keys[at], {*job.batch.keys} - {job.batch.keys[at]}
    rows = data.draw(st.permutations([*job.rows, job.rows[at]]))
    told_apart(as_form(rows, form), job, others, set(), {key})
    if others:
        gone = (at + 1) % len(job.rows)
        instead = [job.rows[at] if n == gone else row for n, row in enumerate(job.rows)]
        missing = job.batch.keys[gone]
        told_apart(as_form(instead, form), job, others - {missing}, {missing}, {key})


@given(st.data(), jobs(least=1), forms)
def test_another_number_of_rows_without_keys_is_refused(data, job, form) -> None:
    rows = without_keys(job, job.rows)
    at = data.draw(st.integers(0, len(rows) - 1))
    refused(as_form([*rows, rows[at]], form), job)
    if len(rows) > 1:
        refused(as_form(rows[:at] + rows[at + 1 :], form), job)
    refused(as_form(rows, form), job, "many")


@given(st.data(), jobs(least=2))
def test_rows_of_which_some_have_keys_are_refused(data, job) -> None:
    bare = without_keys(job, job.rows)
    which = data.draw(st.sets(st.integers(0, len(bare) - 1), min_size=1, max_size=len(bare) - 1))
    refused([bare[n] if n in which else row for n, row in enumerate(job.rows)], job)


@given(st.data(), jobs(least=1).filter(lambda job: len(job.scheme.columns) == 2), forms)
def test_rows_with_a_part_of_their_keys_are_refused(data, job, form) -> None:
    part = data.draw(st.sampled_from(["a", "b"]))
    rows = [{name: value for name, value in row.items() if name != part} for row in job.rows]
    refused(as_form(rows, form), job)


@pytest.mark.parametrize("form", ["dicts", "table"])
@pytest.mark.parametrize(
    ("key", "look_alike"), [(1, True), (1, 1.0), (1, "1"), ("1", 1), (0, False), ("True", True)]
)
@pytest.mark.parametrize("composite", [False, True])
def test_a_key_that_only_looks_like_the_items_is_refused(key, look_alike, composite, form) -> None:
    whole = ("x", key) if composite else key
    scheme = KeyScheme(("a", "b") if composite else "b")
    job = Job(scheme, Batch(0, [whole], keys.canonical(whole), []), [])
    row = {"b": look_alike, "v": 1} | ({"a": "x"} if composite else {})
    refused(as_form([row], form), job)


@given(
    jobs(least=1),
    st.sampled_from(
        [None, 1, "text", b"bytes", {"a": 1}, [1], [None], ["a"], [[]], object(), [{}]]
    ),
)
def test_what_are_no_rows_is_refused(job, returned) -> None:
    assume(returned != [{}] or len(job.batch) != 1)
    refused(returned, job)


@given(jobs(least=1), forms)
def test_rows_where_none_are_wanted_are_refused(job, form) -> None:
    refused(as_form(job.rows, form), job, "none")
    matched = match(None, job.batch, job.scheme, "none")
    assert (matched.done, matched.completed, matched.table) == (
        job.batch.lines,
        len(job.batch),
        None,
    )


def test_integers_of_64_bits_without_sign_are_stored_as_such() -> None:
    many = [2**63, 2**64 - 1]
    batch = Batch(0, many, keys.join(map(keys.canonical, many)), [])
    table = match([{"a": key, "v": None} for key in many], batch, KeyScheme("a"), "one").table
    assert table is not None
    assert table.schema.field("a").type == pa.uint64()
    assert table["a"].to_pylist() == many
