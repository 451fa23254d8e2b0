"""A worker whose checkpoint makes room for another one while it handles a batch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from resumable_tasks.base import log
from resumable_tasks.checkpoint.directory.outbox import Outbox
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.prefect import task_runs, worker
from resumable_tasks.prefect.wire import pickled
from resumable_tasks.prefect.workorder import WorkOrder
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.retries import RetryPolicy


def opened(folder: Path) -> Outbox:
    """A checkpoint in its first epoch, whose driver wants task run 0."""
    store = LocalStore(folder)
    store.prepare(("shards",))
    outbox = Outbox(store, 1)
    outbox.open()
    outbox.expect(0)
    return outbox


def makes_room(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    place = Path(items[0]["place"])
    place.rename(place.with_name("archived"))
    opened(place)
    return [{"id": item["id"]} for item in items]


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()}


def test_nothing_is_written_into_the_checkpoint_that_took_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An outcome there would have been committed: epoch, number and keys are the same."""
    monkeypatch.setattr(task_runs, "get_run_logger", lambda: log.logger)
    place = tmp_path / "place"
    outbox = opened(place)
    work = Work(
        *(makes_room, KeyScheme("id"), "one", RetryPolicy()), writer=ShardWriter(outbox.store, 1)
    )
    batches: list[Any] = []
    for number in range(2):
        given = cloudpickle.dumps([{"id": number, "place": str(place)}])
        lines = keys.join([keys.canonical(number)])
        batches.append((number, [number], lines, given, cloudpickle.dumps((None, None)), None))
    order = WorkOrder((outbox.token, 0), cloudpickle.dumps(outbox), pickled(work, 1), batches)
    worker.handle_group(order)
    same = Batch(0, [0], keys.canonical(0), [])
    assert Outbox(LocalStore(place), 1).take(same) is None, "the new driver would commit it"
    assert files(place) == {"e1-open", "e1-t0"}
    archived = files(tmp_path / "archived")
    assert "e1-0" in archived
    assert len([name for name in archived if name.endswith(".parquet")]) == 1
    assert "e1-1" not in archived, "a batch has begun for a checkpoint that is no longer there"
