"""What people write by hand, on the same work: the loops that ours is measured against."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

Item = dict[str, Any]
Handler = Callable[[list[Item]], list[Item]]


def bare(handler: Handler, items: list[Item], batch: int, place: Path) -> None:
    """Nothing durable: a crash loses all."""
    for start in range(0, len(items), batch):
        handler(items[start : start + batch])


def sqlite(handler: Handler, items: list[Item], batch: int, place: Path) -> None:
    """A transaction a batch, in WAL mode, flushed (synchronous=full)."""
    db = sqlite3.connect(place / "results.sqlite", isolation_level=None)
    db.execute("pragma journal_mode=wal")
    db.execute("pragma synchronous=full")
    db.execute("create table if not exists results (id text primary key, value)")
    done = {key for (key,) in db.execute("select id from results")}
    todo = [item for item in items if item["id"] not in done]
    for start in range(0, len(todo), batch):
        rows = handler(todo[start : start + batch])
        db.execute("begin")
        db.executemany("insert into results values (:id, :value)", rows)
        db.execute("commit")
    db.close()


def jsonl(handler: Handler, items: list[Item], batch: int, place: Path) -> None:
    """A line a result, an fsync a batch. A torn last line, or two runs at once, break it."""
    path = place / "results.jsonl"
    done = set()
    if path.exists():
        with path.open() as lines:
            done = {json.loads(line)["id"] for line in lines}
    todo = [item for item in items if item["id"] not in done]
    with path.open("a") as out:
        for start in range(0, len(todo), batch):
            for row in handler(todo[start : start + batch]):
                out.write(json.dumps(row) + "\n")
            out.flush()
            os.fsync(out.fileno())
