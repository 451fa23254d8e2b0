"""Whatever a user iterates over: every kind of item and key that is taken, or refused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import pytest

from resumable_tasks import DuplicateKey, InvalidItems, InvalidKey, UsageError, resumable_task
from resumable_tasks.items import keys
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.items.plan import Planner, Planning


@dataclasses.dataclass
class Lesson:
    id: int
    text: str


def model(**values: Any) -> Any:
    """An item of pydantic."""
    return pytest.importorskip("pydantic").create_model("Model", id=int, text=str)(**values)


TABLE = pa.table({"id": list(range(25)), "text": [f"t{i}" for i in range(25)]})
SOURCES: dict[str, Callable[[Path], Any]] = {
    "table": lambda _: TABLE,
    "chunked table": lambda _: pa.concat_tables([TABLE.slice(0, 7), TABLE.slice(7)]),
    "record batch": lambda _: TABLE.to_batches()[0],
    "reader": lambda _: pa.RecordBatchReader.from_batches(TABLE.schema, TABLE.to_batches(4)),
    "polars": lambda _: pytest.importorskip("polars").from_arrow(TABLE),
    "dataset": lambda path: _dataset(path),
}


def _dataset(path: Path) -> Any:
    if not (path / "source").exists():
        pyarrow.dataset.write_dataset(TABLE, path / "source", format="parquet")
    return pyarrow.dataset.dataset(path / "source")


@pytest.mark.parametrize("source", SOURCES)
def test_arrow_in_means_arrow_to_the_handler(source: str, place: Path, tmp_path: Path) -> None:
    seen: list[int] = []

    @resumable_task(key="id", batch_size=10, concurrency=1)
    def upper(batch: pa.RecordBatch) -> pa.Table:
        assert isinstance(batch, pa.RecordBatch)
        seen.append(batch.num_rows)
        texts = [text.upper() for text in batch.column("text").to_pylist()]
        return pa.table({"id": batch.column("id"), "upper": texts})

    result = upper.run(SOURCES[source](tmp_path), checkpoint=place)
    assert (result.total, result.completed) == (25, 25)
    assert seen == [10, 10, 5]
    table = result.table(ordered=True)
    assert table.column("id").to_pylist() == list(range(25))
    assert table.column("upper").to_pylist() == [f"T{i}" for i in range(25)]
    again = upper.run(SOURCES[source](tmp_path), checkpoint=place)
    assert (again.completed, again.skipped) == (0, 25)


def test_arrow_items_are_resumed_in_the_middle_of_batches(place: Path) -> None:
    @resumable_task(key="id", batch_size=10)
    def echo(batch: Any) -> Any:
        return batch

    echo.run(TABLE.take([1, 2, 3, 11, 24]), checkpoint=place)
    result = echo.run(TABLE, checkpoint=place)
    assert (result.completed, result.skipped) == (20, 5)
    assert sorted(result.table().column("id").to_pylist()) == list(range(25))


def test_the_handler_can_ask_for_rows_or_for_arrow(place: Path, tmp_path: Path) -> None:
    @resumable_task(key="id", batch_format="rows")
    def rows(batch: Any) -> Any:
        assert all(isinstance(row, dict) for row in batch)
        return batch

    @resumable_task(key="id", batch_format="arrow")
    def arrow(batch: Any) -> Any:
        assert isinstance(batch, pa.RecordBatch)
        return batch

    assert rows.run(TABLE, checkpoint=place).completed == 25
    assert arrow.run(TABLE.to_pylist(), checkpoint=tmp_path / "other").completed == 25
    with pytest.raises(InvalidItems, match="batch_format"):
        arrow.run([Lesson(1, "a")], checkpoint=tmp_path / "third")


@pytest.mark.parametrize("kind", [Lesson, model], ids=["dataclass", "pydantic"])
def test_items_may_be_objects_with_fields(kind: Any, place: Path) -> None:
    @resumable_task(key="id", batch_size=2)
    def echo(items: list[Any]) -> list[Any]:
        assert not any(isinstance(item, dict) for item in items)
        return items

    result = echo.run([kind(id=i, text=str(i)) for i in range(5)], checkpoint=place)
    assert result.table(ordered=True).to_pylist() == [{"id": i, "text": str(i)} for i in range(5)]


def test_strings_and_integers_are_their_own_keys(place: Path, tmp_path: Path) -> None:
    @resumable_task
    def length(items: list[Any]) -> list[dict[str, Any]]:
        return [{"n": len(str(item))} for item in items]

    result = length.run(["a", "bb", "ccc"], checkpoint=place)
    assert result.table(ordered=True).to_pylist() == [
        {"key": "a", "n": 1},
        {"key": "bb", "n": 2},
        {"key": "ccc", "n": 3},
    ]
    assert length.run(range(100, 103), checkpoint=tmp_path / "ints").completed == 3


def test_one_and_the_string_1_are_different_items(place: Path) -> None:
    job = resumable_task(lambda items: None, name="job", results="none")
    assert job.run([1, "1"], checkpoint=place).completed == 2
    assert job.run(["1", 1, "2"], checkpoint=place).completed == 1


def test_composite_keys_stand_in_their_columns(place: Path) -> None:
    @resumable_task(key=("book", "page"))
    def words(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"book": i["book"], "page": i["page"], "words": 7} for i in items]

    items = [{"book": b, "page": p} for b in "xy" for p in range(3)]
    result = words.run(items, checkpoint=place)
    assert result.table(ordered=True).select(["book", "page"]).to_pylist() == items
    assert next(result.completed_keys()) == ("x", 0)
    assert words.run(items, checkpoint=place).skipped == 6


def test_a_callable_key_names_a_column_key(place: Path) -> None:
    def both(item: dict[str, Any]) -> tuple[str, int]:
        return item["a"], item["b"]

    @resumable_task(key=both)
    def job(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"sum": len(i["a"]) + i["b"]} for i in items]

    result = job.run([{"a": "z", "b": 1}, {"a": "y", "b": 2}], checkpoint=place)
    assert result.table(ordered=True).to_pylist() == [
        {"key": '["z",1]', "sum": 2},
        {"key": '["y",2]', "sum": 3},
    ]


NASTY = ["", "a\nb", 'q"uo\\te', "\u2028", "\x00", "\x7f", "🎈", "ß" * 5_000, "é", "e\u0301", "\t"]


def test_any_text_survives_as_a_key(place: Path) -> None:
    keys = NASTY[1:]
    job = resumable_task(lambda items: [{"n": len(i)} for i in items], name="job", batch_size=3)
    result = job.run(keys, checkpoint=place)
    assert sorted(result.completed_keys()) == sorted(keys)  # four threads: in any order
    assert result.table(ordered=True).column("key").to_pylist() == keys
    assert job.run(keys, checkpoint=place).skipped == len(keys)


REFUSED: list[tuple[Any, str]] = [
    (None, "None"),
    (1.5, "float"),
    ("", "empty"),
    (True, "boolean"),
    ([1], "list"),
    ({1}, "set"),
    (b"x", "bytes"),
    ((), "empty tuple"),
    (("a", ("b",)), "nests"),
    (("a", None), "None"),
    (2**64, "64 bits"),
    (10**5_000, "64 bits"),
    ("\ud800", "surrogate"),
    ("x" * 70_000, "70,002 bytes"),
]


@pytest.mark.parametrize(("key", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_a_key_that_cannot_be_one_is_refused_with_its_position(
    key: Any, says: str, place: Path
) -> None:
    options: Any = {"key": "id", "results": "none", "batch_size": 2, "on_bad_item": "error"}
    job = resumable_task(lambda items: None, name="job", **options)
    items = [{"id": i} for i in range(5)] + [{"id": key}] + [{"id": 99}]
    with pytest.raises(InvalidKey, match=f"item 5: .*{says}"):
        job.run(iter(items), checkpoint=place)
    # What came before it in whole batches is done and safe.
    assert job.run([{"id": i} for i in range(5)], checkpoint=place).skipped == 4


def test_an_item_without_the_field_says_which_and_what_it_has(place: Path) -> None:
    job = resumable_task(lambda items: None, name="job", key="id", results="none")
    with pytest.raises(InvalidKey, match=r"item 1: .*'id'.*'uid'"):
        job.run([{"id": 1}, {"uid": 2}], checkpoint=place)
    with pytest.raises(InvalidKey, match=r"no column 'id'.*uid"):
        job.run(pa.table({"uid": [1]}), checkpoint=place)


def test_a_duplicate_key_names_both_positions_or_is_skipped(place: Path, tmp_path: Path) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=4)
    items = [{"id": i, "n": i} for i in range(10)] + [{"id": 3, "n": 100}]
    with pytest.raises(DuplicateKey, match="items 3 and 10 have the same key 3"):
        job.run(items, checkpoint=place)
    with pytest.raises(DuplicateKey, match="items 3 and 10"):
        job.run(iter(items), checkpoint=place)
    result = job.with_options(on_duplicate="skip").run(items, checkpoint=tmp_path / "skip")
    assert (result.total, result.completed, result.duplicates) == (11, 10, 1)
    assert result.table(ordered=True).column("n").to_pylist() == list(range(10))


@pytest.mark.parametrize(
    ("items", "says"),
    [("abc", "character by character"), ({"a": 1}, "mapping"), (7, "iterated"), (None, "iterated")],
)
def test_what_is_no_collection_of_items_is_refused(items: Any, says: str, place: Path) -> None:
    job = resumable_task(lambda items: None, name="job", results="none")
    with pytest.raises(InvalidItems, match=says):
        job.run(items, checkpoint=place)


def test_dicts_without_key_are_told_to_name_one(place: Path) -> None:
    job = resumable_task(lambda items: None, name="job", results="none")
    with pytest.raises(InvalidKey, match='key="id"'):
        job.run([{"id": 1}], checkpoint=place)


def test_an_error_of_the_items_keeps_what_was_done(place: Path) -> None:
    def items() -> Any:
        yield from ({"id": i} for i in range(25))
        raise ConnectionError("the source broke")

    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=10)
    with pytest.raises(ConnectionError, match="the source broke"):
        job.run(items(), checkpoint=place)
    assert job.run([{"id": i} for i in range(25)], checkpoint=place).skipped == 20


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"key": 7}, "key=7"),
        ({"key": ()}, "key="),
        ({"key": ("a", "a")}, "twice"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": True}, "batch_size"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"results": "some"}, "results"),
        ({"runner": "dask"}, "runner"),
        ({"name": "a/b"}, "name="),
        ({"tolerated_failures": -1}, "tolerated_failures"),
        ({"tolerated_failures": 1.5}, "tolerated_failures"),
        ({"grace_seconds": -1}, "grace_seconds"),
        ({"batchsize": 5}, "no option batchsize=: did you mean batch_size="),
    ],
)
def test_a_wrong_option_is_refused_when_it_is_given(options: dict[str, Any], says: str) -> None:
    options.setdefault("name", "job")
    with pytest.raises(UsageError, match=says):
        resumable_task(lambda rows: rows, **options)


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(UsageError, match="Give name="):
        resumable_task(lambda rows: rows)


@pytest.mark.parametrize("size", [1, 7, 300, 999, 1_000, 1_001, 4_000])
def test_items_that_are_all_there_are_planned_as_those_that_come_one_by_one(size: int) -> None:
    items = [{"id": f"k{at % 2_500}", "at": at} for at in range(3_000)]
    table = pa.Table.from_pylist(items)

    def planned(given: Any, known: int) -> tuple[list[Any], int, int]:
        done = KeyTable()
        done.add_lines(keys.join([keys.canonical(f"k{at}") for at in range(0, 2_500, known)]))
        planner = Planner(Planning("id", size, on_duplicate="skip"), done)
        found = [
            (batch.keys, batch.lines, [row["at"] for row in to_rows(batch.items)])
            for batch in planner.batches(given)
        ]
        return found, planner.skipped, planner.duplicates

    def to_rows(items: Any) -> Any:
        return items if isinstance(items, list) else items.to_pylist()

    for known in (2, 3_000):
        wanted = planned(iter(items), known)
        assert planned(items, known) == planned(table, known) == wanted
        assert all(len(batch[0]) == size for batch in wanted[0][:-1])
