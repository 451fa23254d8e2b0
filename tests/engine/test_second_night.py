"""What failed is all that is left, and some of it is fixed: that is done, and nothing else paid."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Failing, JobFailed, Retry, resumable_task
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.items.plan import Planner, Planning
from resumable_tasks.runners.outcome import Failure

ITEMS = [{"id": i} for i in range(3_000)]
BATCH = 30


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    bad = {int(i) for i in Path(os.environ["BAD"]).read_text().split()}
    with open(os.environ["CALLS"], "a") as file:
        file.write(" ".join(str(row["id"]) for row in rows) + "\n")
    for row in rows:
        if row["id"] in bad:
            raise ValueError(f"cannot read {row['id']}")
    return rows


async def coroutine(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    await asyncio.sleep(0)
    return plain(rows)


class Nights:
    """The same job, night after night."""

    def __init__(self, folder: Path, place: Path) -> None:
        self.bad, self.calls, self.place = folder / "bad", folder / "calls", place

    def run(self, night: Callable[[], Any], bad: set[int]) -> Any:
        self.bad.write_text(" ".join(map(str, bad)))
        self.calls.write_text("")
        with pytest.raises(JobFailed) as error:
            night()
        # Each failure is of a call with its item alone, and says what that call said.
        for failure in self.failures():
            assert failure.message == f"cannot read {failure.key}"
            assert failure.error_of == "item"
        assert {failure.key for failure in self.failures()} == bad
        return error.value.result

    def failures(self) -> list[Failure]:
        return list(read_checkpoint(open_store(self.place))[1].failures.values())

    def check(self, night: Callable[[], Any], count: int) -> None:
        """Three nights: one more item is bad in the first."""
        always = set(range(7, 3_000, 3_000 // count)[:count])
        self.run(night, {*always, 1_499})
        for attempts in (2, 3):
            result = self.run(night, always)
            assert result.completed == (1 if attempts == 2 else 0)
            assert {failure.attempts for failure in self.failures()} == {attempts}
            calls = self.calls.read_text().splitlines()
            left = count + 1 if attempts == 2 else count
            most = 2 * math.ceil(math.log2(BATCH)) * count
            assert len(calls) <= math.ceil(left / BATCH) + most


@pytest.fixture
def nights(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> Nights:
    found = Nights(tmp_path, place)
    monkeypatch.setenv("BAD", str(found.bad))
    monkeypatch.setenv("CALLS", str(found.calls))
    return found


@pytest.mark.parametrize(
    ("handler", "runner", "count"),
    [
        (coroutine, "local", 1),
        (plain, "processes", 39),
        # So many on threads: test_a_fixed_item_is_not_quarantined_for_the_others.
        *(
            pytest.param(handler, runner, count, marks=pytest.mark.long)
            for handler, runner in [(plain, "local"), (coroutine, "local"), (plain, "processes")]
            for count in (1, 39, 100)
            if (handler, count) != (coroutine, 1) and (runner, count) != ("processes", 39)
        ),
    ],
)
def test_every_night_completes_what_is_fixed(
    handler: Any, runner: Any, count: int, nights: Nights
) -> None:
    task = resumable_task(
        handler, name="job", key="id", batch_size=BATCH, runner=runner, concurrency=4
    )
    nights.check(lambda: task.run(ITEMS, checkpoint=nights.place), count)


def test_a_fixed_item_is_not_quarantined_for_the_others(nights: Nights) -> None:
    """With ``max_attempts=3`` it is done in the third night; the others are quarantined then."""
    task = resumable_task(
        plain, name="job", key="id", batch_size=BATCH, failing=Failing(max_attempts=3)
    )
    always = set(range(7, 3_000, 30))
    for bad in ({*always, 1_499}, {*always, 1_499}, always):
        result = nights.run(lambda: task.run(ITEMS, checkpoint=nights.place), bad)
    assert result.completed == 1
    last = task.run(ITEMS, checkpoint=nights.place)
    assert (last.completed, last.quarantined, last.skipped) == (0, 100, 2_900)


def test_suspects_are_planned_by_themselves_and_the_rest_in_its_order() -> None:
    failed = {
        b"%d" % key: Failure(key, "ValueError", "no", attempts=attempts)
        for key, attempts in [(1, 1), (4, 2), (5, 1), (6, 0)]
    }
    for items in ([{"id": i} for i in range(9)], pa_table(range(9))):
        planner = Planner(Planning("id", 2), done(), failed=failed)
        batches = list(planner.batches(items))
        found = [(batch.keys, batch.suspects) for batch in batches]
        # As soon as they fill a batch, and what is left of them at the end. One that was
        # released, or has failed with its batch only, is as good as any.
        assert [keys for keys, suspects in found if not suspects] == [[0, 2], [3, 6], [7, 8]]
        assert [keys for keys, suspects in found if suspects] == [[1, 4], [5]]
        assert found.index(([1, 4], True)) < found.index(([7, 8], False))
        for batch in batches:
            rows = batch.items if isinstance(batch.items, list) else batch.items.to_pylist()
            assert [row["id"] for row in rows] == batch.keys


def pa_table(ids: range) -> Any:
    import pyarrow as pa

    return pa.table({"id": list(ids)})


def done() -> Any:
    from resumable_tasks.items.keytable import KeyTable

    return KeyTable()


def test_without_isolation_the_error_is_said_to_be_the_batchs(place: Path) -> None:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(row["id"] == 33 for row in rows):
            raise ValueError("bad")
        return rows

    task = resumable_task(
        handler, name="job", key="id", batch_size=10, failing=Failing(isolate=False)
    )
    for attempts in (1, 2):
        with pytest.raises(JobFailed):
            task.run(ITEMS[:100], checkpoint=place)
        found = read_checkpoint(open_store(place))[1].failures.values()
        assert sorted(failure.key for failure in found) == list(range(30, 40))
        assert {(failure.error_of, failure.attempts) for failure in found} == {("batch", attempts)}


@pytest.mark.sample
@pytest.mark.parametrize("runner", ["local", "processes"])
@pytest.mark.parametrize("handler", ["short", "text", "one_row"])
def test_results_of_a_wrong_shape_end_the_run_at_once(
    handler: str, runner: Any, place: Path, nights: Nights
) -> None:
    task = resumable_task(
        {"short": short, "text": text, "one_row": one_row}[handler],
        name="job",
        key="id",
        batch_size=50,
        runner=runner,
        concurrency=2,
    )
    with pytest.raises(JobFailed, match="no result of the handler can be matched") as error:
        task.run([{"id": i} for i in range(10_000)], checkpoint=place)
    assert len(nights.calls.read_text().splitlines()) <= 4 + 2
    result = error.value.result
    assert (result.completed, {f.error for f in result.failures}) == (0, {"BadResult"})
    assert {(f.error_of, f.attempts) for f in result.failures} == {("batch", 0)}
    assert task.with_options(runner="local").run([], checkpoint=place).failed == 0


def note() -> None:
    with open(os.environ["CALLS"], "a") as file:
        file.write("call\n")


def short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    note()
    return [{"value": 1} for _ in rows[1:]]


def text(rows: list[dict[str, Any]]) -> Any:
    note()
    return "a text"


def one_row(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    note()
    return [{"sum": len(rows)}]


def test_a_retried_batch_leaves_a_trace(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    seen: set[int] = set()

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        first = rows[0]["id"]
        if first % 100 == 0 and first not in seen:
            seen.add(first)
            raise ConnectionError("once")
        return rows

    task = resumable_task(handler, name="job", key="id", batch_size=50, retries=Retry(1, delay=0.0))
    result = task.run(ITEMS[:500], checkpoint=place)
    assert (result.completed, result.retried) == (500, 5)
    said = [record.getMessage() for record in caplog.records if "more than one call" in record.msg]
    assert len(said) == 1
    assert said[0].startswith("job: 5 batches needed more than one call")
    assert task.run(ITEMS[:500], checkpoint=place).retried == 0
