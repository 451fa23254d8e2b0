"""A job on a real Dask cluster, whose driver is killed at every step: its work is done once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("distributed")

from resumable_tasks.testing.faults import VARIABLE
from tests import warm
from tests.processes import started

REPOSITORY = Path(__file__).parents[2]
# The service has the work, and the checkpoint does not know what it is called there.
SHORT = ["submission.sent"]
LONG = [
    *("submission.sending", "submission.collected", "submission.submitting"),
    *("submission.prepared", "submission.submitted", "submission.ended"),
    *("commit.shard_written", "commit.done"),
]

DRIVER = """
import sys
from pathlib import Path
from flows.submitted_job import DaskJob
from resumable_tasks import resumable_task
from resumable_tasks.testing.faults import install_from_env
from tests.flows.test_submitted_job import noted
install_from_env()
scheduler, home = sys.argv[1], Path(sys.argv[2])
job = resumable_task(
    DaskJob(scheduler, home / "work", noted), name="job", key="path", batch_size=4, concurrency=2)
result = job.run([{"path": str(home / f"{n}.txt")} for n in range(10)],
                 checkpoint=home / "checkpoint", progress=False)
assert result.table().num_rows == 10
assert sorted(result.table()["lines"].to_pylist()) == list(range(10))
"""


def noted(start: str, out: str) -> None:
    """The work, which the worker notes down for each file that it begins."""
    from flows import submitted_job

    submitted_job.count_lines(start, f"{out}.counted")
    with open(os.path.join(os.path.dirname(start), "executed"), "a") as told:
        for row in pq.read_table(f"{out}.counted").to_pylist():
            told.write(f"{row['path']}\n")
    os.replace(f"{out}.counted", out)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A scheduler and a worker, processes of their own, which outlive every driver."""
    file = tmp_path_factory.mktemp("dask") / "scheduler.json"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": env}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker"]
    with (
        started(
            [*scheduler, "--port", "0", "--no-dashboard", "--scheduler-file", str(file)], **quiet
        ),
        started(
            [*worker, *("--scheduler-file", str(file), "--no-dashboard", "--nthreads", "4")],
            cwd=file.parent,
            **quiet,
        ),
    ):
        from distributed import Client

        until = time.monotonic() + 60
        while not file.exists():
            assert time.monotonic() < until
            time.sleep(0.1)
        with Client(scheduler_file=str(file), set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            address = client.scheduler.address
        yield address


@pytest.mark.parametrize(
    "point", [*SHORT, *(pytest.param(each, marks=pytest.mark.long) for each in LONG)]
)
def test_killed_at_a_step_the_work_is_done_once(cluster: str, point: str, tmp_path: Path) -> None:
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    for number in range(10):
        (tmp_path / f"{number}.txt").write_text("line\n" * number)
    codes = []
    for faults in (f"{point}:2:kill", ""):
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), VARIABLE: faults}
        done = warm.run(
            [sys.executable, str(script), cluster, str(tmp_path)],
            env=env,
            capture_output=True,
            text=True,
            timeout=120,
        )
        codes.append(done.returncode)
    assert codes == [-signal.SIGKILL, 0], done.stderr
    executed = Counter((tmp_path / "work/executed").read_text().split())
    assert executed == {str(tmp_path / f"{number}.txt"): 1 for number in range(10)}
