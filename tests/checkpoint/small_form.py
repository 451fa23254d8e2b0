"""A form of checkpoint in one class: rows in a table of SQLite, one driver at a time."""

from __future__ import annotations

import fcntl
import json
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads

from resumable_tasks import CheckpointHeld
from resumable_tasks.checkpoint.estimate import Estimate
from resumable_tasks.checkpoint.form import (
    Checkpoint,
    CommittedRows,
    Found,
    Place,
    Preview,
    Reader,
    Receipt,
    Unit,
)
from resumable_tasks.items import keys
from resumable_tasks.items.keytable import KeyTable


class RowsInSqlite(Place, Checkpoint, Unit, Reader):
    """Place, checkpoint, unit and reader at once: it has one of each at a time."""

    def __init__(self, path: str) -> None:
        self.url, self.run, self.number = path, "run", 0
        self.database = sqlite3.connect(path, check_same_thread=False)
        self.database.execute("CREATE TABLE IF NOT EXISTS done (key TEXT PRIMARY KEY, rows TEXT)")
        self.lock = Path(f"{path}.lock").open("w")  # noqa: SIM115 - for as long as it is held

    # A place

    def check(self, job: Any, items: Any) -> Any:
        return job

    def preview(self, job: Any, items: Any) -> Preview:
        left = sum(map(len, job.planning.planner(self._done()).batches(items)))
        return Preview(self.url, left, 0, Estimate(left))

    def open(self, job: Any, opening: Any) -> Checkpoint:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointHeld(f"{self.url} is held by another run") from None
        done = self._done()
        self.job, self.found, self.planner = job.name, Found(len(done)), job.planning.planner(done)
        return self

    def reader(self) -> Reader:
        return self

    def _done(self) -> KeyTable:
        done = KeyTable()
        for (line,) in self.database.execute("SELECT key FROM done"):
            done.add(line.encode(), -1)
        return done

    # A checkpoint

    def begin(self) -> Unit:
        self.added: list[Any] = []
        return self

    def end(self, how: str, counts: Any) -> None:
        pass

    def close(self) -> None:
        fcntl.flock(self.lock, fcntl.LOCK_UN)

    # A unit

    def add(self, outcome: Any) -> Any:
        self.added.append(outcome)
        return outcome

    def commit(self) -> Receipt:
        rows = [row for each in self.added if each.table for row in each.table.to_pylist()]
        lines = [line for each in self.added if each.completed for line in keys.split(each.done)]
        with self.database:
            for line, row in zip(lines, rows, strict=True):
                self.database.execute(
                    "INSERT INTO done VALUES (?, ?)", (line.decode(), json.dumps(row))
                )
        self.number += 1
        failures = tuple(failure for each in self.added for failure in each.failures)
        return Receipt(self.number, len(lines), len(rows), failures=failures)

    # A reader

    def _table(self) -> pa.Table:
        rows = self.database.execute("SELECT rows FROM done").fetchall()
        return pa.Table.from_pylist([json.loads(row) for (row,) in rows])

    def read(self, use: Any) -> Any:
        table = self._table()
        return use(CommittedRows(table.schema, lambda: iter([table]), {"field": "key"}))

    def dataset(self) -> pads.Dataset:
        return pads.dataset(self._table())

    def completed_keys(self) -> Any:
        found = self.database.execute("SELECT key FROM done")
        return (keys.parse(line.encode()) for (line,) in found)
