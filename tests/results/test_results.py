"""Whatever a handler returns: every kind of result that is taken, or refused with a reason."""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import Failing, ItemFailure, JobFailed, resumable_task

ITEMS = [{"id": f"k{i}", "n": i} for i in range(6)]


@dataclasses.dataclass
class Row:
    id: str
    v: int


def model(**values: Any) -> Any:
    """A row of pydantic."""
    return pytest.importorskip("pydantic").create_model("Model", id=str, v=int)(**values)


RETURNS: dict[str, Callable[[list[Any]], Any]] = {
    "dicts": lambda rows: [{"id": r["id"], "v": r["n"]} for r in rows],
    "dicts in another order": lambda rows: [{"v": r["n"], "id": r["id"]} for r in reversed(rows)],
    "by position": lambda rows: [{"v": r["n"]} for r in rows],
    "tuple of dicts": lambda rows: tuple({"id": r["id"], "v": r["n"]} for r in rows),
    "generator": lambda rows: ({"id": r["id"], "v": r["n"]} for r in rows),
    "dataclasses": lambda rows: [Row(r["id"], r["n"]) for r in rows],
    "pydantic": lambda rows: [model(id=r["id"], v=r["n"]) for r in rows],
    "mixed": lambda rows: [
        model(id=r["id"], v=r["n"]) if r["n"] % 2 else {"id": r["id"], "v": r["n"]} for r in rows
    ],
    "table": lambda rows: pa.Table.from_pylist([{"id": r["id"], "v": r["n"]} for r in rows]),
    "table by position": lambda rows: pa.table({"v": [r["n"] for r in rows]}),
    "record batch": lambda rows: pa.RecordBatch.from_pylist(
        [{"id": r["id"], "v": r["n"]} for r in rows]
    ),
    "polars": lambda rows: pytest.importorskip("polars").DataFrame(
        {"id": [r["id"] for r in rows], "v": [r["n"] for r in rows]}
    ),
    "categories": lambda rows: pa.table(
        {"id": pa.array([r["id"] for r in rows]).dictionary_encode(), "v": [r["n"] for r in rows]}
    ),
}


@pytest.mark.parametrize("kind", RETURNS)
def test_what_a_handler_may_return(kind: str, place: Path) -> None:
    list(RETURNS[kind]([{"id": "a", "n": 1}]))  # passed over where a library is not there
    job = resumable_task(RETURNS[kind], name="job", key="id", batch_size=4)
    table = job.run(ITEMS, checkpoint=place).table(ordered=True)
    assert table.select(["id", "v"]).to_pylist() == [{"id": r["id"], "v": r["n"]} for r in ITEMS]
    assert table.schema.field("id").type == pa.string() or kind == "polars"


def first(rows: list[Any]) -> dict[str, Any]:
    return {"id": rows[0]["id"], "v": 1}


WRONG: dict[str, tuple[Callable[[list[Any]], Any], str]] = {
    "None": (lambda rows: None, "returned None"),
    "a number": (lambda rows: 7, "int 7"),
    "a dict": (lambda rows: {"id": 1}, "dict"),
    "a string": (lambda rows: "done", "str 'done'"),
    "too few without keys": (lambda rows: [{"v": 1}], "1 row for 3 items.*'id'"),
    "too many without keys": (lambda rows: [{"v": 1}] * 4, "4 rows for 3 items"),
    "a foreign key": (lambda rows: [{"id": "other", "v": 1}], 'key "other".*not in its batch'),
    "a key of another type": (lambda rows: [{"id": 7, "v": 1}], "key 7.*not in its batch"),
    "some rows without key": (lambda rows: [first(rows), {"v": 1}], "row 1 .* has no"),
    "not a row": (lambda rows: [1, 2, 3], "int 1.*a row is a dict"),
    "an object Arrow does not know": (
        lambda rows: [{"id": r["id"], "v": object()} for r in rows],
        "column 'v'.*object",
    ),
    "a field that is no string": (lambda rows: [{"id": r["id"], 7: 1} for r in rows], "named 7"),
    "a table of the wrong length": (lambda rows: pa.table({"v": [1]}), "1 rows for 3 items"),
    "a failure of another item": (lambda rows: [ItemFailure("other", "no")], "ItemFailure.*other"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_result_is_named_nothing_is_lost_and_the_next_run_goes_on(
    wrong: str, place: Path
) -> None:
    returns, says = WRONG[wrong]
    good = RETURNS["dicts"]
    broken = resumable_task(
        lambda rows: returns(rows) if rows[0]["id"] == "k3" else good(rows),
        name="job",
        key="id",
        batch_size=3,
        failing=Failing(isolate=False),
    )
    with pytest.raises(JobFailed, match=f"BadResult: .*{says}") as caught:
        broken.run(ITEMS, checkpoint=place)
    result = caught.value.result
    assert result is not None
    assert (result.completed, result.failed) == (3, 3)
    assert {failure.key for failure in result.failures} == {"k3", "k4", "k5"}
    fixed = resumable_task(good, name="job", key="id", batch_size=2).run(ITEMS, checkpoint=place)
    assert (fixed.completed, fixed.skipped) == (3, 3)
    assert fixed.table(ordered=True).column("id").to_pylist() == [i["id"] for i in ITEMS]


STRAYS: dict[str, tuple[Callable[[list[Any]], list[Any]], str, int, int]] = {
    "a row of a foreign key": (
        lambda rows: [{**row, "id": "other"} if row["id"] == "k4" else row for row in rows],
        'has key "other", which is not in its batch',
        *(1, 0),
    ),
    "one more row than items": (
        lambda rows: [*rows, {"id": "other"}] if rows[0]["id"] == "k3" else rows,
        "",
        *(0, 0),
    ),
    "a key twice": (
        lambda rows: [*rows, {"id": "k4"}] if rows[0]["id"] == "k3" else rows,
        'rows 1 and 3 .* have the same key "k4"',
        *(0, 1),
    ),
    "a row and a failure": (
        lambda rows: [*rows, ItemFailure("k4", "no")] if rows[0]["id"] == "k3" else rows,
        'a row and an ItemFailure for key "k4"',
        *(1, 0),
    ),
    "a failure of another item": (
        lambda rows: [ItemFailure("other", "no") if r["id"] == "k4" else r for r in rows],
        'key "other", which is not in its batch',
        *(1, 0),
    ),
}


@pytest.mark.parametrize("kind", STRAYS)
@pytest.mark.parametrize("arrow", [False, True])
def test_rows_that_are_not_of_one_item_cost_their_neighbours_nothing(
    kind: str, arrow: bool, place: Path
) -> None:
    returns, says, failed, parked = STRAYS[kind]
    paid: Counter[str] = Counter()

    def job(rows: list[dict[str, Any]]) -> Any:
        paid.update(row["id"] for row in rows)
        found = returns([{"id": row["id"], "n": row["n"]} for row in rows])
        if arrow and not any(isinstance(row, ItemFailure) for row in found):
            return pa.Table.from_pylist(found)
        return found

    task = resumable_task(job, name="job", key="id", batch_size=3, tolerated_failures=1)
    result = task.run(ITEMS, checkpoint=place)
    counts = (result.completed, result.failed, result.parked)
    assert counts == (6 - failed - parked, failed, parked)
    # One that has no row is looked for once more, alone.
    again = failed if kind != "a row and a failure" else 0
    assert paid == Counter({row["id"]: 1 for row in ITEMS}) + Counter({"k4": again})
    with contextlib.nullcontext() if not says else pytest.raises(JobFailed, match=says):
        result.raise_for_failures()
    assert sorted(result.table()["id"].to_pylist()) == [
        row["id"] for row in ITEMS if row["id"] != "k4" or not (failed or parked)
    ]
    if kind == "a key twice":
        assert [row["id"] for row in result.parked_items[0].rows or ()] == ["k4", "k4"]


def test_a_foreign_row_among_many_is_an_error_since_any_item_may_lack_it(place: Path) -> None:
    task = resumable_task(
        lambda rows: [*rows, {"id": "other"}] if len(rows) > 1 else rows,
        name="job",
        key="id",
        results="many",
        batch_size=3,
        failing=Failing(isolate=False),
    )
    with pytest.raises(JobFailed, match='has key "other", which is not in its batch') as caught:
        task.run(ITEMS, checkpoint=place)
    assert caught.value.result is not None
    assert caught.value.result.failed == 6


def test_of_three_types_in_one_column_those_that_do_not_fit_are_parked(place: Path) -> None:
    calls = []

    def job(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append(len(rows))
        return [{"id": r["id"], "v": ["x", 1, b"y"][r["n"] % 3]} for r in rows]

    task = resumable_task(job, name="job", key="id", batch_size=3, concurrency=1)
    with pytest.raises(JobFailed, match=r"column 'v' .* no type holds both") as caught:
        task.run(ITEMS, checkpoint=place)
    result = caught.value.result
    assert result is not None
    assert (result.completed, result.parked, result.failed, len(calls)) == (2, 4, 0, 2)
    assert len({type(v) for v in result.table().column("v").to_pylist()}) == 1


def test_an_item_that_was_left_out_has_failed_and_its_neighbours_have_not(place: Path) -> None:
    job = resumable_task(
        lambda rows: [{"id": r["id"]} for r in rows if r["n"] != 4], name="job", key="id"
    )
    with pytest.raises(JobFailed, match="MissingResult") as caught:
        job.run(ITEMS, checkpoint=place)
    assert [f.key for f in caught.value.result.failures] == ["k4"]
    assert caught.value.result.completed == 5


def test_a_handler_can_fail_single_items(place: Path) -> None:
    @resumable_task(key="id")
    def job(rows: list[Any]) -> list[Any]:
        return [ItemFailure(r["id"], ValueError("odd")) if r["n"] % 2 else r for r in rows]

    with pytest.raises(JobFailed, match=r"3 × ValueError: odd") as caught:
        job.run(ITEMS, checkpoint=place)
    assert caught.value.result.table(ordered=True).column("n").to_pylist() == [0, 2, 4]


def test_single_failures_by_position(place: Path) -> None:
    @resumable_task(key="id")
    def job(rows: list[Any]) -> list[Any]:
        return [ItemFailure(r["id"], "odd") if r["n"] % 2 else {"v": r["n"]} for r in rows]

    with pytest.raises(JobFailed) as caught:
        job.run(ITEMS, checkpoint=place)
    assert caught.value.result.table(ordered=True).to_pylist() == [
        {"id": f"k{i}", "v": i} for i in (0, 2, 4)
    ]


def test_many_results_an_item_are_matched_by_key(place: Path) -> None:
    @resumable_task(key="id", results="many", batch_size=2)
    def job(rows: list[Any]) -> list[Any]:
        return [{"id": r["id"], "part": part} for r in rows for part in range(r["n"])]

    result = job.run(ITEMS, checkpoint=place)
    assert result.completed == 6  # k0 too, which has no row
    assert result.table().num_rows == sum(range(6))
    assert job.run(ITEMS, checkpoint=place).skipped == 6


def test_many_results_need_keys(place: Path) -> None:
    job = resumable_task(
        lambda rows: [{"v": 1} for _ in rows], name="job", key="id", results="many"
    )
    with pytest.raises(JobFailed, match="add the key"):
        job.run(ITEMS, checkpoint=place)


def test_completion_only(place: Path) -> None:
    job = resumable_task(lambda rows: None, name="job", key="id", results="none")
    result = job.run(ITEMS, checkpoint=place)
    assert (result.completed, result.table().num_rows) == (6, 0)
    assert result.dataset().count_rows() == 0
    assert not list((place / "shards").iterdir())
    keeps = resumable_task(lambda rows: rows, name="job", key="id", results="none")
    with pytest.raises(JobFailed, match="discard it"):
        keeps.run([*ITEMS, {"id": "new"}], checkpoint=place)


def test_rows_may_have_fields_that_others_lack(place: Path) -> None:
    def returns(rows: list[Any]) -> list[Any]:
        return [{"id": r["id"], **({"odd": True} if r["n"] % 2 else {"even": 1.5})} for r in rows]

    table = (
        resumable_task(returns, name="job", key="id", batch_size=4)
        .run(ITEMS, checkpoint=place)
        .table(ordered=True)
    )
    assert table.column("odd").to_pylist() == [None, True, None, True, None, True]
    assert table.column("even").to_pylist() == [1.5, None, 1.5, None, 1.5, None]
