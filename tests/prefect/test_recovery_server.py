"""The server is killed under a flow run: what is done is committed whatever becomes of it."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prefect import server
from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import Scene

pytestmark = [
    pytest.mark.xdist_group("recovery_server"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[server.Server]:
    """A server for this module only, which its tests kill."""
    found = server.Server(tmp_path_factory.mktemp("own"), server.free_port(), warmed=True)
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


@pytest.mark.parametrize("patience", ["short", pytest.param("default", marks=pytest.mark.long)])
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
