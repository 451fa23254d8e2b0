"""Killed while results are parked or taken over: each is kept once, and paid for once."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.urls import open_store
from tests import warm

# A job whose answers are an integer in every other batch, and text in those between.
PROGRAM = """
import json, sys
from resumable_tasks import JobFailed, resumable_task
from resumable_tasks.testing import faults
place, options, fault = sys.argv[1:]
faults.install(faults.parse(fault))
def ask(items):
    with open(place + ".paid", "a") as file:
        file.writelines(f"{item['id']}\\n" for item in items)
    return [{**item, "limit": "five" if item["id"] // 5 % 2 else 5} for item in items]
job = resumable_task(ask, key="id", batch_size=5, concurrency=1, **json.loads(options))
try:
    job.run([{"id": n} for n in range(40)], checkpoint=place)
except JobFailed:
    sys.exit(1)
"""
POINTS = {
    "checkpoint.claimed": (1, 2),
    "commit.done": (1, 2),
    "commit.shard_written": (1, 2),
    "journal.before_create": (1, 2, 3, 4),
    "journal.created": (1, 2, 3, 4),
    "shard.written": (1, 2, 4),
    "store.linked": (1, 2, 3, 4),
}
EVERY = [f"{point}:{nth}" for point, each in POINTS.items() for nth in each]
# What a run passes that has nothing to do but to copy the rows of before and to take over.
TAKING_OVER = [
    each
    for each in EVERY
    if each not in ("commit.done:2", "commit.shard_written:2", "shard.written:4")
]


def run(place: Path, fault: str = "", **options: object) -> int:
    command = [sys.executable, "-c", PROGRAM, str(place), json.dumps(options), fault]
    ended = warm.run(command, capture_output=True, text=True, timeout=60)
    assert ended.returncode in (0, 1, -9), ended.stderr
    return int(ended.returncode)


def paid(place: Path) -> Counter[str]:
    return Counter(Path(f"{place}.paid").read_text().split())


def all_there(place: Path) -> None:
    """Every item has its row once, as JSON text, and nothing is damaged."""
    rows = resumable_task(list, name="ask", key="id").run([], checkpoint=place).table()
    assert {row["id"]: row["limit"] for row in rows.to_pylist()} == {
        n: '"five"' if n // 5 % 2 else "5" for n in range(40)
    }
    assert rows.num_rows == 40
    assert not verify(open_store(place)).damages


@pytest.mark.sample(one_in=5)
@pytest.mark.parametrize("fault", EVERY)
def test_killed_while_they_are_parked(tmp_path: Path, fault: str) -> None:
    place = tmp_path / "c"
    assert run(place, fault) in (-9, 1)
    assert run(place) == 1
    state = Reader.at(str(place)).state
    assert (len(state.done), len(state.parked), len(state.failures)) == (20, 20, 0)
    # Only what was in flight when it was killed is paid for again.
    assert set(paid(place).values()) <= {1, 2}
    before = paid(place)
    assert run(place, json_columns=["limit"]) == 0
    assert paid(place) == before
    all_there(place)


@pytest.mark.sample(one_in=4)
@pytest.mark.parametrize("fault", TAKING_OVER)
def test_killed_while_they_are_taken_over(tmp_path: Path, fault: str) -> None:
    place = tmp_path / "c"
    assert run(place) == 1
    assert run(place, fault, json_columns=["limit"]) == -9
    state = Reader.at(str(place)).state
    assert len(state.done) + len(state.parked) == 40
    assert run(place, json_columns=["limit"]) == 0
    assert set(paid(place).values()) == {1}
    all_there(place)
