"""The forms of checkpoint keep the contract of forms; for databases see tests/checkpoint/sql."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from resumable_tasks.testing.form_suite import NOTE, Bench, FormSuite, flip
from tests import warm


class TestJournal(warm.WarmForms, FormSuite):
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

    def fix(self, place: Path) -> None:
        resumable = [sys.executable, "-c", "from resumable_tasks.cli import main; main()"]
        warm.run([*resumable, "repair", str(place / "checkpoint")], check=True)


class TestSnapshot(FormSuite):
    """State that is a structure, saved whole now and then; in fresh interpreters, as is shipped."""

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
        # As any program, a loop of one's own: Python ends by SIGINT, but goes on with SIGTERM as
        # with an exit.
        return (-number,) if number == signal.SIGINT else (128 + number,)

    def results(self, place: Path) -> list[int]:
        generations = sorted((place / "snapshot").glob("*.json"))
        if not generations:
            return []
        state = json.loads(generations[-1].read_text().splitlines()[1])
        assert all(result == unit**2 for unit, result in state["results"])
        return [unit for unit, _ in state["results"]]

    def damage(self, place: Path) -> None:
        flip(sorted((place / "snapshot").glob("*.json"))[-1])

    @pytest.mark.parametrize(
        "after", [pytest.param(n, marks=() if n == 17 else pytest.mark.long) for n in (1, 17, 45)]
    )
    def test_killed_and_run_again(self, bench: Bench, after: int) -> None:
        super().test_killed_and_run_again(bench, after)
