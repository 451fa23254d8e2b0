"""A deployment's flow run leaves its process while a service works, and comes back in another."""

from __future__ import annotations

import datetime
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from prefect import flow, task

from resumable_tasks import resumable_task
from resumable_tasks.errors import UsageError
from tests import warm
from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import PATIENCE, alive
from tests.prefect.recovery.supervisors import Served, Supervisor, Worker
from tests.submitted.service import FileService, items

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


class ByHand(Supervisor):
    """The test starts each process, as a worker would."""

    def start(self) -> None:
        pass

    def command(self) -> list[str]:
        return [sys.executable, "-m", "prefect.flow_engine", f"{HERE / 'flow.py'}:waits"]

    def settled(self, note: dict[str, Any]) -> None:
        pass

    def _deployment(self, flow: str) -> str:
        about = {"flow_id": self.api.call("POST", "flows/", {"name": flow})["id"]}
        name = f"{self.name}-{uuid.uuid4().hex[:8]}"
        return str(self.api.call("POST", "deployments/", {**about, "name": name})["id"])

    def carry_out(self, run: str) -> None:
        env = {**self._env, "PREFECT__FLOW_RUN_ID": run}
        said = {"capture_output": True, "text": True, "timeout": PATIENCE}
        done = warm.run(self.command(), cwd=self._folder, env=env, prefect=True, **said)
        assert done.returncode == 0, done.stderr


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
        assert "waits-for-a-service" in flow_run["tags"]


def at_once(*calls: Callable[[], None]) -> None:
    with ThreadPoolExecutor(len(calls)) as pool:
        for future in [pool.submit(call) for call in calls]:
            future.result()


def test_a_flow_run_leaves_and_comes_back_in_another_process(
    tmp_path: Path, api: Api, env: dict[str, str]
) -> None:
    by_hand = ByHand("by-hand", api, env, tmp_path)
    story = Story.begun(tmp_path / "place", by_hand)
    by_hand.carry_out(story.run)
    (away,) = [state for state in story.states if state["name"] == "AwaitingRetry"]
    assert "2 submissions with the service" in away["message"]
    assert len(story.notes()) == 1
    story.service.end_all()
    by_hand.carry_out(story.run)
    story.wait_for_state("Completed")
    story.check()
    assert len(story.notes()) == 2


@pytest.mark.long
def test_so_does_one_of_a_worker_that_is_started_again(tmp_path: Path, worker: Works) -> None:
    story = Story.begun(tmp_path / "worker", worker)
    story.wait_for_looks(1)
    story.wait_for_state("AwaitingRetry")
    worker.start_again()
    story.wait_for_looks(2)
    story.wait_for_state("AwaitingRetry")
    away = [state for state in story.states if state["name"] == "AwaitingRetry"]
    assert len(away) >= 2
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


@pytest.mark.long
def test_what_is_cancelled_while_it_is_away_stays_away(tmp_path: Path, worker: Works) -> None:
    story = Story.begun(tmp_path / "cancelled", worker, look=3_600)
    story.wait_for_state("AwaitingRetry")
    until(lambda: not alive(story.notes()[0]["pid"]), PATIENCE)
    state = {"state": {"type": "CANCELLING"}}  # as `prefect flow-run cancel` asks for it
    worker.api.call("POST", f"flow_runs/{story.run}/set_state", state)
    story.wait_for_state("Cancelled")
    assert len(story.service.submissions) == 2
    story.service.end_all()
    # What it has left is collected by the next run, and nothing is submitted again.
    made = resumable_task(story.service, name="waits", key="id", batch_size=10)
    assert made.run(items(20), checkpoint=story.place / "checkpoint").completed == 20
    assert story.service.paid == dict.fromkeys(range(20), 1)
    assert len(story.notes()) == 1
    assert worker.state(story.run) == "Cancelled"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_looks_are_no_retries(tmp_path: Path, served: Serves) -> None:
    story = Story.begun(tmp_path / "fails", served, "fails-once")
    story.wait_for_looks(3)
    story.ends()
    flow_run = served.api.flow_run(story.run)
    assert flow_run["run_count"] > 3
    assert [state["type"] for state in story.states].count("FAILED") == 0
    assert [note["completed"] for note in story.notes("done")] == [20, 0]


@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_a_day_of_looks(tmp_path: Path, worker: Works) -> None:
    """Twenty-five of them, and two workers: the count of executions stops nothing."""
    story = Story.begun(tmp_path / "day", worker, look=5.0)
    for looks in (12, 25):
        until(lambda looks=looks: len(story.notes()) >= looks, 1_700)
        story.wait_for_state("AwaitingRetry")  # a look that dies with its worker is a crash
        worker.start_again()
    story.ends()
    story.check()


@pytest.mark.parametrize("how", ["subflow", pytest.param("task", marks=pytest.mark.long), "script"])
def test_where_it_cannot_leave_it_waits(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if how != "script":  # as in a process that a worker has started
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", str(uuid.uuid4()))
    service = FileService(tmp_path / "service", takes=0.5)
    made = resumable_task(service, name="waits", key="id", batch_size=10)

    def job(wait: Any) -> int:
        return int(made.run(items(10), checkpoint=tmp_path / "c", wait=wait).completed)

    inner: Any = {"subflow": flow, "task": task, "script": lambda call: call}[how](job)
    outer: Any = flow(lambda wait: inner(wait), name="outer")
    said = {
        "subflow": "the job runs in a subflow",
        "task": "the job runs inside a task of your own",
        "script": "the flow run has no deployment, so nothing would start it again",
    }[how]
    with pytest.raises(UsageError, match=said) as refused:
        outer("reschedule")
    assert "Leave wait= out" in str(refused.value)
    assert not service.submissions
    caplog.clear()
    assert outer(None) == 10
    assert service.paid == dict.fromkeys(range(10), 1)
    assert (f"{said}, so this process waits" in caplog.text) == (how != "script")


def covering(state: str, executions: int, *tags: str) -> list[str]:
    """The automations that such an event of a flow run is for, by Prefect's own judgement."""
    from prefect.server.events.schemas.automations import EventTrigger
    from prefect.server.events.schemas.events import ReceivedEvent

    resource = {
        "prefect.resource.id": f"prefect.flow-run.{uuid.uuid4()}",
        "prefect.run-count": str(executions),
    }
    related = [
        {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
        for tag in tags
    ]
    event = ReceivedEvent.model_validate(
        {
            "event": f"prefect.flow-run.{state}",
            "resource": resource,
            "related": related,
            "id": uuid.uuid4(),
            "occurred": datetime.datetime.now(datetime.UTC),
        }
    )
    found = yaml.safe_load((ROOT / "deployments/automations.yaml").read_text())["automations"]
    return [
        each["name"]
        for each in found
        if each["trigger"]["posture"] == "Reactive"
        and EventTrigger.model_validate(each["trigger"]).covers(event)
    ]


@pytest.mark.parametrize(("state", "what"), [("Crashed", "has crashed"), ("Lost", "is lost")])
def test_a_death_after_many_looks_is_resumed_once(state: str, what: str) -> None:
    waits = "waits-for-a-service"
    for executions in (1, 7):
        for tags in ([], [waits]):
            always = [f"resumable: rerun what {what}"]
            assert covering(state, executions, "resumable", *tags) == always
    for executions in (8, 25, 199):
        between = [f"resumable: rerun what {what} between two looks"]
        assert covering(state, executions, "resumable", waits) == between
        # One that has no service to wait for has died that often.
        assert covering(state, executions, "resumable") == []
        assert covering(state, executions, waits) == []
    assert covering(state, 200, "resumable", waits) == []
