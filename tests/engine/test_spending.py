"""What calls have cost: counted whatever becomes of them, and remembered over all runs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from resumable_tasks import (
    Budget,
    BudgetUsedUp,
    Failing,
    Interrupted,
    JobFailed,
    Retry,
    RunResult,
    UsageError,
    current_batch,
    resumable_task,
)
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store
from tests import warm

Rows = list[dict[str, Any]]
ITEMS = [{"id": i} for i in range(400)]
EACH = 0.01
BAD = range(7, 400, 50)


def recorded(place: Path) -> float:
    return read_checkpoint(open_store(place))[1].pace.cost


def ended(task: Any, place: Path, **given: Any) -> RunResult:
    """The result of a run, however it ends."""
    try:
        return task.run(ITEMS, checkpoint=place, **given)  # type: ignore[no-any-return]
    except (Interrupted, JobFailed) as error:
        return cast("RunResult", error.result)


class Api:
    """Answers, and bills each answer."""

    def __init__(self, answer: Callable[[Rows], Any]) -> None:
        self.billed = 0.0
        self.calls = 0
        self._answer = answer

    def __call__(self, items: Rows) -> Any:
        self.billed += EACH * len(items)
        self.calls += 1
        return self._answer(items)


def rows(items: Rows) -> Rows:
    return [{"id": item["id"], "cost": EACH} for item in items]


def halves_of_pairs(items: Rows) -> Rows:
    """Half a surrogate pair: no text that can be stored."""
    return [row | {"text": "\ud83d" if row["id"] in BAD else "fine"} for row in rows(items)]


def of_two_types(items: Rows) -> Rows:
    return [row | {"limit": 5 if row["id"] % 2 else "5"} for row in rows(items)]


def strangers(items: Rows) -> Rows:
    """A foreign key among them: nothing of the answer can be matched."""
    found = rows(items)
    return [{**found[0], "id": -1}, *found[1:]] if any(row["id"] in BAD for row in found) else found


def too_few(items: Rows) -> Rows:
    """No key, and a row is missing: a shape that ends the run early."""
    return [{"cost": EACH * len(items) / (len(items) - 1)} for _ in items[1:]]


def one_by_one(items: Rows) -> Any:
    yield from halves_of_pairs(items)


def as_stream(items: Rows) -> Any:
    table = pa.Table.from_pylist(rows(items))
    return pa.RecordBatchReader.from_batches(table.schema, table.to_batches())


def with_some_free(items: Rows) -> Rows:
    """Each pair's cost is on its first row: the other has no such field, or None."""
    found = rows(items)
    for at in range(0, len(found) - 1, 2):
        found[at]["cost"], found[at + 1]["cost"] = 2 * EACH, None
        if at % 4:
            del found[at + 1]["cost"]
    return found


@pytest.mark.parametrize(
    "answer",
    [halves_of_pairs, of_two_types, strangers, too_few, one_by_one, as_stream, with_some_free],
)
def test_an_answer_is_counted_whether_or_not_it_can_be_stored(
    answer: Callable[[Rows], Any], place: Path
) -> None:
    api = Api(answer)
    task = resumable_task(
        api, name="job", key="id", batch_size=20, cost="cost", retries=Retry(1, delay=0.0)
    )
    result = ended(task, place)
    assert result.cost == pytest.approx(api.billed)
    assert recorded(place) == pytest.approx(api.billed)


def charged(outcome: Any) -> float:
    return EACH * len(outcome.batch)


@pytest.mark.parametrize("isolate", [True, False])
def test_a_call_that_fails_is_counted_by_a_callable(isolate: bool, place: Path) -> None:
    def flaky(items: Rows) -> Rows:
        if any(item["id"] in BAD for item in items) or current_batch().attempt == 1:
            raise ConnectionError("again")
        return rows(items)

    api = Api(flaky)
    task = resumable_task(
        api,
        name="job",
        key="id",
        batch_size=20,
        cost=charged,
        retries=Retry(2, delay=0.0),
        failing=Failing(isolate=isolate, pause_after=None),
    )
    result = ended(task, place)
    assert result.failed >= len(BAD)
    assert result.cost == pytest.approx(api.billed)
    assert recorded(place) == pytest.approx(api.billed)


def test_a_callable_sees_what_was_returned_and_not_only_what_is_stored(place: Path) -> None:
    def by_rows(call: Any) -> float:
        return sum(row["cost"] for row in call.returned)

    api = Api(halves_of_pairs)
    result = ended(resumable_task(api, name="job", key="id", batch_size=20, cost=by_rows), place)
    assert result.cost == pytest.approx(api.billed)


def test_a_call_is_counted_whose_next_try_the_end_of_the_run_has_forestalled(place: Path) -> None:
    def failing(items: Rows) -> Rows:
        signal.raise_signal(signal.SIGTERM) if api.calls == 3 else None
        raise ConnectionError("again")

    api = Api(failing)
    task = resumable_task(
        api,
        name="job",
        key="id",
        batch_size=20,
        concurrency=1,
        cost=charged,
        retries=Retry(9, delay=[0.0, 0.0, 60.0]),
    )
    # No batch has come to an end: all that is known of it is what it has cost.
    assert ended(task, place).cost == pytest.approx(3 * 20 * EACH)
    assert recorded(place) == pytest.approx(api.billed)


def die_sometimes(items: Rows) -> Rows:
    """Bill first, to a file, as any API does."""
    with open(os.environ["BILL"], "a") as bill:
        bill.write(f"{EACH}\n" * len(items))
    if items[0]["id"] == 60:
        os._exit(1)
    if items[0]["id"] == 120:
        time.sleep(60)
    return rows(items)


def test_a_call_is_counted_whose_process_has_died_or_was_killed(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BILL", str(tmp_path / "bill"))
    task = resumable_task(
        die_sometimes,
        name="job",
        key="id",
        batch_size=20,
        concurrency=1,
        runner="processes",
        cost=charged,
        timeout=5,
        failing=Failing(isolate=False),
    )
    result = ended(task, place)
    assert result.failed == 40
    billed = sum(map(float, (tmp_path / "bill").read_text().split()))
    assert billed == pytest.approx(EACH * 420)
    assert result.cost == pytest.approx(billed)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_limit_holds_but_for_the_calls_in_flight(concurrency: int, place: Path) -> None:
    """Also where most calls are made again, in parts: those are begun within the limit too."""
    api = Api(strangers)
    task = resumable_task(
        api, name="job", key="id", batch_size=20, concurrency=concurrency, cost="cost"
    )
    with pytest.raises(BudgetUsedUp, match="cost=2"):
        task.run(ITEMS, checkpoint=place, budget=Budget(cost=2.0))
    assert api.billed <= 2.0 + 1e-6


# --- all runs of a checkpoint


def test_a_total_is_for_all_runs_together(place: Path) -> None:
    api = Api(rows)
    task = resumable_task(
        api, name="job", key="id", batch_size=20, budget=Budget(cost=1.0, total=2.5)
    )
    limits = []
    for _ in range(4):
        with pytest.raises(BudgetUsedUp) as error:
            task.run(ITEMS, checkpoint=place)
        limits.append(str(error.value).split(":")[1].strip())
    assert limits[:2] == ["budget used up (cost=1)"] * 2
    assert limits[2:] == ["budget used up (total=2.5 for all runs together)"] * 2
    assert api.billed == pytest.approx(2.5)
    # Another one, and what is left fits into it; then nothing is left that could cost.
    assert task.run(ITEMS, checkpoint=place, budget=Budget(cost=9, total=4.1)).completed == 150
    assert task.run(ITEMS, checkpoint=place).skipped == 400


def test_a_total_that_was_exceeded_ends_no_run_that_has_nothing_to_do(place: Path) -> None:
    task = resumable_task(rows, name="job", key="id", batch_size=50, cost=lambda call: 1.0)
    assert task.run(ITEMS, checkpoint=place).cost == 8.0
    again = task.with_options(budget=Budget(total=2.0))
    assert again.run(ITEMS, checkpoint=place).skipped == 400
    with pytest.raises(BudgetUsedUp, match="total=2 for all runs together") as error:
        again.run([*ITEMS, {"id": 400}], checkpoint=place)
    assert error.value.result is not None
    assert error.value.result.cost == 0.0


JOB = """
import random, sys, time
from resumable_tasks import Budget, Retry, resumable_task

def ask(items):
    with open(sys.argv[2], "a") as bill:
        bill.write("0.01\\n" * len(items))
    time.sleep(0.02)
    if random.random() < 0.3:
        raise ConnectionError("again")
    return [{"id": item["id"]} for item in items]

task = resumable_task(ask, key="id", batch_size=10, concurrency=2, retries=Retry(1, delay=0.05),
    cost=lambda call: 0.01 * len(call.batch), budget=Budget(total=5.0))
task.run([{"id": i} for i in range(2_000)], checkpoint=sys.argv[1])
"""


RESUMABLE = "from resumable_tasks.cli import main; main()"


def test_whoever_is_killed_forgets_no_more_than_the_calls_in_flight(tmp_path: Path) -> None:
    script, place, bill = tmp_path / "job.py", tmp_path / "c", tmp_path / "bill"
    words = tmp_path / "words"
    script.write_text(JOB)
    kills, code = 0, -1
    while code != 5:
        patience = random.uniform(0.3, 0.9) if kills < 6 else 60
        with (
            words.open("w") as stderr,
            warm.start([sys.executable, script, place, bill], stderr=stderr) as process,
        ):
            try:
                code = process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
                kills, code = kills + 1, process.wait()
        assert code in (5, -signal.SIGKILL), words.read_text()
    billed = sum(map(float, bill.read_text().split()))
    # Of each batch in flight two calls, since a retry is told with its batch.
    assert billed <= 5.0 + (kills + 1) * 2 * 2 * 10 * EACH + 1e-6
    assert billed - recorded(place) <= kills * 2 * 2 * 10 * EACH + 1e-6
    shown = warm.run(
        [sys.executable, "-c", RESUMABLE, "status", place],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.returncode == 5
    assert f"spent        {recorded(place):.4g} of 5, by all runs" in shown.stdout
    assert "total=5" in words.read_text()


def test_a_table_keeps_no_spending_and_says_so(tmp_path: Path) -> None:
    from resumable_tasks import SqlCheckpoint

    task = resumable_task(
        rows, name="job", key="id", results="none", cost=charged, budget=Budget(total=1.0)
    )
    table = SqlCheckpoint(f"sqlite:///{tmp_path / 'x.db'}", table="items", key="id")
    with pytest.raises(UsageError, match=r"Budget\(total=…\) needs a checkpoint that records"):
        task.run(checkpoint=table)


def test_bad_items_make_the_others_no_cheaper(place: Path) -> None:
    """A batch that failed is handled again in parts, and its items do not count each time."""
    task = resumable_task(
        lambda items: 1 / 0 if any(i["id"] in BAD for i in items) else rows(items),
        name="job",
        key="id",
        batch_size=20,
        cost="cost",
        budget=Budget(cost=2.0),
    )
    found = ended(task, place)
    assert found.remaining.items > 0
    assert found.remaining.cost == pytest.approx(EACH * found.remaining.items, rel=0.1)
    assert found.cost <= 2.0 + EACH / 2


def test_a_first_call_that_fails_does_not_tell_that_calls_are_free(place: Path) -> None:
    def dear(items: Rows) -> Rows:
        if items[0]["id"] == 0:
            raise ConnectionError("reset by peer")
        return [{"id": item["id"], "cost": 1.0} for item in items]

    task = resumable_task(
        dear,
        name="job",
        key="id",
        batch_size=10,
        concurrency=8,
        cost="cost",
        budget=Budget(cost=12.0),
    )
    assert 10.0 <= ended(task, place).cost <= 12.0


def test_a_batch_that_fails_before_anything_is_known_is_halved_all_the_same(place: Path) -> None:
    def answer(items: Rows) -> Rows:
        if any(item["id"] == BAD[0] for item in items):
            raise ValueError("bad")
        return rows(items)

    task = resumable_task(
        answer,
        name="job",
        key="id",
        batch_size=400,
        cost="cost",
        budget=Budget(cost=100.0),
        failing=Failing(pause_after=None),
    )
    found = ended(task, place)
    assert (found.completed, found.failed) == (399, 1)
