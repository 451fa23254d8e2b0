"""What a run may do, take and spend; quarantine; dry runs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Budget,
    Failing,
    Interrupted,
    JobFailed,
    Retry,
    UsageError,
    resumable_task,
)
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.store.urls import open_store
from tests import warm

ITEMS = [{"id": i} for i in range(1_000)]


def priced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    time.sleep(0.001)
    return [{"id": row["id"], "cost": 0.01} for row in rows]


def state(place: Path) -> Any:
    return read_checkpoint(open_store(place))[1]


def test_max_items_is_exact_and_the_next_run_goes_on(place: Path) -> None:
    task = resumable_task(priced, name="job", key="id", batch_size=50)
    done = 0
    for items in (120, 500):
        with pytest.raises(Interrupted, match=rf"budget used up \(items={items}\)") as error:
            task.run(ITEMS, checkpoint=place, budget=Budget(items=items))
        done += items
        assert error.value.result.completed == items
        assert len(state(place).done) == done
        assert error.value.result.remaining.items == 1_000 - done
        assert error.value.exit_code == 5
    result = task.run(ITEMS, checkpoint=place, budget=Budget(items=380))
    assert (result.completed, result.skipped) == (380, 620)
    # Nothing is left: no budget ends what has nothing to do.
    assert task.run(ITEMS, checkpoint=place, budget=Budget(items=1)).skipped == 1_000


def test_max_cost_is_not_exceeded_and_the_next_run_goes_on(place: Path) -> None:
    task = resumable_task(priced, name="job", key="id", batch_size=50, budget=Budget(cost=4.2))
    with pytest.raises(Interrupted, match=r"cost=4\.2\): 420 items .* at a cost of 4\.2") as error:
        task.run(ITEMS, checkpoint=place)
    result = error.value.result
    assert result.cost == pytest.approx(4.2)
    assert result.completed == 420
    assert result.remaining.items == 580
    assert result.remaining.cost == pytest.approx(5.8)
    assert result.remaining.seconds > 0
    assert "580 items, about " in str(error.value)
    assert "at a cost of about 5.8" in str(error.value)
    with pytest.raises(Interrupted):
        task.run(ITEMS, checkpoint=place)
    assert len(state(place).done) == 840
    last = task.run(ITEMS, checkpoint=place)
    assert last.completed == 160
    assert last.cost == pytest.approx(1.6)


def test_the_first_call_alone_tells_what_one_costs(place: Path) -> None:
    calls: list[int] = []

    def dear(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append(1)
        time.sleep(0.05)
        return [{"id": row["id"], "cost": 1.0} for row in rows]

    task = resumable_task(
        dear, name="job", key="id", batch_size=10, concurrency=8, budget=Budget(cost=12.0)
    )
    with pytest.raises(Interrupted) as error:
        task.run(ITEMS, checkpoint=place)
    # One batch of ten, and what is left for two.
    assert len(calls) == 2
    assert error.value.result.cost == 12.0


def test_a_dear_night_does_not_stop_all_nights_to_come(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """An outage that was billed makes the average item dearer than the budget of a night."""
    prices = iter([5.0, *[0.1] * 100])

    def priced(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], "cost": next(prices)} for row in rows]

    task = resumable_task(priced, name="job", key="id", batch_size=5, concurrency=1, cost="cost")
    task.run(ITEMS[:2], checkpoint=place)
    # A total is a limit whatever the average was.
    with pytest.raises(Interrupted, match=r"total=6") as error:
        task.run(ITEMS[:30], checkpoint=place, budget=Budget(cost=1.0, total=6.0))
    assert error.value.result.completed == 0
    with pytest.raises(Interrupted, match=r"cost=1\): 10 items were completed") as error:
        task.run(ITEMS[:30], checkpoint=place, budget=Budget(cost=1.0))
    assert error.value.result.cost == pytest.approx(1.0)
    assert "more than the whole budget (cost=1): starting a single item" in caplog.text


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("items", "calls"), [(20, 5), (3, 3)], ids=["in a pause", "at the end"])
def test_a_budget_that_does_not_afford_one_more_try_ends_a_run_in_an_outage(
    place: Path, items: int, calls: int
) -> None:
    """What is held waits for a try that is not made."""

    def down(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        raise ConnectionError("503")

    task = resumable_task(
        down,
        name="job",
        key="id",
        batch_size=1,
        concurrency=1,
        cost=lambda call: 0.1,
        budget=Budget(cost=0.1 * calls + 0.05),
    )
    with pytest.raises(Interrupted, match=r"budget used up \(cost=") as error:
        task.run(ITEMS[:items], checkpoint=place)
    assert error.value.exit_code == 5
    assert (error.value.result.completed, error.value.result.failed) == (0, 0)
    assert error.value.result.cost == pytest.approx(0.1 * calls)


@pytest.mark.parametrize("runner", ["local", "processes"])
def test_the_cost_may_be_a_callable_of_the_outcome(runner: Any, place: Path) -> None:
    task = resumable_task(
        plain,
        name="job",
        key="id",
        batch_size=50,
        runner=runner,
        cost=by_items,
        budget=Budget(cost=300),
    )
    with pytest.raises(Interrupted) as error:
        task.run(ITEMS, checkpoint=place)
    assert error.value.result.cost == 300
    assert error.value.result.completed == 300


def plain(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return rows


def by_items(outcome: Any) -> float:
    return float(len(outcome.batch))


def test_rows_without_the_cost_are_kept_and_the_run_ends(place: Path) -> None:
    task = resumable_task(plain, name="job", key="id", batch_size=50, budget=Budget(cost=1.0))
    with pytest.raises(UsageError, match="set cost= to a column"):
        task.run(ITEMS, checkpoint=place)
    assert len(state(place).done) >= 50


@pytest.mark.timing
def test_max_seconds_ends_a_run_and_what_runs_is_kept(place: Path) -> None:
    def slow(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        time.sleep(0.2)
        return rows

    task = resumable_task(slow, name="job", key="id", batch_size=10, concurrency=2)
    began = time.monotonic()
    with pytest.raises(Interrupted, match=r"seconds=0\.5"):
        task.run(ITEMS, checkpoint=place, budget=Budget(seconds=0.5))
    assert time.monotonic() - began < 5
    assert 20 <= len(state(place).done) <= 80


def test_a_source_that_blocks_does_not_outlast_max_seconds(place: Path) -> None:
    def source() -> Any:
        yield from ITEMS[:50]
        time.sleep(2)
        yield from ITEMS[50:]

    task = resumable_task(plain, name="job", key="id", batch_size=50, budget=Budget(seconds=0.3))
    with pytest.raises(Interrupted):
        task.run(source(), checkpoint=place)
    assert len(state(place).done) == 50


def test_a_budget_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.write_text(
        "from resumable_tasks import Budget, resumable_task\n"
        "task = resumable_task(lambda rows: rows, name='job', budget=Budget(items=10))\n"
        f"task.run(range(100), checkpoint={str(tmp_path / 'c')!r})\n"
    )
    process = warm.run([sys.executable, script], capture_output=True, text=True, timeout=60)
    assert process.returncode == 5
    assert "items=10" in process.stderr
    assert "remaining: 90 items" in process.stderr
    assert "Traceback" not in process.stderr
    status = resumable("status", str(tmp_path / "c"))
    assert status.returncode == 5
    assert "status       spent" in status.stdout
    assert "raise it, or run the same command again" in status.stdout


def test_a_signal_before_the_budget_is_used_up_is_to_be_resumed(place: Path) -> None:
    """Whatever ends a run first: a scheduler that stops it has not spent its budget."""

    def stopped(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        signal.raise_signal(signal.SIGTERM)
        time.sleep(0.3)
        return priced(rows)

    task = resumable_task(stopped, name="job", key="id", batch_size=50, concurrency=1)
    with pytest.raises(Interrupted) as error:
        task.run(ITEMS, checkpoint=place, budget=Budget(cost=0.5))
    assert type(error.value) is Interrupted
    assert error.value.exit_code == 75


def test_a_dry_run_calls_nothing_and_writes_nothing(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    task = resumable_task(priced, name="job", key="id", batch_size=50, cost="cost")
    nothing = task.run(ITEMS, checkpoint=place, dry_run=True)
    assert not place.exists()
    assert (nothing.completed, nothing.remaining.items, nothing.remaining.cost) == (0, 1_000, None)
    with pytest.raises(Interrupted):
        task.run(ITEMS, checkpoint=place, budget=Budget(items=400))
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    would = task.run((item for item in ITEMS), checkpoint=place, dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
    assert (would.total, would.skipped, would.remaining.items) == (1_000, 400, 600)
    assert would.remaining.cost == pytest.approx(6.0)
    assert "a run would handle 600 items" in caplog.text
    with pytest.raises(UsageError):
        task.with_options(name="other").run(ITEMS, checkpoint=place, dry_run=True)


# --- quarantine


def bad(*keys: int) -> Any:
    calls: list[list[int]] = []

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append([row["id"] for row in rows])
        for row in rows:
            if row["id"] in keys:
                raise ValueError(f"bad {row['id']}")
        return rows

    return calls, resumable_task(
        handler, name="job", key="id", failing=Failing(max_attempts=2, keep_items=True)
    )


def resumable(*arguments: str) -> subprocess.CompletedProcess[str]:
    return warm.run(
        [sys.executable, "-c", "from resumable_tasks.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_after_max_attempts_an_item_is_quarantined_until_it_is_released(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    calls, task = bad(3, 70)
    for _ in range(2):
        with pytest.raises(JobFailed) as error:
            task.run(ITEMS[:100], checkpoint=place)
        assert error.value.result.quarantined == 0
    calls.clear()
    result = task.run(ITEMS[:100], checkpoint=place)
    assert calls == []
    assert (result.completed, result.skipped, result.failed, result.quarantined) == (0, 98, 0, 2)
    assert "2 items are quarantined after max_attempts=2" in caplog.text
    assert "2 failed before" in caplog.text
    assert "will be tried again" not in caplog.text

    listed = resumable("failures", str(place), "--quarantined", "--jsonl")
    items = [json.loads(line)["item"]["id"] for line in listed.stdout.splitlines()]
    assert sorted(items) == [3, 70]
    assert "2 items of them quarantined" in resumable("failures", str(place)).stdout
    assert resumable("retry", str(place), "--key", "3").stdout.startswith("1 item released")
    with pytest.raises(JobFailed) as error:
        task.run(ITEMS[:100], checkpoint=place)
    assert calls == [[3]]
    assert (error.value.result.failed, error.value.result.quarantined) == (1, 1)
    assert {f.key: f.attempts for f in state(place).failures.values()} == {3: 1, 70: 2}


def test_retry_names_what_it_releases(place: Path) -> None:
    _, task = bad(3, 70)
    for _ in range(2):
        with pytest.raises(JobFailed):
            task.run(ITEMS[:100], checkpoint=place)
    wrong = resumable("retry", str(place), "--error-class", "KeyError")
    assert wrong.returncode == 2
    assert "no item has failed with KeyError" in wrong.stderr
    unknown = resumable("retry", str(place), "--key", "4")
    assert unknown.returncode == 2
    assert resumable("retry", str(place), "--error-class", "ValueError", "--json").stdout
    assert {f.attempts for f in state(place).failures.values()} == {0}
    assert resumable("retry", str(place), "--quarantined").stdout == "0 items released\n"
    assert resumable("verify", str(place)).returncode == 0
    assert resumable("status", str(place)).returncode == 75


def test_retry_failed_false_leaves_them_failed(place: Path) -> None:
    calls, task = bad(3)
    with pytest.raises(JobFailed):
        task.run(ITEMS[:100], checkpoint=place)
    calls.clear()
    with pytest.raises(JobFailed, match="1 of 100 items") as error:
        task.with_options(failing=Failing(retry_failed=False)).run(ITEMS[:100], checkpoint=place)
    assert calls == []
    assert [failure.key for failure in error.value.result.failures] == [3]


def test_failures_are_exported_with_their_items(place: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    _, task = bad(3, 70)
    with pytest.raises(JobFailed):
        task.run(ITEMS[:100], checkpoint=place)
    for name in ("failed.jsonl", "failed.parquet"):
        done = resumable("failures", str(place), "--export", str(tmp_path / name))
        assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "failed.jsonl").read_text().splitlines()]
    rows.sort(key=lambda row: row["key"])
    assert [(row["key"], row["item"], row["error"]) for row in rows] == [
        (3, {"id": 3}, "ValueError"),
        (70, {"id": 70}, "ValueError"),
    ]
    assert "bad 3" in rows[0]["traceback"]
    table = pq.read_table(tmp_path / "failed.parquet").sort_by("key")
    assert table["key"].to_pylist() == [3, 70]
    assert table["item"].to_pylist() == [{"id": 3}, {"id": 70}]
    assert resumable("failures", str(place), "--export", str(tmp_path / "x.csv")).returncode == 2
    assert sorted(p.name for p in tmp_path.glob("failed*")) == ["failed.jsonl", "failed.parquet"]


def test_the_attempts_survive_sigkill(tmp_path: Path) -> None:
    """An item that failed in a run that was killed is as many attempts old in the next."""
    script = tmp_path / "job.py"
    place = tmp_path / "c"
    script.write_text(
        "import os, signal\n"
        "from resumable_tasks import Failing, ItemFailure, resumable_task\n"
        "def handler(rows):\n"
        "    return [ItemFailure(3, 'no') if row == 3 else {'key': row} for row in rows]\n"
        "def kill(event):\n"
        "    if getattr(event, 'failures', None): os.kill(os.getpid(), signal.SIGKILL)\n"
        "task = resumable_task(handler, name='job', batch_size=10, concurrency=1,"
        " failing=Failing(max_attempts=3))\n"
        f"task.run(range(100), checkpoint={str(place)!r}, listeners=[kill])\n"
    )
    for attempts in (1, 2, 3):
        process = warm.run([sys.executable, script], capture_output=True, timeout=60)
        assert process.returncode == -signal.SIGKILL, process.stderr
        failures = state(place).failures.values()
        assert [(failure.key, failure.attempts) for failure in failures] == [(3, attempts)]


def test_plan_says_what_the_next_run_would_take(place: Path) -> None:
    task = resumable_task(priced, name="job", key="id", batch_size=50, cost="cost")
    with pytest.raises(Interrupted):
        task.run(ITEMS, checkpoint=place, budget=Budget(items=400))
    document = json.loads(resumable("plan", str(place), "--json").stdout)
    assert (document["items"], document["completed"], document["remaining"]) == (1_000, 400, 600)
    assert document["cost"] == pytest.approx(6.0)
    assert document["seconds"] > 0
    assert "1,600 items, about" in resumable("plan", str(place), "--items", "2000").stdout


def test_max_items_that_cut_the_last_batch_are_no_good_end(place: Path) -> None:
    task = resumable_task(plain, name="job", key="id", batch_size=50)
    with pytest.raises(Interrupted, match="items=60"):
        task.run(ITEMS[:100], checkpoint=place, budget=Budget(items=60))
    assert task.run(ITEMS[:100], checkpoint=place, budget=Budget(items=40)).completed == 40


def test_a_budget_that_is_used_up_by_the_last_item_is_a_good_end(place: Path) -> None:
    task = resumable_task(
        priced, name="job", key="id", batch_size=50, budget=Budget(cost=0.6), concurrency=1
    )
    with pytest.raises(Interrupted):
        task.run(ITEMS[:100], checkpoint=place)
    assert len(state(place).done) == 60
    dearer = task.with_options(cost=lambda outcome: 5.0)
    assert dearer.run(ITEMS[:61], checkpoint=place).completed == 1


def test_calls_that_fail_and_are_retried_cost_too(place: Path) -> None:
    calls: list[int] = []

    def flaky(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        calls.append(1)
        if len(calls) % 4:
            raise ConnectionError("again")
        return rows

    task = resumable_task(
        flaky,
        name="job",
        key="id",
        batch_size=10,
        retries=Retry(4, delay=0.0),
        concurrency=1,
        cost=lambda outcome: 1.0,
        budget=Budget(cost=20.0),
    )
    with pytest.raises(Interrupted):
        task.run(ITEMS, checkpoint=place)
    assert len(calls) <= 20


@pytest.mark.parametrize(
    "item", [{"id": 3, "x": "\ud800"}, {"id": 3, "x": {1, 2}}, {"id": 3, "x": float("nan")}]
)
def test_a_failed_item_that_json_has_not_ends_no_run(place: Path, item: dict[str, Any]) -> None:
    circular: dict[str, Any] = {"id": 4}
    circular["self"] = circular
    _, task = bad(3, 4)
    with pytest.raises(JobFailed) as error:
        task.run([*ITEMS[:3], item, circular], checkpoint=place)
    assert sorted(failure.key for failure in error.value.result.failures) == [3, 4]
    assert len(state(place).failures) == 2


def test_code_that_raises_when_it_looks_at_an_error_ends_the_run(place: Path) -> None:
    class Odd(Exception):
        @property
        def response(self) -> Any:
            raise RuntimeError("response has not been set")

        @property
        def retry_after(self) -> Any:
            raise RuntimeError("nor this")

        def __str__(self) -> str:
            raise RuntimeError("nor this")

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if rows[0]["id"] == 50:
            raise Odd
        return rows

    task = resumable_task(handler, name="job", key="id", batch_size=10)
    with pytest.raises(JobFailed):
        task.with_options(failing=Failing(isolate=False)).run(ITEMS[:100], checkpoint=place)

    def wait(retry_state: Any) -> float:
        raise ZeroDivisionError("in the wait strategy")

    wait.__module__ = "tenacity.mine"
    strange = type("Wait", (), {"__call__": lambda self, s: wait(s), "__module__": "tenacity.x"})()
    with pytest.raises(ZeroDivisionError):
        task.with_options(retries=Retry(1, delay=strange)).run(ITEMS[:100], checkpoint=place)
