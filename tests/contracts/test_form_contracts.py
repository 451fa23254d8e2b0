"""The forms of checkpoint keep the contract of forms."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from resumable_tasks.testing.form_suite import NOTE, FormSuite, flip


class TestJournal(FormSuite):
    """A directory with an append-only journal and Parquet shards."""

    in_flight = 2 * 2 * 5

    def program(self, place: Path) -> str:
        return (
            NOTE
            + """
from resumable_tasks import resumable_task

@resumable_task(name="units", batch_size=5, concurrency=2)
def handler(units):
    for unit in units:
        note(unit)
        time.sleep(SECONDS)
    return [{"key": unit, "result": unit * unit} for unit in units]

handler.run(range(COUNT), checkpoint="checkpoint")
"""
        )

    def results(self, place: Path) -> list[int]:
        named: list[str] = []
        for record in sorted((place / "checkpoint/journal").glob("*.jsonl")):
            head = json.loads(record.read_text().splitlines()[0])
            gone = head.get("info", {}).get("retracted_shards", [])
            named = [path for path in named if path not in gone]
            named += [shard["path"] for shard in head.get("shards", [])]
        found: list[int] = []
        for path in named:
            found += pq.read_table(place / "checkpoint" / path)["key"].to_pylist()
        return found

    def damage(self, place: Path) -> None:
        newest = max(
            (place / "checkpoint/shards").glob("*.parquet"), key=lambda p: p.stat().st_mtime
        )
        flip(newest)

    def mend(self, place: Path) -> None:
        resumable = [sys.executable, "-c", "from resumable_tasks.cli import main; main()"]
        subprocess.run([*resumable, "repair", str(place / "checkpoint")], check=True)


class TestSqlite(FormSuite):
    """A column of a table, in SQLite."""

    in_flight = 2 * 2 * 5

    def program(self, place: Path) -> str:
        return (
            NOTE
            + """
import sqlite3
import subprocess
from resumable_tasks import SqlCheckpoint, resumable_task

database = sqlite3.connect("data.db", timeout=30)
with database:
    database.execute(
        "CREATE TABLE IF NOT EXISTS units "
        "(id INTEGER PRIMARY KEY, result INTEGER, processed_at TEXT)"
    )
    database.executemany(
        "INSERT OR IGNORE INTO units (id) VALUES (?)", [(unit,) for unit in range(COUNT)]
    )
database.close()
init = "sql init sqlite:///data.db --table units --key id --apply".split()
command = "from resumable_tasks.cli import main; main()"
subprocess.run([sys.executable, "-c", command, *init], check=True, stdout=subprocess.DEVNULL)

@resumable_task(name="units", key="id", batch_size=5, concurrency=2)
def handler(rows):
    for row in rows:
        note(row["id"])
        time.sleep(SECONDS)
    return [{"id": row["id"], "result": row["id"] ** 2} for row in rows]

handler.run(
    checkpoint=SqlCheckpoint("sqlite:///data.db", table="units", key="id", columns=["result"])
)
"""
        )

    def results(self, place: Path) -> list[int]:
        if not (place / "data.db").exists():
            return []
        database = sqlite3.connect(place / "data.db", timeout=30)
        try:
            rows = database.execute(
                "SELECT id, result, processed_at IS NOT NULL FROM units "
                "WHERE result IS NOT NULL OR processed_at IS NOT NULL"
            ).fetchall()
        finally:
            database.close()
        assert all(done and result == id_**2 for id_, result, done in rows)
        return [row[0] for row in rows]

    def damage(self, place: Path) -> None:
        pytest.skip("a database finds and mends its own damage")


class TestSnapshot(FormSuite):
    """State that is a structure, saved whole now and then."""

    in_flight = 5

    def program(self, place: Path) -> str:
        return (
            NOTE
            + """
import sys
from resumable_tasks import ResumableTasksError, Snapshot

try:
    with Snapshot("snapshot", every=5, initial={"next": 0, "results": []}) as snapshot:
        state = snapshot.state
        while state["next"] < COUNT:
            unit = state["next"]
            note(unit)
            time.sleep(SECONDS)
            state["results"].append([unit, unit * unit])
            state["next"] = unit + 1
            snapshot.step()
except ResumableTasksError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""
        )

    def interrupted_codes(self, number: signal.Signals) -> tuple[int, ...]:
        return (-number,)  # as any program: it is a loop of one's own

    def results(self, place: Path) -> list[int]:
        generations = sorted((place / "snapshot").glob("*.json"))
        if not generations:
            return []
        state = json.loads(generations[-1].read_text().splitlines()[1])
        assert all(result == unit**2 for unit, result in state["results"])
        return [unit for unit, _ in state["results"]]

    def damage(self, place: Path) -> None:
        flip(sorted((place / "snapshot").glob("*.json"))[-1])
