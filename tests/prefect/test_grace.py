"""The grace is the same on Prefect's threads and in its process pool, which Prefect waits for."""

from __future__ import annotations

import multiprocessing.synchronize
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from resumable_tasks.prefect import worker
from tests.prefect.api import until
from tests.prefect.distributed import oracle
from tests.processes import started

PROGRAM = """
import sys, time
from pathlib import Path
from prefect import flow, task_runners
from resumable_tasks import resumable_task

folder = Path(sys.argv[1])

@resumable_task(key="id", batch_size=1, concurrency=2, grace_seconds=float(sys.argv[3]))
def work(items):
    number = items[0]["id"]
    with open(folder / "called", "a") as file:
        file.write(f"{number}\\n")
    while not (folder / f"go{number}").exists():
        time.sleep(0.02)
    return items

def job():
    work.run([{"id": number} for number in range(6)], checkpoint=folder / "checkpoint")

if __name__ == "__main__":
    runner = getattr(task_runners, sys.argv[2])(max_workers=2)
    flow(job, name="grace", task_runner=runner)()
"""
THREADS, POOL = "ThreadPoolTaskRunner", "ProcessPoolTaskRunner"
GRACE, FOR_EVER = 10, 3_600


def _hang(begun: multiprocessing.synchronize.Event) -> None:
    begun.set()
    time.sleep(3_600)


def _with_a_process_of_its_own() -> None:
    worker._leave_signals_to_the_driver()
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    process = fork.Process(target=_hang, args=[begun])
    process.start()
    assert begun.wait(30)
    process.terminate()
    process.join()


def _asked_to_stop_in_each_of_two_task_runs() -> None:
    for _ in range(2):
        worker._leave_signals_to_the_driver()
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "what", [_with_a_process_of_its_own, _asked_to_stop_in_each_of_two_task_runs]
)
def test_in_prefects_pool_each_task_run_leaves_one_signal_to_the_driver_and_a_fork_none(
    what: Callable[[], None],
) -> None:
    process = multiprocessing.get_context("spawn").Process(target=what)
    process.start()
    process.join(60)
    process.kill()
    process.join()
    assert process.exitcode == 0


@contextmanager
def in_a_group(command: list[str], env: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Start a program as the first process of a group, all of which ends here."""
    with started(command, env=env, stderr=subprocess.PIPE, start_new_session=True) as process:
        try:
            yield process
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("runner", "number", "grace"),
    [
        (POOL, signal.SIGTERM, GRACE),
        (THREADS, signal.SIGTERM, GRACE),
        (POOL, signal.SIGINT, FOR_EVER),
        pytest.param(POOL, signal.SIGINT, GRACE, marks=pytest.mark.long),
        pytest.param(POOL, signal.SIGTERM, FOR_EVER, marks=pytest.mark.long),
        pytest.param(THREADS, signal.SIGINT, GRACE, marks=pytest.mark.long),
        pytest.param(THREADS, signal.SIGINT, FOR_EVER, marks=pytest.mark.long),
        pytest.param(THREADS, signal.SIGTERM, FOR_EVER, marks=pytest.mark.long),
    ],
)
def test_a_call_that_does_not_end_keeps_no_flow_longer_than_the_grace_or_a_second_signal(
    runner: str, number: signal.Signals, grace: int, tmp_path: Path, prefect_env: dict[str, str]
) -> None:
    """What has ended by then is committed, and only what had not is called again."""
    (tmp_path / "program.py").write_text(PROGRAM)
    place, called = tmp_path / "checkpoint", tmp_path / "called"

    def command(runner: str) -> list[str]:
        return [sys.executable, str(tmp_path / "program.py"), str(tmp_path), runner, str(grace)]

    def calls() -> list[str]:
        return called.read_text().split() if called.exists() else []

    with in_a_group(command(runner), prefect_env) as process:
        until(lambda: process.poll() is not None or len(calls()) == 2)

        def send() -> None:
            # Terminals and Prefect's worker send it to all processes, a container's host to one.
            to = os.killpg if grace == GRACE else os.kill
            to(process.pid, number)

        send()
        (tmp_path / "go1").touch()
        until(lambda: oracle.keys(place) == [1])
        if grace == FOR_EVER:
            send()
        said = process.communicate(timeout=60)[1]
    assert process.returncode == (75 if number == signal.SIGINT else -number), said
    assert "1 batch did not end in time, with the keys 0;" in said
    assert sorted(calls()) == ["0", "1"], said
    assert oracle.keys(place) == [1]

    for each in range(6):
        (tmp_path / f"go{each}").touch()
    subprocess.run(command(THREADS), env=prefect_env, check=True, timeout=120)
    assert sorted(calls()) == ["0", *"012345"]
    oracle.each_once(place, set(range(6)))
