"""Completed keys are passed over as if each were looked up, in whatever order they come."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from resumable_tasks.errors import DuplicateKey
from resumable_tasks.items import ahead, keys, walk
from resumable_tasks.items.fingerprints import Changes, digest
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.items.plan import Planner, Planning
from resumable_tasks.items.walk import Match, Walk
from tests.proof.properties import strategies


class Small(KeyTable):
    __slots__ = ()
    _HOT = 7


@pytest.fixture(autouse=True, scope="module")
def small() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "_MOST_AT_ONCE", 8)
        patch.setattr(ahead, "MOST_OF_ARROW", 8)
        patch.setattr(ahead, "_PIECE", 3)
        patch.setattr(walk, "_NEAR", 20)
        patch.setattr(walk, "_FAR", 40)
        patch.setattr(walk, "_GAPS", 2)
        patch.setattr(walk, "_JUDGED", 30)
        yield


names = st.one_of(
    st.integers(-3, 60),
    strategies.one_of_these(
        [*(f"s{n}" for n in range(30)), "k" * 78, "k" * 79, "k" * 200, 'a"b', "a\nb"]
    ),
)
key_lists = st.lists(names, unique_by=keys.canonical, max_size=60)


@st.composite
def nearly_sorted(draw: st.DrawFn, many: list[Any]) -> list[Any]:
    """In the order of batches that were committed as they ended; or in none."""
    size, reach = draw(st.integers(1, 9)), draw(st.sampled_from([0, 2, 1_000]))
    batches = [many[at : at + size] for at in range(0, len(many), size)]
    places = [(at + draw(st.integers(0, reach)), at) for at in range(len(batches))]
    return [key for _, at in sorted(places) for key in batches[at]]


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Any], KeyTable, dict[bytes, int]]:
    """Keys of items; a table in which some of them are, and others; and what it is to hold."""
    many = draw(key_lists)
    left_out = draw(st.sets(st.sampled_from(many), max_size=5)) if many else set()
    done = [keys.canonical(key) for key in draw(nearly_sorted(many)) if key not in left_out]
    others = [keys.canonical(f"other {n}") for n in range(draw(st.integers(0, 5)))]
    table, model = Small(), {}
    numbers = draw(st.sampled_from([[-1], [-1, -1, 7, 8]]))
    for line in draw(st.permutations(others))[:3] + done:
        number = draw(st.sampled_from(numbers))
        table.add_lines(line, [number])
        model[line] = number
    for line in draw(st.sets(st.sampled_from(sorted(model)), max_size=4)) if model else ():
        table.remove(line)
        del model[line]
    return many, table, model


def places(match: Match, table: KeyTable) -> dict[int, bytes]:
    """The entries of the block that were found for each index."""
    found = {}
    for at, count, start, end in match.stretches:
        lines = bytes(table.block[start : end - 1]).split(b"\n")
        assert len(lines) == count
        found |= {at + step: line for step, line in enumerate(lines)}
    for at, start in enumerate(match.places):
        found[at] = bytes(table.block[start : table.block.index(b"\n", start)])
    return found


@given(cases(), st.integers(1, 20), st.booleans(), st.sampled_from([-1, 7]), st.booleans())
def test_what_is_found_is_what_is_there(case, size, numbered, number, ordered) -> None:
    many, table, model = case
    here = Walk(table)
    here._ordered = ordered
    lines = [keys.canonical(key) for key in many]
    for first in range(0, len(lines), size):
        chunk = lines[first : first + size]
        match = here.match(chunk, [number] * len(chunk) if numbered else None)
        wanted = number if numbered else -1
        short = keys_short(chunk)
        same = {at for at, line in enumerate(chunk) if model.get(line) == wanted}
        found = places(match, table)
        assert found.keys() == same
        for at, entry in found.items():
            assert entry.partition(b"\t")[0] == short[at]
        assert {at for at, _ in match.others} == set(range(len(chunk))) - same
        for at, place in match.others:
            assert (place > 0) is (chunk[at] in model)
        # All that came has its mark, once.
        assert here.take_each(match, first, chunk) == []
        assert sorted(here.take_each(match, first, chunk)) == sorted(
            at for at, line in enumerate(chunk) if line in model
        )
    assert here.count == sum(line in model for line in lines)
    came = {
        line: first + at for first, text in here.came() for at, line in enumerate(text.split(b"\n"))
    }
    assert came == {line: at for at, line in enumerate(keys_short(lines)) if lines[at] in model}
    for line in [*lines, *model]:
        assert (line in here) is (line in lines and line in model)


def keys_short(lines: list[bytes]) -> list[bytes]:
    from resumable_tasks.items.keytable import shortened

    return list(shortened(lines))


@given(cases(), st.integers(1, 4), st.data())
def test_a_run_plans_what_is_missing(case, size, data) -> None:
    many, table, model = case
    items = [{"id": key, "n": at} for at, key in enumerate(many)]
    source: Any = data.draw(st.sampled_from([items, iter(items), tuple(items)]))
    planner = Planner(Planning("id", size), table)
    handled = [key for batch in planner.batches(source) for key in batch.keys]
    assert handled == [key for key in many if keys.canonical(key) not in model]
    assert (planner.total, planner.skipped) == (len(many), len(many) - len(handled))
    for position, key in enumerate(many):
        assert planner.seen.get(keys.canonical(key)) == position


@given(cases(), st.integers(1, 4), st.booleans())
def test_rows_of_arrow_as_well(case, size, composite) -> None:
    _, _, model = case
    many = list(dict.fromkeys([*model, *map(keys.canonical, (f"s{n}" for n in range(20)))]))
    many = [key for key in map(keys.parse, many) if isinstance(key, str)]
    table = Small()
    for line in model:
        key = keys.parse(line)
        if isinstance(key, str):
            table.add_lines(keys.canonical((key, 7)) if composite else line)
    items = pa.table({"id": many, "n": [7] * len(many)})
    planner = Planner(Planning(("id", "n") if composite else "id", size), table)
    handled = [key for batch in planner.batches(items) for key in batch.keys]
    missing = [key for key in many if keys.canonical(key) not in model]
    assert handled == ([(key, 7) for key in missing] if composite else missing)
    assert planner.skipped == len(many) - len(missing)


@given(cases(), st.integers(1, 4), st.data())
def test_a_second_item_is_found_wherever_the_first_was(case, size, data) -> None:
    many, table, model = case
    if not many:
        return
    again = data.draw(st.integers(0, len(many) - 1))
    at = data.draw(st.integers(again + 1, len(many)))
    ids = [*many[:at], many[again], *many[at:]]
    with pytest.raises(DuplicateKey, match=f"items {again} and {at} have"):
        list(Planner(Planning("id", size), table).batches(iter([{"id": key} for key in ids])))
    planner = Planner(Planning("id", size, on_duplicate="skip"), table)
    handled = [key for batch in planner.batches([{"id": key} for key in ids]) for key in batch.keys]
    assert handled == [key for key in many if keys.canonical(key) not in model]
    assert planner.duplicates == 1
    assert planner.skipped == len(many) - len(handled)


@given(cases(), st.integers(1, 4), st.data())
def test_items_that_changed_are_handled_again(case, size, data) -> None:
    many, _, model = case
    table, stored = Small(), {}
    for line in model:
        stored[line] = data.draw(st.sampled_from([-1, digest("a"), digest("b")]))
        table.add_lines(line, [stored[line]])
    items = [{"id": key, "etag": "a"} for key in many]
    planner = Planner(Planning("id", size, changes=Changes(by="etag")), table)
    handled = [key for batch in planner.batches(items) for key in batch.keys]
    lines = {keys.canonical(key): key for key in many}
    assert handled == [
        key for line, key in lines.items() if stored.get(line, digest("b")) == digest("b")
    ]
    adopted = planner.adopted.lines.split(b"\n") if planner.adopted.lines else []
    assert adopted == [line for line in lines if stored.get(line) == -1]


@given(cases(), st.integers(1, 9), st.data())
def test_of_items_with_one_key_the_first_counts(case, size, data) -> None:
    many, _, model = case
    etags = st.sampled_from("ab")
    stored = {line: digest(data.draw(etags)) for line in model}
    table = Small()
    for line in model:
        table.add_lines(line, [stored[line]])
    items = [{"id": key, "etag": data.draw(etags)} for key in many]
    for _ in range(data.draw(st.integers(1, 3)) if items else 0):
        at = data.draw(st.integers(0, len(items)))
        items.insert(at, {"id": data.draw(st.sampled_from(many)), "etag": data.draw(etags)})
    first = {keys.canonical(item["id"]): item for item in reversed(items)}
    changes = Changes(by="etag")
    planner = Planner(Planning("id", size, on_duplicate="skip", changes=changes), table)
    handled = [item for batch in planner.batches(items) for item in batch.items]
    each = [(at, keys.canonical(item["id"]), item) for at, item in enumerate(items)]
    each = [(at, line, item) for at, line, item in each if item is first[line]]
    assert handled == [i for _, line, i in each if stored.get(line) != digest(i["etag"])]
    assert planner.duplicates == len(items) - len(first)
    for at, line, _ in each:
        assert planner.seen.get(line) == at


def test_one_that_came_before_leaves_no_mark_on_those_that_come_with_it() -> None:
    table = KeyTable()
    a, b, c = map(keys.canonical, "abc")
    table.add_lines(keys.join([a, b, c]))
    here = Walk(table)
    here._ordered = False  # each is looked up
    assert here.take_each(here.match([b]), 0, [b]) == []
    assert here.take_each(here.match([c, b, a]), 1, [c, b, a]) == [1]
    assert here.count == 3
    assert {line: at for at, line in here.came()} == {b: 0, c: 1, a: 3}


def test_a_slow_source_is_not_read_far_ahead() -> None:
    """What it has given is handled while the next item is waited for."""
    table = Small()
    for n in range(100):
        table.add_lines(keys.canonical(n))
    asked: list[int] = []

    def source() -> Iterator[dict[str, int]]:
        for n in range(104):
            asked.append(n)
            yield {"id": n}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ahead, "monotonic", lambda: float(len(asked)))
        batches = Planner(Planning("id", 2), table).batches(source())
        assert [batch.keys for batch in batches] == [[100, 101], [102, 103]]
        asked.clear()
        batches = Planner(Planning("id", 2), table).batches(source())
        assert next(batches).keys == [100, 101]
        assert len(asked) <= 100 + 4


def test_what_a_source_raises_comes_behind_its_items() -> None:
    table = Small()
    table.add_lines(keys.canonical(0))

    def source() -> Iterator[dict[str, int]]:
        for n in range(5):
            yield {"id": n}
        raise OSError("gone")

    batches = Planner(Planning("id", 2), table).batches(source())
    assert [next(batches).keys for _ in range(2)] == [[1, 2], [3, 4]]
    with pytest.raises(OSError, match="gone"):
        next(batches)


def test_few_completed_keys_beside_many_longer_ones() -> None:
    table = Small()
    table.add_lines(keys.canonical("a"))
    items = [{"id": f"{n:060d}"} for n in range(200)]
    planner = Planner(Planning("id", 10), table)
    assert sum(map(len, planner.batches(iter(items)))) == 200


def test_items_in_order_make_no_index_of_keys_that_are_still_to_be_loaded() -> None:
    lines = b"".join(b'"item-%06d"\n' % n for n in range(5_000))
    done = KeyTable(5_000, lambda: bytearray(b"\n" + lines))
    planner = Planner(Planning("id", 100), done)
    assert not list(planner.batches({"id": f"item-{n:06d}"} for n in range(5_000)))
    assert planner.skipped == 5_000
    assert not done.indexed
