"""What others do to the table while a run is at work: nothing is lost, or paid for twice."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Budget,
    BudgetUsedUp,
    CheckpointMismatch,
    Failing,
    ResumableTask,
    SqlCheckpoint,
    resumable_task,
)
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]
Prepared = Callable[..., SqlCheckpoint]


def undone(db: Db) -> int:
    count: int = db.one("SELECT count(*) FROM lessons WHERE processed_at IS NULL")
    return count


@pytest.mark.parametrize(
    "change", ["DELETE FROM lessons", "UPDATE lessons SET processed_at = CURRENT_TIMESTAMP"]
)
def test_a_row_that_is_gone_costs_only_itself(
    db: Db, prepared: Prepared, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    checkpoint = prepared(100)
    handled: Counter[int] = Counter()

    @resumable_task(name="label", batch_size=10, concurrency=1)
    def label(rows: Rows) -> Rows:
        handled.update(row["id"] for row in rows)
        db.do(f"{change} WHERE id = {rows[-1]['id']}")
        return [{"id": row["id"], "label": "x"} for row in rows]

    run = label.run(checkpoint=checkpoint)
    assert (run.completed, run.failed, run.total) == (90, 0, 100)
    assert (undone(db), max(handled.values())) == (0, 1)
    assert db.one("SELECT count(*) FROM lessons WHERE label = 'x'") == 90
    assert "dropping 1 of its 10 rows" in caplog.text
    assert "deleted or marked done by others" in caplog.text


@pytest.mark.sample(only="sqlite")
def test_a_failed_row_that_is_gone_is_no_failure(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(20)

    @resumable_task(name="label", batch_size=10, concurrency=1, failing=Failing(isolate=False))
    def label(rows: Rows) -> Rows:
        db.do("DELETE FROM lessons WHERE id <= 10")
        if rows[0]["id"] == 1:
            raise ValueError
        return [{"id": row["id"], "label": "x"} for row in rows]

    assert (label.run(checkpoint=checkpoint).failed, undone(db)) == (0, 0)
    assert db.one("SELECT count(*) FROM lessons_processed_at_failures") == 0


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize(
    "fix", ["DELETE FROM lessons", "UPDATE lessons SET processed_at = '2026-01-01'"]
)
@pytest.mark.parametrize("failing", [{"retry_failed": False}, {"max_attempts": 1}])
def test_a_failure_of_a_row_that_is_done_by_hand_is_over(
    db: Db, prepared: Prepared, failing: dict[str, Any], fix: str
) -> None:
    checkpoint = prepared(30)

    def label(rows: Rows) -> Rows:
        return [{"id": row["id"], "label": "x"} for row in rows if row["id"] != 7]

    task = resumable_task(label, tolerated_failures=1, failing=Failing(**failing))
    assert task.run(checkpoint=checkpoint).failed == 1
    db.do(f"{fix} WHERE id = 7")
    run = task.with_options(tolerated_failures=0).run(checkpoint=checkpoint)
    assert (run.failed, run.quarantined) == (0, 0)
    assert run.total == run.skipped == (29 if "DELETE" in fix else 30)


@pytest.fixture
def postgres(db: Db) -> None:
    if db.engine.dialect.name != "postgresql":
        pytest.skip("SQLite locks no rows")


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    ("first", "second"),
    [
        (Budget(items=30), Budget(seconds=1.0)),
        (Budget(cost=1.5), Budget(cost=1.5, seconds=1.0)),
    ],
    ids=["items", "cost"],
)
def test_a_budget_that_is_used_up_while_others_have_the_rest_is_no_good_end(
    db: Db, prepared: Prepared, first: Budget, second: Budget
) -> None:
    checkpoint = prepared(50)
    task = resumable_task(
        lambda rows: [{"id": row["id"], "label": "x"} for row in rows],
        name="label",
        batch_size=10,
        cost=lambda result: 0.5,
    )
    with db.engine.connect() as other:
        other.exec_driver_sql("SELECT id FROM lessons WHERE id <= 20 FOR UPDATE")
        for budget, completed in [(first, 30), (second, 0)]:
            with pytest.raises(BudgetUsedUp) as error:
                task.with_options(budget=budget).run(checkpoint=checkpoint)
            assert (error.value.result.completed, undone(db)) == (completed, 20)
    ended = "SELECT count(*) FROM lessons_processed_at_runs WHERE ended = 'spent'"
    assert db.one(ended) == 2
    assert task.run(checkpoint=checkpoint).completed == 20


_LOCKED = """
import logging, sys
from resumable_tasks import SqlCheckpoint, resumable_task
from resumable_tasks.checkpoint.sql import runs
runs.LOCK_SECONDS = 1
logging.basicConfig(level=logging.INFO)
def label(rows):
    print("handled", flush=True)
    sys.stdin.readline()
    return [{"id": row["id"], "label": "x"} for row in rows]
resumable_task(label, grace_seconds=2.0).run(
    checkpoint=SqlCheckpoint(sys.argv[1], table="lessons", key="id", columns=["label"]))
"""


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize("interrupted", [False, True])
def test_a_commit_that_waits_for_a_lock_says_so_and_can_be_interrupted(
    db: Db, prepared: Prepared, tmp_path: Path, interrupted: bool
) -> None:
    prepared(20)
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", _LOCKED, db.url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        ) as program,
        db.engine.connect() as other,
    ):
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stdout.readline() == "handled\n"
        other.exec_driver_sql("SELECT id FROM lessons WHERE id = 3 FOR UPDATE")
        program.stdin.write("\n")
        program.stdin.flush()
        end = time.monotonic() + 60
        while "locked by another database session" not in (tmp_path / "log").read_text():
            assert time.monotonic() < end
            time.sleep(0.05)
        if interrupted:
            program.send_signal(signal.SIGINT)
            assert program.wait(60) == 75, (tmp_path / "log").read_text()
            other.rollback()
        else:
            other.rollback()
            assert program.wait(60) == 0, (tmp_path / "log").read_text()
    assert undone(db) == (20 if interrupted else 0)


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    "place",
    [{"columns": ["La:bel"]}, {"results_table": "App.results", "results_key": "lesson_id"}],
    ids=["columns", "results"],
)
def test_tables_in_a_schema_with_names_of_any_kind(db: Db, place: dict[str, Any]) -> None:
    db.do(
        'CREATE SCHEMA "App"',
        'CREATE TABLE "App"."Les sons" (id INTEGER PRIMARY KEY, "La:bel" TEXT)',
        'INSERT INTO "App"."Les sons" SELECT i FROM generate_series(1, 500) i',
        'CREATE TABLE "App".results (id SERIAL, lesson_id INTEGER, label TEXT)',
    )
    checkpoint = SqlCheckpoint(db.url, table="App.Les sons", key="id", **place)
    db.prepare(checkpoint)
    field = "La:bel" if "columns" in place else "label"

    @resumable_task(name="label", batch_size=10)
    def label(rows: Rows) -> Rows:
        return [{"id": row["id"], field: "x"} for row in rows]

    found: list[int] = []
    both = threading.Barrier(2, timeout=30)

    def drive() -> None:
        both.wait()
        found.append(label.run(checkpoint=checkpoint).completed)

    threads = [threading.Thread(target=drive) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(found) == 500
    rows = label.run(checkpoint=checkpoint).table()
    assert (rows.num_rows, set(rows.column(field).to_pylist())) == (500, {"x"})
    key = "id" if "columns" in place else "lesson_id"
    assert sorted(rows.column(key).to_pylist()) == list(range(1, 501))


def one() -> ResumableTask[Any]:
    @resumable_task(batch_size=10)
    def label(rows: Rows) -> Rows:
        return [{"id": row["id"], "label": "one"} for row in rows]

    return label


def two() -> ResumableTask[Any]:
    @resumable_task(batch_size=10)
    def label(rows: Rows) -> Rows:
        return [{"id": row["id"], "label": "two"} for row in rows]

    return label


@pytest.mark.sample(only="sqlite")
def test_another_function_of_the_same_name_does_not_share_a_column_silently(
    db: Db, prepared: Prepared, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = prepared(20)
    one().run(checkpoint=checkpoint)
    db.do("UPDATE lessons SET processed_at = NULL WHERE id > 10")
    with pytest.raises(CheckpointMismatch, match=r"one.<locals>.label in .*, which is still there"):
        two().run(checkpoint=checkpoint)
    assert undone(db) == 10
    assert two().run(checkpoint=checkpoint, on_version_change="reuse").completed == 10
    assert "then: one.<locals>.label in" in caplog.text


@pytest.mark.sample(only="sqlite")
def test_rows_that_none_has_completed_are_any_functions(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(20)
    one().run(checkpoint=checkpoint)
    db.do("UPDATE lessons SET processed_at = NULL")
    assert two().run(checkpoint=checkpoint).completed == 20
