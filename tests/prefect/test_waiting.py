"""A deployment's flow run leaves its process while a service works, and comes back in another."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import PATIENCE
from tests.prefect.recovery.supervisors import Served, Supervisor, Worker
from tests.submitted.service import FileService

HERE = Path(__file__).parent / "waiting"
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.xdist_group("waiting"),
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Serves(Served):
    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "serve.py"), self.name]


class Works(Worker):
    path = HERE

    def start_again(self) -> None:
        """As after a reboot; flow runs that are away are nobody's meanwhile."""
        self.close()
        self.start()


@pytest.fixture(scope="module")
def env(prefect_env: dict[str, str]) -> dict[str, str]:
    return {**prefect_env, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def served(
    api: Api, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serves]:
    found = Serves(f"served-{uuid.uuid4().hex[:8]}", api, env, tmp_path_factory.mktemp("served"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def worker(
    api: Api, env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Works]:
    found = Works(f"worker-{uuid.uuid4().hex[:8]}", api, env, tmp_path_factory.mktemp("worker"))
    yield found
    found.close()


@dataclass
class Story:
    """One flow run, with a service and a checkpoint of its own."""

    place: Path
    supervisor: Supervisor
    run: str = ""

    @classmethod
    def begun(cls, place: Path, supervisor: Supervisor, flow: str = "waits", **more: Any) -> Story:
        place.mkdir()
        run = supervisor.run({"place": str(place), **more}, flow)
        return cls(place, supervisor, run)

    def notes(self, what: str = "flow") -> list[dict[str, Any]]:
        path = self.place / "notes"
        lines = path.read_text().splitlines() if path.exists() else []
        return [note for note in map(json.loads, lines) if note["what"] == what]

    def wait_for_looks(self, looks: int) -> None:
        until(lambda: len(self.notes()) >= looks, PATIENCE)

    def wait_for_state(self, name: str) -> None:
        self.supervisor.wait_for(self.run, name)

    @property
    def service(self) -> FileService:
        return FileService(self.place / "service")

    def ends(self) -> None:
        """The service has done it all; the flow run comes once more, and is done."""
        self.service.end_all()
        self.wait_for_state("Completed")

    @property
    def states(self) -> list[Any]:
        found: list[Any] = self.supervisor.api.call(
            "GET", f"flow_run_states/?flow_run_id={self.run}"
        )
        return found

    def check(self, count: int = 20) -> None:
        """It has left each time in order, and all was paid once."""
        flow_run, looks = self.supervisor.api.flow_run(self.run), self.notes()
        assert {note["id"] for note in looks} == {self.run}
        assert len({note["pid"] for note in looks}) == len(looks)
        # The date and the time are those of the schedule, whenever it was.
        assert len({(note["day"], note["time"]) for note in looks}) == 1
        assert not {"CRASHED", "FAILED"} & {state["type"] for state in self.states}
        assert [note["completed"] for note in self.notes("done")] == [count]
        assert self.service.paid == dict.fromkeys(range(count), 1)
        assert flow_run["run_count"] == len(looks)
        assert "resumable-waits" in flow_run["tags"]


def at_once(*calls: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


def test_a_flow_run_leaves_and_comes_back_in_other_processes(tmp_path: Path, worker: Works) -> None:
    story = Story.begun(tmp_path / "worker", worker)
    story.wait_for_looks(2)
    story.wait_for_state("AwaitingRetry")
    worker.start_again()
    story.wait_for_looks(4)
    away = [state for state in story.states if state["name"] == "AwaitingRetry"]
    assert len(away) >= 3
    assert "2 submissions with the service" in away[0]["message"]
    story.ends()
    story.check()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_so_does_one_that_is_served_and_one_that_is_awaited(tmp_path: Path, served: Serves) -> None:
    def story(flow: str) -> None:
        story = Story.begun(tmp_path / flow, served, flow)
        story.wait_for_looks(4)
        story.ends()
        story.check()

    at_once(lambda: story("waits"), lambda: story("awaits"))
