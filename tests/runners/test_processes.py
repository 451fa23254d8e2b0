"""Handlers in processes: workers write their own shards; a dead one costs its own batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Failing,
    Interrupted,
    JobFailed,
    UsageError,
    current_batch,
    resumable_task,
)
from resumable_tasks.runners import worker

ITEMS = [{"id": i} for i in range(100)]
pytestmark = pytest.mark.usefixtures("fresh_workers")


@resumable_task(key="id", batch_size=10, concurrency=2, runner="processes")
def where(rows: list[Any]) -> list[Any]:
    assert current_batch().keys == tuple(row["id"] for row in rows)
    return [{"id": row["id"], "pid": os.getpid()} for row in rows]


@resumable_task(key="id", batch_size=10, concurrency=2, runner="processes")
def deadly(rows: list[Any]) -> list[Any]:
    if rows[0]["id"] == 50:
        os._exit(9)
    if rows[0]["id"] == 70:
        raise SystemExit(3)
    return rows


@resumable_task(key=lambda item: item["id"], runner="processes", concurrency=1)
def by_lambda(rows: list[Any]) -> list[Any]:
    return [{"n": row["id"]} for row in rows]


@resumable_task(key="id", runner="processes", concurrency=1)
def leaves_a_thread(rows: list[Any]) -> list[Any]:
    threading.Thread(target=time.sleep, args=(60,)).start()
    return rows


@resumable_task(key="id", runner="processes", concurrency=1)
def ends_a_fork(rows: list[Any]) -> list[Any]:
    """As the end of a ``with multiprocessing.Pool()`` does."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    time.sleep(0.1)
    process.terminate()
    process.join(5)
    code = process.exitcode
    process.kill()
    return [{"id": row["id"], "code": code} for row in rows]


@pytest.mark.long
def test_batches_run_elsewhere_and_come_back_once(place: Path) -> None:
    result = where.run(ITEMS, checkpoint=place)
    table = result.table(ordered=True)
    assert table.column("id").to_pylist() == list(range(100))
    assert os.getpid() not in table.column("pid").to_pylist()
    assert where.run(ITEMS, checkpoint=place).skipped == 100
    # The way of execution is no part of a checkpoint's identity.
    assert where.with_options(runner="local").run(ITEMS, checkpoint=place).skipped == 100


def test_a_worker_that_dies_costs_its_own_batch(place: Path) -> None:
    with pytest.raises(JobFailed, match=r"(?s)20 of 100.*10 × WorkerLost") as caught:
        deadly.with_options(failing=Failing(isolate=False)).run(ITEMS, checkpoint=place)
    result = caught.value.result
    assert result is not None
    assert {f.key for f in result.failures} == {*range(50, 60), *range(70, 80)}
    assert result.completed == 80
    assert sorted(result.table().column("id").to_pylist()) == [
        *range(50),
        *range(60, 70),
        *range(80, 100),
    ]


def test_a_thread_that_a_handler_leaves_keeps_no_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(worker, "_ENDING_SECONDS", 0.5)
    assert leaves_a_thread.run(ITEMS, checkpoint=place).completed == 100
    assert "left threads or processes" in caplog.text


def test_a_process_that_a_handler_forks_ends_by_sigterm(place: Path) -> None:
    table = ends_a_fork.run(ITEMS, checkpoint=place).table()
    assert set(table["code"].to_pylist()) == {-signal.SIGTERM}


def test_the_key_may_be_what_cannot_cross(place: Path) -> None:
    assert by_lambda.run(ITEMS, checkpoint=place).completed == 100


def test_what_cannot_cross_is_said_before_anything_runs(place: Path) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id", runner="processes")
    with pytest.raises(UsageError, match="top level"):
        job.run(ITEMS, checkpoint=place)

    async def coroutine(rows: list[Any]) -> list[Any]:
        return rows

    with pytest.raises(UsageError, match="coroutine"):
        resumable_task(coroutine, key="id", runner="processes").run(ITEMS, checkpoint=place)


@resumable_task(key="id", batch_size=1, runner="processes", concurrency=1, grace_seconds=0)
def sleeps(rows: list[Any]) -> list[Any]:
    Path(rows[0]["path"]).touch()
    time.sleep(60)
    return rows


def test_a_batch_that_was_not_begun_is_not_said_to_be_going_on(place: Path, tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    items = [{"id": n, "path": str(begun)} for n in range(4)]

    def interrupt() -> None:
        while not begun.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(Interrupted, match=r"1 batch did not end in time, with the keys 0;"):
        sleeps.run(items, checkpoint=place)


def test_a_handler_of_a_script_works(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text("""
from resumable_tasks import resumable_task

@resumable_task(key="id", runner="processes", concurrency=2)
def job(rows):
    return rows

if __name__ == "__main__":
    print(job.run([{"id": i} for i in range(100)], checkpoint="c").completed)
""")
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "100\n"
