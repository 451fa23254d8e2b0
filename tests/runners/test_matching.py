"""Rows without a key: matched by position only where nothing says that it is another one's."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import Failing, ItemFailure, JobFailed, Retry, resumable_task
from resumable_tasks.errors import BadResult
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.given import Given, own
from resumable_tasks.runners.match import match

Rows = list[dict[str, Any]]
BATCH_KEYS: dict[str, list[Any]] = {"text": ["a", "b", "c"], "numbers": [0, 1, 2]}


def batch_of(many: list[Any]) -> Batch:
    return Batch(0, many, keys.join(map(keys.canonical, many)), [{"id": key} for key in many])


def refused(rows: Any, many: list[Any], says: str) -> None:
    for returned in (rows, pa.Table.from_pylist(rows)):
        with pytest.raises(BadResult, match=says) as caught:
            match(returned, batch_of(many), KeyScheme("id"), "one")
        assert caught.value.of_shape


@pytest.mark.parametrize(
    ("many", "back", "says"),
    [
        (
            [0, 1, 2],
            ["0", "1", "2"],
            'key "0", .*an item has the key 0: return the key in that type',
        ),
        (["0", "1"], [0, 1], 'key 0, .*an item has the key "0": return'),
        (["a", "b"], ["x", "b2"], 'key "x", which is not in its batch$'),
        ([0, 1], [0.0, 1.0], "key 0.0, which is not in its batch$"),
    ],
)
def test_a_key_that_is_an_items_in_another_type_is_named(
    many: list[Any], back: list[Any], says: str
) -> None:
    refused([{"id": key, "v": 1} for key in back], many, says)


@pytest.mark.parametrize("many", BATCH_KEYS.values(), ids=BATCH_KEYS)
@pytest.mark.parametrize("name", ["ID", " id", "i d", "Id "])
def test_a_key_under_nearly_its_name_is_no_row_by_position(many: list[Any], name: str) -> None:
    refused([{name: key, "v": 1} for key in many], many, "rename it to 'id'")


@pytest.mark.parametrize("many", BATCH_KEYS.values(), ids=BATCH_KEYS)
def test_the_keys_in_another_order_are_no_rows_by_position(many: list[Any]) -> None:
    refused([{"doc": key, "v": 1} for key in reversed(many)], many, "column 'doc' .* another order")
    for same in (many, [many[0]] * 3, [True, False, True]):
        rows = [{"doc": key} for key in same]
        assert match(rows, batch_of(many), KeyScheme("id"), "one").completed == 3


def test_what_was_refused_as_a_whole_is_not_taken_in_parts(tmp_path: Path) -> None:
    """Two integers in another order may be chance, and are not where their batch was refused."""

    def job(items: Rows) -> Rows:
        answers = items if items[0]["id"] < 4 else items[::-1]
        return [{"doc": item["id"], "label": f"l{item['id']}"} for item in answers]

    task = resumable_task(job, key="id", batch_size=4, concurrency=1)
    run = task.run([{"id": n} for n in range(8)], checkpoint=tmp_path / "c")
    assert run.table(ordered=True)["label"].to_pylist() == [f"l{n}" for n in range(8)]


def test_rows_of_a_sorted_list_stand_as_it_does() -> None:
    batch = batch_of([2, 0, 1])
    given = Given(batch.items)
    given.items.sort(key=lambda item: item["id"])
    returned: list[Any] = [{"v": item["id"] * 10} for item in given.items]
    for rows in (returned, pa.Table.from_pylist(returned)):
        table = match(rows, batch, KeyScheme("id"), "one", given=given).table
        assert table is not None
        assert {row["id"]: row["v"] for row in table.to_pylist()} == {0: 0, 1: 10, 2: 20}
    returned[1] = ItemFailure(1, "no")
    found = match(returned, batch, KeyScheme("id"), "one", given=given)
    assert found.table is not None
    assert (found.completed, found.failed) == (2, [(1, "no")])
    assert found.table.to_pylist() == [{"id": 0, "v": 0}, {"id": 2, "v": 20}]


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items.clear(),
        lambda items: items.pop(),
        lambda items: items.append(items[0]),
        lambda items: items.__setitem__(0, dict(items[0])),
    ],
)
def test_rows_of_a_changed_list_are_refused_unless_they_carry_their_keys(change: Any) -> None:
    batch = batch_of([0, 1, 2])
    given = Given(batch.items)
    change(given.items)
    with pytest.raises(BadResult, match="changed its list of items") as caught:
        match([{"v": n} for n in range(3)], batch, KeyScheme("id"), "one", given=given)
    assert caught.value.of_shape
    rows = [{"id": n} for n in range(3)]
    assert match(rows, batch, KeyScheme("id"), "one", given=given).completed == 3


@dataclasses.dataclass
class Item:
    id: int
    tags: list[str]


@pytest.mark.parametrize("fields", ["id", ("id",), ("id", "part")])
@pytest.mark.parametrize("results", ["one", "many"])
def test_a_table_is_matched_to_items_of_arrow_as_to_rows(fields: Any, results: Any) -> None:
    items = pa.RecordBatch.from_pylist([{"id": f"i{n}", "part": n, "n": n} for n in range(4)])
    scheme = KeyScheme(fields)
    many = scheme.extract_all(items.to_pylist())
    lines = keys.join(map(keys.canonical, many))
    whole = pa.table({"id": items["id"], "part": items["part"], "v": [4, 5, 6, 7]})
    returned = {
        "in order": whole,
        "in another order": whole.take([1, 0, 2, 3]),
        "one left out": whole.take([0, 1, 3]),
        "one instead of another": whole.take([0, 1, 1, 3]),
        "in two chunks": pa.concat_tables([whole.take([0]), whole.take([1, 2, 3])]),
        "of another type": whole.set_column(0, "id", whole["id"].cast(pa.large_string())),
        "with a null": whole.set_column(0, "id", pa.array(["i0", None, "i2", "i3"])),
    }
    seen = set()
    for what, table in returned.items():
        found = []
        for given in (items, items.to_pylist()):
            try:
                made = match(table, Batch(0, many, lines, given), scheme, results)
                failed = [(key, str(error)) for key, error in made.failed]
                found.append((made.done, failed, made.table and made.table.to_pylist()))
            except BadResult as error:
                found.append(str(error))
        assert found[0] == found[1], what
        seen.add(str(found[0][:2]))
    assert len(seen) > 1


def test_a_handler_has_items_of_its_own() -> None:
    client = object()
    items: list[Any] = [
        {"id": 1, "deep": {"list": [{"a": 1}]}, "client": client},
        Item(2, ["x"]),
        ("a", ["b"]),
        "text",
    ]
    items[0]["self"] = items[0]
    found = own(items)
    assert found[0]["client"] is client
    assert found[0]["self"] is found[0]
    found[0]["deep"]["list"][0]["a"] = 2
    found[0].pop("id")
    found[1].tags.append("y")
    found[2][1].clear()
    assert (items[0]["id"], items[0]["deep"]) == (1, {"list": [{"a": 1}]})
    assert items[1:] == [Item(2, ["x"]), ("a", ["b"]), "text"]


def pops(items: Rows) -> Rows:
    """Changes all that it is given, and fails once with each batch, and always with item 7."""
    if any(item["tries"] for item in items):
        return []
    found = []
    while items:
        item = items.pop()
        item["tries"].append(1)
        found.append({"id": item.pop("id"), "tries": len(item["tries"])})
    if any(row["id"] == 7 for row in found):
        raise ConnectionError("503")
    return found


async def acoroutine(items: Rows) -> Rows:
    return pops(items)


@pytest.mark.parametrize("handler", [pops, acoroutine])
@pytest.mark.parametrize("runner", ["local", "processes"])
def test_what_a_handler_does_to_its_items_reaches_no_other_call(
    handler: Any, runner: Any, tmp_path: Path
) -> None:
    if handler is acoroutine and runner == "processes":
        pytest.skip("coroutines run on an event loop")
    job = resumable_task(
        handler,
        key="id",
        batch_size=5,
        retries=Retry(1, delay=0.01),
        failing=Failing(pause_after=None),
        runner=runner,
        tolerated_failures=1,
    )
    items = [{"id": n, "tries": []} for n in range(20)]
    run = job.run(items, checkpoint=tmp_path / "c")
    assert [failure.key for failure in run.failures] == [7]
    assert set(run.table()["tries"].to_pylist()) == {1}
    assert items == [{"id": n, "tries": []} for n in range(20)]


SHAPES: dict[str, Any] = {
    "too few": lambda items: [{"v": 1}] * (len(items) + 1),
    "another name": lambda items: [{"Id": item["id"]} for item in items],
    "another order": lambda items: [{"doc": item["id"]} for item in reversed(items)],
    "other keys": lambda items: [{"id": f"x{item['id']}"} for item in items],
    "keys of another type": lambda items: [{"id": str(item["id"])} for item in items],
    "text": lambda items: "text",
    "none": lambda items: None,
}


@pytest.mark.parametrize("name", SHAPES)
def test_results_of_a_wrong_shape_end_the_run_with_the_first_batches(
    name: str, tmp_path: Path
) -> None:
    calls: Counter[int] = Counter()

    def job(items: Rows) -> Any:
        calls[len(items)] += 1
        return SHAPES[name](items)

    task = resumable_task(job, key="id", batch_size=20, concurrency=1)
    with pytest.raises(JobFailed, match="no result of the handler can be matched"):
        task.run([{"id": n} for n in range(10_000)], checkpoint=tmp_path / "c")
    assert calls.total() <= 10
