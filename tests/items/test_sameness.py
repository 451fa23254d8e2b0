"""Items that are completed under another name are noticed before they are handled again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import InvalidItems, InvalidKey, JobFailed, ResumableTask, resumable_task
from resumable_tasks.items.sameness import retyped

Make = Callable[[list[dict[str, Any]]], Any]


def job(**options: Any) -> tuple[ResumableTask[Any], list[Any]]:
    handled: list[Any] = []

    def work(items: Any) -> None:
        handled.extend(items)

    options = {"key": "id", "results": "none", "batch_format": "rows", **options}
    return resumable_task(work, **options), handled


def rows(ids: Iterable[Any]) -> list[dict[str, Any]]:
    return [{"id": id_} for id_ in ids]


@pytest.mark.parametrize(
    ("line", "others"),
    [
        (b"5", {b'"5"'}),
        (b'"5"', {b"5"}),
        (b"-5", {b'"-5"'}),
        (b'"007"', set()),
        (b'"-0"', set()),
        (b'"x"', set()),
        (b'"99999999999999999999"', set()),
        (b'["eu",5]', {b'["eu","5"]'}),
        (b'["eu","5"]', {b'["eu",5]'}),
        (b'["1",5]', {b"[1,5]", b'["1","5"]'}),
    ],
)
def test_a_key_has_these_twins_of_another_type(line: bytes, others: set[bytes]) -> None:
    assert retyped(line) == others


@pytest.mark.parametrize("make", [list, tuple, iter, pa.Table.from_pylist])
@pytest.mark.parametrize(("before", "now"), [(int, str), (str, int)])
def test_ids_of_another_type_cost_nothing(
    tmp_path: Path, make: Make, before: type, now: type
) -> None:
    task, handled = job(batch_size=7)
    task.run(make(rows(map(before, range(500)))), checkpoint=tmp_path / "c")
    handled.clear()
    for dry_run in (True, False):
        with pytest.raises(InvalidItems, match=r"changed their type: an item now has key .*0"):
            task.run(make(rows(map(now, range(500)))), checkpoint=tmp_path / "c", dry_run=dry_run)
    assert handled == []
    assert task.run(make(rows(map(before, range(501)))), checkpoint=tmp_path / "c").completed == 1


def test_new_items_that_come_first_hide_nothing(tmp_path: Path) -> None:
    task, handled = job()
    task.run(rows(range(500)), checkpoint=tmp_path / "c")
    handled.clear()
    with pytest.raises(InvalidItems, match="changed their type"):
        task.run(rows(map(str, range(600, -1, -1))), checkpoint=tmp_path / "c")
    assert handled == []


def test_a_part_of_a_composite_key_counts_too(tmp_path: Path) -> None:
    task, handled = job(key=("shop", "id"))
    task.run([{"shop": "eu", "id": n} for n in range(9)], checkpoint=tmp_path / "c")
    handled.clear()
    with pytest.raises(InvalidItems, match=r'an item now has key .*"eu","0"'):
        task.run([{"shop": "eu", "id": str(n)} for n in range(9)], checkpoint=tmp_path / "c")
    assert handled == []


def test_keys_of_both_types_are_items_of_their_own(tmp_path: Path) -> None:
    task, _ = job(batch_size=2)
    mixed = rows([1, "1", 2, "2", "x"])
    assert task.run(mixed[:3], checkpoint=tmp_path / "c").completed == 3
    assert task.run(mixed, checkpoint=tmp_path / "c").completed == 2
    assert task.run(rows(["9", 9]), checkpoint=tmp_path / "c").completed == 2


def test_a_sample_finds_no_fault_before_its_item(tmp_path: Path) -> None:
    task, handled = job(batch_size=1, key=lambda item: item["id"])
    task.run(rows([0]), checkpoint=tmp_path / "c")
    strict = task.with_options(on_bad_item="error")
    with pytest.raises(InvalidKey, match="item 2: the key is None"):
        strict.run(iter(rows([0, 1, None])), checkpoint=tmp_path / "c")
    with pytest.raises(JobFailed, match="item 2: key= raised KeyError: 'id'"):
        task.run(iter([*rows([0, 2]), {}]), checkpoint=tmp_path / "c")
    assert handled == rows([0, 1, 2])


@pytest.mark.parametrize("make", [list, iter, pa.Table.from_pylist])
@pytest.mark.parametrize(
    ("before", "now"), [("lesson-{}".format, int), (int, "lesson-{}".format)], ids=["text", "ints"]
)
def test_keys_that_no_row_could_stand_beside_the_others_with_cost_nothing(
    tmp_path: Path, make: Make, before: Any, now: Any
) -> None:
    """The column of the key has one type, and the new keys are no twins of the old ones."""
    answers = resumable_task(lambda items: [{"id": i["id"]} for i in items], name="work", key="id")
    answers.run(rows(map(before, range(50))), checkpoint=tmp_path / "c")
    task, handled = job(results="one", name="work")
    with pytest.raises(InvalidItems, match="column 'id' of the results holds"):
        task.run(make(rows(map(now, range(50)))), checkpoint=tmp_path / "c")
    assert not handled
    # Where one of them is known, the others may be what they like.
    assert answers.run(rows([before(1), before(60)]), checkpoint=tmp_path / "c").skipped == 1
