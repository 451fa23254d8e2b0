"""One item without a usable key, or with that of another, costs that item alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import DuplicateKey, InvalidKey, JobFailed, UsageError, resumable_task

BAD = [None, "", "caf\udce9.txt", float("nan"), True]


class Job:
    def __init__(self, **options: Any) -> None:
        self.handled: list[Any] = []
        self._task = resumable_task(self._handle, name="job", key="id", batch_size=10, **options)

    def _handle(self, rows: Any) -> Any:
        rows = rows if isinstance(rows, list) else rows.to_pylist()
        self.handled += [row["id"] for row in rows]
        return [{"id": row["id"]} for row in rows]

    def run(self, items: Any, place: Path) -> Any:
        return self._task.run(items, checkpoint=place)


def with_key(key: Any, at: int = 50, count: int = 100) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = [{"id": f"d{number}"} for number in range(count)]
    items.insert(at, {"id": key})
    return items


@pytest.mark.parametrize("key", BAD, ids=repr)
@pytest.mark.parametrize("kind", [list, iter], ids=["list", "generator"])
@pytest.mark.parametrize("options", [{}, {"on_bad_item": "fail"}], ids=["by default", "fail"])
def test_an_item_without_a_usable_key_fails_alone(
    place: Path, key: Any, kind: Any, options: dict[str, Any]
) -> None:
    for handled in (100, 0):
        job = Job(**options)
        with pytest.raises(JobFailed, match="item 50") as caught:
            job.run(kind(with_key(key)), place)
        result = caught.value.result
        assert result is not None
        assert (len(job.handled), result.total, result.failed) == (handled, 101, 1)
        (failure,) = result.failures
        assert (failure.position, failure.error) == (50, "InvalidKey")
        assert len(result.table(ordered=True)) == 100
    assert Job(tolerated_failures=1).run(with_key(key), place).failed == 1


@pytest.mark.parametrize("kind", [list, iter, pa.Table.from_pylist], ids=["list", "iter", "table"])
def test_a_key_that_comes_twice_fails_the_second_item(place: Path, kind: Any) -> None:
    job = Job(on_bad_item="fail")
    with pytest.raises(JobFailed, match="items 7 and 50 have the same key"):
        job.run(kind(with_key("d7")), place)
    assert sorted(job.handled) == sorted(f"d{number}" for number in range(100))


@pytest.mark.parametrize(
    ("items", "options", "error"),
    [
        (with_key(None), {"on_bad_item": "error"}, InvalidKey),
        (with_key("d7"), {"on_bad_item": "error"}, DuplicateKey),
        (with_key("d7"), {}, DuplicateKey),
        (pa.Table.from_pylist(with_key("d7")), {}, DuplicateKey),
        (pa.Table.from_pylist(with_key(None)), {"on_bad_item": "error"}, InvalidKey),
        ([{"uid": number} for number in range(30)], {}, InvalidKey),
        ([{"uid": number} for number in range(30)], {"on_bad_item": "fail"}, InvalidKey),
    ],
)
def test_an_error_of_a_list_or_a_table_costs_no_call(
    place: Path, items: Any, options: dict[str, Any], error: type[Exception]
) -> None:
    job = Job(**options)
    with pytest.raises(error):
        job.run(items, place)
    assert job.handled == []


def test_a_wrong_key_of_a_generator_is_an_error_all_the_same(place: Path) -> None:
    with pytest.raises(InvalidKey, match="item 0"):
        Job().run(({"uid": number} for number in range(1_000)), place)


def test_there_are_two_answers() -> None:
    with pytest.raises(UsageError, match="on_bad_item"):
        Job(on_bad_item="skip")
