"""The server is killed under a flow run, or hangs: what is done is committed whatever happens."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.ports import free_port
from tests.prefect import server
from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import Scene
from tests.prefect.test_seen import shown, told

pytestmark = [
    pytest.mark.xdist_group("recovery_server"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    """A server for this module only, which its tests kill."""
    found = server.Server(tmp_path_factory.mktemp("own"), free_port(), warmed=True)
    found.start()
    yield found
    found.kill()


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    found = Scene(tmp_path)
    yield found
    found.close()


def test_a_server_that_is_killed_and_started_again_is_told_what_it_missed(
    scene: Scene, own: server.Server
) -> None:
    script = scene.script(server.environment(own.home, own.port), items=150, seconds=0.4)
    scene.wait_for_ended(4)
    own.kill()
    own.start()
    assert script.wait() == 0, scene.output()
    scene.check(150)
    assert len(scene.began()) == 30

    api = Api(own.port)
    run = scene.wait_for_flow(1)["id"]
    assert api.flow_run(run)["state"]["type"] == "COMPLETED"
    until(lambda: sum(batches(each["name"]) for each in api.task_runs(run)) == 30)


def batches(name: str) -> int:
    found = re.search(r"\((\d[\d,]*) batches", name)
    return int(found[1].replace(",", "")) if found else 1


CHILD = """
import json, sys, time
from prefect import flow
from prefect.runtime import flow_run
from resumable_tasks import resumable_task
from resumable_tasks.prefect import telemetry

telemetry._LAST_WORD_SECONDS = float(sys.argv[2])

def tell(**what):
    print(json.dumps(what), flush=True)

@resumable_task(key="id", batch_size=1, concurrency=2)
def job(rows):
    time.sleep(0.1)
    return rows

@flow
def main():
    tell(flow_run=str(flow_run.id))
    listen = lambda event: tell(event=type(event).__name__, at=time.monotonic())
    result = job.run([{"id": n} for n in range(100)], checkpoint=sys.argv[1], listeners=[listen])
    tell(completed=result.completed, at=time.monotonic())

main()
"""


class Child:
    """A flow run of about a hundred commits in 5 seconds, in a process of its own."""

    def __init__(self, own: server.Server, folder: Path, last_word: float) -> None:
        self.stderr = folder / "stderr"
        self.commits: list[float] = []
        with self.stderr.open("w") as stderr:
            self.process = warm.start(
                [sys.executable, "-c", CHILD, str(folder / "checkpoint"), str(last_word)],
                env=server.environment(folder / "home", own.port),
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                prefect=True,
            )

    def read(self) -> Iterator[dict[str, Any]]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            found = json.loads(line)
            if found.get("event") == "Committed":
                self.commits.append(found["at"])
            yield found

    @property
    def was_held_up(self) -> bool:
        """True if commits waited for an API: some for long, or many. A busy machine delays some."""
        pauses = sorted(b - a for a, b in pairwise(self.commits))
        return pauses[-1] > 10 or pauses[-4] > 1

    def end(self) -> None:
        assert self.process.stdout is not None
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture
def begin(own: server.Server, tmp_path: Path) -> Iterator[Callable[[float], Child]]:
    begun: list[Child] = []

    def start(last_word: float) -> Child:
        if own.process is None:  # killed by the test before
            own.start()
        begun.append(Child(own, tmp_path, last_word))
        return begun[-1]

    yield start
    for child in begun:
        child.end()


@pytest.mark.timing
def test_an_api_that_hangs_delays_no_commit_and_is_told_all_later(
    own: server.Server, begin: Callable[[float], Child]
) -> None:
    child, api = begin(10.0), Api(own.port)
    assert own.process is not None
    group = own.process.pid
    flow_run, completed = "", 0
    try:
        for said in child.read():
            flow_run = said.get("flow_run", flow_run)
            completed = said.get("completed", completed)
            if len(child.commits) == 10:
                os.killpg(group, signal.SIGSTOP)
            if len(child.commits) == 55:
                os.killpg(group, signal.SIGCONT)
    finally:
        os.killpg(group, signal.SIGCONT)
    assert child.process.wait(60) == 0, child.stderr.read_text()
    assert completed == 100
    assert len(child.commits) > 60  # some are of two batches
    assert not child.was_held_up, child.stderr.read_text()
    events = told(api, flow_run, len(child.commits))
    assert sum(each["payload"]["completed"] for each in events) == 100
    found = shown(api, flow_run)
    assert found["job-progress"]["data"] == 100
    assert "| new | 100 items |" in found["job-summary"]["data"]
    assert "API" not in child.stderr.read_text()


@pytest.mark.long
@pytest.mark.timing
def test_an_api_that_dies_delays_no_commit_and_the_end_but_little(
    own: server.Server, begin: Callable[[float], Child]
) -> None:
    child = begin(3.0)
    last = done = 0.0
    for said in child.read():
        if len(child.commits) == 10:
            own.kill()
        if said.get("event") == "Committed":
            last = said["at"]
        if said.get("completed") == 100:
            done = said["at"]
            break
    child.process.kill()  # what is left is Prefect's own: minutes of trying to tell of the end
    child.process.wait()
    assert len(child.commits) > 60
    assert not child.was_held_up, child.stderr.read_text()
    assert 0 < done - last < 5
    assert child.stderr.read_text().count("does not respond; the run's summary") == 1


@pytest.mark.long
@pytest.mark.parametrize("patience", ["short", "default"])
def test_without_a_server_the_work_is_committed_and_the_flow_fails_at_its_end(
    scene: Scene, own: server.Server, prefect_env: dict[str, str], patience: str
) -> None:
    if own.process is None:
        own.start()
    env = server.environment(own.home, own.port)
    if patience == "short":
        env["PREFECT_CLIENT_MAX_RETRIES"] = "0"
    script = scene.script(env, items=30, seconds=1.0)
    scene.wait_for_ended(2)
    own.kill()
    until(lambda: len(scene.ended()) == 6)
    until(lambda: len(scene.committed()) == 30, 5)

    # Prefect cannot report the end as Completed, takes that for a failure of the flow, and cannot
    # report that either. Then it tries to tell each event that waits, 7 seconds long.
    if patience == "short":
        until(lambda: "Encountered exception during execution: ConnectError" in scene.output())
        script.kill()
    else:
        assert script.wait(600) == 1
        assert scene.output().rstrip().count("httpx.ConnectError") >= 2
    scene.check(30)

    assert scene.script(prefect_env, items=30).wait() == 0
    assert "30 of 30 items done (30 before, 0 now)" in scene.output()
    assert len(scene.began()) == 6
    assert script.poll() in (1, -signal.SIGKILL)
