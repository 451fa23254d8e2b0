"""The driver is killed by SIGKILL, or by Ctrl-C in a terminal, while its workers are at work."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.prefect.api import until
from tests.prefect.distributed import oracle
from tests.prefect.distributed.conftest import REPOSITORY, Engine
from tests.prefect.distributed.handlers import calls, items, work

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

COUNT = 240
Start = Callable[[Engine], "subprocess.Popen[bytes]"]


@pytest.fixture
def start(place: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts a driver in a session of its own, whose processes are all ended afterwards."""
    started: list[subprocess.Popen[bytes]] = []

    def start(engine: Engine) -> subprocess.Popen[bytes]:
        more = [engine.elsewhere, str(place), str(tmp_path), str(COUNT)]
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.prefect.distributed.driver", *more],
            cwd=REPOSITORY,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=(tmp_path / "driver.log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_next_driver_goes_on_and_the_workers_of_the_dead_one_stop(
    engine: Engine, start: Start, place: Path, tmp_path: Path
) -> None:
    first = start(engine)
    until(lambda: first.poll() is not None or len(calls(tmp_path)) >= 30, 60)
    assert first.poll() is None, (tmp_path / "driver.log").read_text()
    first.kill()
    killed = time.time()
    first.wait()
    committed = set(oracle.keys(place))
    begun = {n for call in calls(tmp_path) if call.time < killed for n in call.ids}
    # Each of three task runs is at one batch, and has left at most what a tenth of a second gave.
    assert len(begun - committed) <= 2 * 3 * 3
    time.sleep(0.5)
    if engine.name != "ray":  # which ends the workers of a driver that has died
        assert max(call.time for call in calls(tmp_path)) > killed, "nothing that had to be stopped"

    result = engine.run(work, items(tmp_path, COUNT, run=2), checkpoint=place)
    assert result.completed + result.skipped == COUNT
    oracle.each_once(place, set(range(COUNT)))
    again = {n for call in calls(tmp_path) if call.run == 2 for n in call.ids}
    assert not again & committed
    claims = [head for head, *_ in oracle.records(place) if head["kind"] == "claim"]
    taken_over = datetime.fromisoformat(claims[1]["time"]).timestamp()
    late = [call for call in calls(tmp_path) if call.run == 1 and call.time > taken_over + 0.5]
    assert late == []

    # What they left after they had been swept, the next driver sweeps.
    assert work.run(items(tmp_path, COUNT), checkpoint=place).skipped == COUNT
    assert oracle.orphans(place) == set()
    assert oracle.unfinished(place) == set()
    assert oracle.outbox(place) == set()


def test_ctrl_c_in_a_terminal_costs_no_batch_of_a_process_pool(
    pool: Engine, start: Start, place: Path, tmp_path: Path
) -> None:
    """All processes get the signal."""
    driver = start(pool)
    until(lambda: driver.poll() is not None or len({call.pid for call in calls(tmp_path)}) == 2, 60)
    os.killpg(driver.pid, signal.SIGINT)
    assert driver.wait(60) == 75, (tmp_path / "driver.log").read_text()
    begun = {n for call in calls(tmp_path) for n in call.ids}
    assert set(oracle.keys(place)) == begun
    assert len(begun) < COUNT
