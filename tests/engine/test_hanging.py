"""Calls that hang: the run ends in order, names their items, and keeps no process and no place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import warm

PROGRAM = """
import sys, time
from resumable_tasks import Budget, resumable_task

def plain(rows):
    if "hangs" in rows[0]["id"]:
        time.sleep(600)
    return rows

async def coroutine(rows):
    return plain(rows)

given = [{{"id": name}} for name in {names!r}]
job = resumable_task({handler}, name="job", key="id", batch_size=1, concurrency=2, grace_seconds=1,
                     {options})
job.run(given, checkpoint=sys.argv[1])
"""
GOOD = [f"good{number}" for number in range(20)]


@pytest.mark.parametrize(
    ("handler", "names", "options", "code", "least"),
    [
        ("plain", ["hangs", *GOOD], "timeout=4", 75, 20),  # all others meanwhile
        ("plain", ["hangs1", "hangs2", *GOOD], "timeout=1", 75, 0),
        ("plain", [*GOOD, "hangs"], "budget=Budget(seconds=2)", 5, 20),
        ("coroutine", [*GOOD, "hangs"], "timeout=1", 75, 18),
    ],
    ids=["one of two threads", "both threads", "a budget of time", "a coroutine"],
)
def test_a_run_with_calls_that_hang_ends_and_names_their_items(
    tmp_path: Path, handler: str, names: list[str], options: str, code: int, least: int
) -> None:
    def start(these: list[str]) -> subprocess.CompletedProcess[str]:
        program = PROGRAM.format(handler=handler, names=these, options=options)
        return warm.run(
            [sys.executable, "-c", program, tmp_path / "c"],
            capture_output=True,
            text=True,
            timeout=60,
        )

    done = start(names)
    assert done.returncode == code, done.stderr
    said = done.stderr.splitlines()[-1]
    for name in names:
        assert (f'"{name}"' in said) >= ("hangs" in name), said
    lines = "".join(file.read_text() for file in tmp_path.glob("c/journal/*.jsonl"))
    assert sum(f'"{name}"' in lines for name in GOOD) >= least
    # Nobody holds the checkpoint.
    assert start(GOOD).returncode == 0


# The process that calls, and the one that waits for the answer, are stopped for longer than any
# call may take; once they go on, the call takes another moment.
STOPPED = """
import asyncio, os, subprocess, sys, time
from resumable_tasks import resumable_task

def stop():
    who = {os.getpid(), int(os.environ["DRIVER"])}
    command = 'kill -STOP "$@"; sleep 4; kill -CONT "$@"'
    subprocess.Popen(["sh", "-c", command, "sh", *map(str, who)])

def plain(rows):
    stop()
    for _ in range(10):
        time.sleep(0.05)
    return rows

async def coroutine(rows):
    stop()
    for _ in range(10):
        await asyncio.sleep(0.05)
    return rows

if __name__ == "__main__":
    os.environ["DRIVER"] = str(os.getpid())
    kind = sys.argv[2]
    job = resumable_task(coroutine if kind == "coroutine" else plain, name="job", key="id",
                         runner="processes" if kind == "process" else "local",
                         timeout=2, grace_seconds=1)
    job.run([{"id": 1}], checkpoint=sys.argv[1])
"""


@pytest.mark.parametrize("kind", ["thread", "coroutine", "process"])
def test_the_time_in_which_all_of_it_was_stopped_is_no_time_of_a_call(
    tmp_path: Path, kind: str
) -> None:
    (tmp_path / "program.py").write_text(STOPPED)
    done = warm.run(
        [sys.executable, tmp_path / "program.py", tmp_path / "c", kind],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "1/1 done" in done.stderr
