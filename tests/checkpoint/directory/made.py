"""Checkpoints made record by record, and what is in them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from resumable_tasks import Changes
from resumable_tasks.checkpoint import form
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.fingerprints import digest
from resumable_tasks.items.plan import Planning
from resumable_tasks.results.rows import table as all_rows
from resumable_tasks.runners.outcome import Done


def never() -> bool:
    return False


def opened(place: Any, *, changes: bool = False, takeover: bool = False) -> DirectoryCheckpoint:
    planning = Planning("id", changes=Changes("v") if changes else None)
    return DirectoryCheckpoint.open(
        open_store(place),
        Manifest("job", "1", {"field": "id"}, "one"),
        form.Job("job", "1", "one", planning),
        form.Opening(takeover=takeover),
    )


def commit(checkpoint: DirectoryCheckpoint, ids: Iterable[int], value: str = "a") -> int:
    """Commit these items in one record, and its number."""
    items = [{"id": n, "v": value} for n in ids]
    table = pa.Table.from_pylist(items)
    lines = keys.join(keys.canonical(item["id"]) for item in items)
    taken = [digest(value)] * len(items) if checkpoint._job.planning.fingerprinter else None
    batch = Batch(0, [item["id"] for item in items], lines, items, fingerprints=taken)
    unit = checkpoint.begin()
    unit.add(Done(batch, lines, len(items), table, schema=table.schema))
    return unit.commit().number


def filled(place: Any, count: int, *, changes: bool = False, tidy: bool = False) -> None:
    """A checkpoint of so many items, each in a commit of its own."""
    checkpoint = opened(place, changes=changes)
    for n in range(count):
        commit(checkpoint, [n])
        if tidy:
            checkpoint.tidy(never)
    checkpoint.end("done", {})
    checkpoint.close()


def rows_in(place: Any) -> list[tuple[int, str]]:
    """All rows in their order, of a sound checkpoint."""
    store = open_store(place)
    report = verify(store)
    assert report.damages == []
    table = DirectoryReader(store).read(all_rows)
    state = read_checkpoint(store)[1]
    assert report.items == len(state.done) == table.num_rows == report.rows
    found = list(zip(table["id"].to_pylist(), table["v"].to_pylist(), strict=True))
    assert len(set(table["id"].to_pylist())) == len(found)
    return found
