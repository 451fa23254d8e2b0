"""Signals to jobs in task runs of the user's own, which are off the main thread."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.prefect.api import until
from tests.processes import started

PROGRAM = """
import sys, time
from prefect import flow, task
from prefect.task_runners import ThreadPoolTaskRunner
from resumable_tasks import resumable_task

place = sys.argv[1]

@resumable_task(key="id", batch_size=1, concurrency=2, grace_seconds=20)
def work(items):
    with open(f"{place}/called", "a") as file:
        file.write(items[0]["id"] + "\\n")
    time.sleep(0.5)
    return [{"id": items[0]["id"]}]

@task
def step(part):
    given = [{"id": f"{part}{number}"} for number in range(200)]
    return work.run(given, checkpoint=f"{place}/{part}").completed

@flow(task_runner=ThreadPoolTaskRunner(max_workers=2))
def job():
    return [future.result() for future in step.map(["a", "b", "c", "d"])]

job()
"""


@pytest.mark.parametrize(
    "number",
    [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM],
    ids=lambda each: each.name,
)
def test_a_signal_stops_the_jobs_of_all_task_runs_and_no_other_begins(
    tmp_path: Path, prefect_env: dict[str, str], number: signal.Signals
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    called = tmp_path / "called"
    command = [sys.executable, tmp_path / "program.py", tmp_path]
    with started(command, env=prefect_env, stderr=subprocess.PIPE) as process:
        until(lambda: called.exists() and len(called.read_text().split()) >= 8, seconds=120)
        process.send_signal(number)
        said = process.communicate(timeout=60)[1]
    assert process.returncode in (75, -number), said
    keys = called.read_text().split()
    assert len(keys) < 20, said
    done = "".join(file.read_text() for file in tmp_path.glob("?/journal/*.jsonl"))
    assert [key for key in keys if f'"key":"{key}"' not in done] == []
