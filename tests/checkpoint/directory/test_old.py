"""Checkpoints that were made before the rooms (by commit f104a72) open, resume and publish.

``old/`` holds them as they were written: with failures, fingerprints and rows that were taken
back, keys of two fields, keys that a callable made, and a run that was stopped by its budget.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Changes, Failing, RunResult, resumable_task
from resumable_tasks.checkpoint.directory.reader import read_checkpoint
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.local import LocalStore

OLD = Path(__file__).with_name("old")
# Known by its qualified name, which a function in a test has not.
as_tuple = lambda item: tuple(item)  # noqa: E731


@pytest.fixture
def old(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A copy of the checkpoint that the test is named for."""
    name = request.node.name.removeprefix("test_").split("_")[0]
    return shutil.copytree(OLD / name, tmp_path / name)


def rows(count: int, **new: str) -> list[dict[str, str]]:
    return [{"id": f"k{n}", "etag": new.get(f"k{n}", "old")} for n in range(count)]


def published(run: RunResult, tmp_path: Path) -> list[dict[str, Any]]:
    import pyarrow.dataset as pads

    assert run.publish(tmp_path / "published").rows == run.table().num_rows
    table = pads.dataset(tmp_path / "published", exclude_invalid_files=True).to_table()
    assert table.equals(run.table())
    assert verify(LocalStore(run.checkpoint)).damages == []
    return run.table(ordered=True).to_pylist()


def test_failures_are_quarantined_and_tried_again_once_that_is_allowed(
    old: Path, tmp_path: Path
) -> None:
    @resumable_task(name="failures", key="id", failing=Failing(max_attempts=2))
    def job(items: list[dict[str, str]]) -> list[dict[str, Any]]:
        return [{"id": item["id"], "value": len(item["id"])} for item in items]

    found = read_checkpoint(LocalStore(old))[1].failures
    assert {(f.key, f.error, f.attempts) for f in found.values()} == {
        ("k3", "ValueError", 2),
        ("k7", "ValueError", 2),
    }
    assert (first := job.run(rows(20), checkpoint=old)).quarantined == 2
    assert (first.skipped, first.completed) == (18, 0)
    run = job.with_options(failing=Failing()).run(rows(20), checkpoint=old)
    assert (run.skipped, run.completed) == (18, 2)
    assert published(run, tmp_path) == [{"id": f"k{n}", "value": len(f"k{n}")} for n in range(20)]


def test_changes_are_seen_by_the_old_fingerprints(old: Path, tmp_path: Path) -> None:
    handled: list[str] = []

    @resumable_task(name="changes", key="id", batch_size=4, changes=Changes("etag"))
    def job(items: list[dict[str, str]]) -> list[dict[str, str]]:
        handled.extend(item["id"] for item in items)
        return [{"id": item["id"], "value": item["etag"]} for item in items]

    run = job.run(rows(14, k1="newer", k6="new", k9="new"), checkpoint=old)
    assert handled == ["k9"]
    values = {row["id"]: row["value"] for row in published(run, tmp_path)}
    assert values == {row["id"]: row["etag"] for row in rows(14, k1="newer", k6="new", k9="new")}


def test_composite_keys_are_skipped(old: Path, tmp_path: Path) -> None:
    items = [{"a": x, "b": n} for x in "xyz" for n in range(4)]

    @resumable_task(name="composite", key=("a", "b"), batch_size=3, results="many")
    def job(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"a": i["a"], "b": i["b"], "n": n} for i in items for n in range(i["b"])]

    run = job.run(items, checkpoint=old)
    assert (run.skipped, run.completed) == (8, 4)
    wanted = [(i["a"], i["b"], n) for i in items for n in range(i["b"])]
    assert [tuple(row.values()) for row in published(run, tmp_path)] == wanted


def test_tuples_that_a_callable_made_are_skipped(old: Path, tmp_path: Path) -> None:
    @resumable_task(name="tuples", key=as_tuple, batch_size=3)
    def job(items: list[Any]) -> list[dict[str, int]]:
        return [{"n": item[1]} for item in items]

    run = job.run([("a", n) for n in range(9)], checkpoint=old)
    assert (run.skipped, run.completed) == (7, 2)
    assert [row["n"] for row in published(run, tmp_path)] == list(range(9))


def test_stopped_runs_go_on(old: Path, tmp_path: Path) -> None:
    @resumable_task(name="stopped", key="id", batch_size=5)
    def job(items: list[dict[str, str]]) -> list[dict[str, Any]]:
        return [{"id": item["id"], "value": 1} for item in items]

    run = job.run(rows(20), checkpoint=old)
    assert (run.skipped, run.completed) == (10, 10)
    assert len(published(run, tmp_path)) == 20
