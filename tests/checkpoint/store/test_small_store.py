"""A store of the five methods alone is enough: a table of SQLite, which has no folders or locks."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import JobFailed, resumable_task
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.testing.store_suite import StoreSuite
from tests import warm


@dataclass(frozen=True)
class SqliteStore(Store):
    url: str

    def __post_init__(self) -> None:
        self._do("CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, data BLOB) STRICT")

    def _do(self, statement: str, *values: Any) -> tuple[int, list[tuple[Any, ...]]]:
        with closing(sqlite3.connect(self.url, timeout=60)) as connection, connection:
            cursor = connection.execute(statement, values)
            return cursor.rowcount, cursor.fetchall()

    def read(self, name: str) -> bytes:
        _, rows = self._do("SELECT data FROM files WHERE name = ?", name)
        if not rows:
            raise FileNotFoundError(name)
        return bytes(rows[0][0])

    def list(self, folder: str) -> dict[str, int]:
        _, rows = self._do("SELECT name, length(data) FROM files")
        return {name: size for name, size in rows if name.rpartition("/")[0] == folder}

    def create(self, name: str, data: bytes) -> bool:
        return self._do("INSERT OR IGNORE INTO files VALUES (?, ?)", name, data)[0] == 1

    def put(self, name: str, data: bytes | memoryview) -> None:
        self._do("INSERT OR REPLACE INTO files VALUES (?, ?)", name, bytes(data))

    def delete(self, name: str) -> None:
        self._do("DELETE FROM files WHERE name = ?", name)


class TestSqliteStore(StoreSuite):
    half_seen_rounds = 3
    racers = 12
    processes = warm.Spawn()

    def make_store(self, tmp_path: Path) -> Store:
        return SqliteStore(str(tmp_path / "store.db"))

    def store_at(self, url: str) -> Store:
        return SqliteStore(url)

    def oracle(self, store: Store) -> dict[str, bytes]:
        with closing(sqlite3.connect(store.url)) as connection:
            return {name: bytes(data) for name, data in connection.execute("SELECT * FROM files")}


class InSqlite(Directory):
    def store(self) -> Store:
        return SqliteStore(self.path)


def test_a_job_is_interrupted_resumed_read_and_published(tmp_path: Path) -> None:
    place = InSqlite(str(tmp_path / "checkpoint.db"))
    bad = {17}

    @resumable_task(key="id", batch_size=5, concurrency=2)
    def square(items: list[dict[str, int]]) -> list[dict[str, int]]:
        if any(item["id"] in bad for item in items):
            raise ValueError("bad")
        return [{"id": item["id"], "square": item["id"] ** 2} for item in items]

    items = [{"id": n} for n in range(40)]
    with pytest.raises(JobFailed):
        square.run(items, checkpoint=place)
    bad.clear()
    run = square.run(items, checkpoint=place)
    assert (run.skipped, run.completed) == (39, 1)
    wanted = [{"id": n, "square": n * n} for n in range(40)]
    assert run.table(ordered=True).to_pylist() == wanted
    assert run.dataset().to_table().sort_by("id").to_pylist() == wanted
    assert run.publish(tmp_path / "published").rows == 40
    assert sorted(run.completed_keys()) == list(range(40))
    assert verify(place.store()).damages == []
