"""One item without a usable key, or with that of another, costs that item alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from resumable_tasks import DuplicateKey, InvalidKey, JobFailed, UsageError, resumable_task
from resumable_tasks.cli import main

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


def ask(*words: object) -> tuple[int, str]:
    answer = CliRunner().invoke(main, [str(word) for word in words])
    return answer.exit_code, answer.output


def test_items_without_a_usable_key_are_in_the_journal_of_the_run(place: Path) -> None:
    job = Job(on_bad_item="fail")
    items = [*with_key(None), {"id": ""}, {"id": "d7"}]
    with pytest.raises(JobFailed):
        job.run(items, place)
    _, text = ask("failures", place)
    assert "3 items without a usable key" in text
    assert "item 50: " in text
    assert "item 101: " in text
    assert "items 7 and 102 have the same key" in text
    document = json.loads(ask("failures", place, "--json")[1])["without_key"]
    assert (document["count"], [each["position"] for each in document["first"]]) == (
        3,
        [50, 101, 102],
    )
    lines = [json.loads(line) for line in ask("failures", place, "--jsonl")[1].splitlines()]
    assert [(line["key"], line["position"], line["error"]) for line in lines] == [
        (None, 50, "InvalidKey"),
        (None, 101, "InvalidKey"),
        (None, 102, "DuplicateKey"),
    ]
    ask("failures", place, "--export", place.parent / "failed.parquet")
    exported = pq.read_table(place.parent / "failed.parquet").to_pylist()
    assert [row["position"] for row in exported] == [50, 101, 102]
    code, text = ask("status", place)
    assert (code, "3 items without a usable key" in text) == (1, True)
    job.run(items[:50], place)  # they are the last run's alone
    assert "without a usable key" not in ask("failures", place)[1] + ask("status", place)[1]


def test_tolerated_items_without_a_usable_key_are_failures_all_the_same(place: Path) -> None:
    Job(tolerated_failures=1).run(with_key(None), place)
    code, said = ask("status", place)[:2]
    assert (code, "1 item without a usable key" in said) == (0, True)
    assert json.loads(ask("status", place, "--json")[1])["without_key"] == 1


def test_the_journal_keeps_a_bounded_number_of_items_without_a_usable_key(place: Path) -> None:
    items = [{"id": f"d{number}"} for number in range(1_100)]
    items += [{"id": None, "text": "x" * 10_000} for _ in range(1_000)]
    with pytest.raises(JobFailed) as caught:
        Job().run(items, place)
    result = caught.value.result
    assert result is not None
    assert len(result.failures) == 1_000
    document = json.loads(ask("failures", place, "--json")[1])["without_key"]
    assert (document["count"], len(document["first"])) == (1_000, 100)
    assert "and 900 more" in ask("failures", place, "--all")[1]
    last = sorted((place / "journal").iterdir())[-1]
    assert last.stat().st_size < 50_000
