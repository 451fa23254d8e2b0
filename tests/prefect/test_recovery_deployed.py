"""Flow runs of deployments, which ``serve`` or a worker starts: killed, cancelled, suspended."""

from __future__ import annotations

import random
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from resumable_tasks import CheckpointUnusable, resumable_task
from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import PATIENCE, Scene, alive, run_here
from tests.prefect.recovery.supervisors import Served, Supervisor, Worker

pytestmark = [
    pytest.mark.xdist_group("recovery_deployed"),
    pytest.mark.usefixtures("in_prefect"),
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def served(
    api: Api, prefect_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Supervisor]:
    folder = tmp_path_factory.mktemp("served")
    found = Served(f"served-{uuid.uuid4().hex[:8]}", api, prefect_env, folder)
    yield found
    found.close()


@pytest.fixture(scope="module")
def worker(
    api: Api, prefect_env: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Supervisor]:
    folder = tmp_path_factory.mktemp("worker")
    found = Worker(f"worker-{uuid.uuid4().hex[:8]}", api, prefect_env, folder)
    yield found
    found.close()


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def at_once(*calls: Callable[[], None]) -> None:
    """Several stories side by side, since most of each is waiting for a process to start."""
    with ThreadPoolExecutor() as pool:
        for call in [pool.submit(call) for call in calls]:
            call.result()


@pytest.mark.long
def test_a_flow_run_that_was_killed_resumes_by_a_retry_and_by_a_new_run(
    tmp_path: Path, served: Supervisor, worker: Supervisor
) -> None:
    def story(supervisor: Supervisor) -> None:
        scene = Scene(tmp_path / supervisor.name)
        run = supervisor.run(scene.parameters(items=300))
        scene.wait_for_ended(4)
        started = scene.wait_for_flow(1)
        first = scene.kill(started["pid"])
        supervisor.wait_for(run, "Crashed")
        supervisor.settled(started)

        supervisor.retry(run)
        scene.wait_for_ended(10)
        started = scene.wait_for_flow(2)
        second = scene.kill(started["pid"])
        assert started["id"] == run
        assert supervisor.api.flow_run(run)["run_count"] == 2
        supervisor.wait_for(run, "Crashed")

        scene.hurry()
        new = supervisor.run(scene.parameters(items=300))
        supervisor.wait_for(new, "Completed")
        assert scene.wait_for_flow(3)["id"] == new
        scene.check(300)
        scene.check_little_was_redone(first, second)

    at_once(lambda: story(served), lambda: story(worker))


@pytest.mark.long
def test_a_flow_run_that_is_killed_again_and_again_gets_to_its_end(
    scene: Scene, worker: Supervisor
) -> None:
    chance, deaths = random.Random(3), []
    run = worker.run(scene.parameters(items=1_000))
    for nth in range(1, 6):
        started = scene.wait_for_flow(nth)
        time.sleep(chance.uniform(0.0, 0.8))
        deaths.append(scene.kill(started["pid"]))
        worker.wait_for(run, "Crashed")
        worker.settled(started)
        if nth == 5:
            scene.hurry()
        worker.retry(run)
    worker.wait_for(run, "Completed")
    scene.check(1_000)
    scene.check_little_was_redone(*deaths)
    assert worker.api.flow_run(run)["run_count"] == 6
    assert {note["id"] for note in scene.notes("flow")} == {run}


@pytest.mark.long
@pytest.mark.parametrize(
    "flows",
    [
        pytest.param([("job", False), ("ajob", True)], id="like its flow"),
        pytest.param([("job", True), ("ajob", False)], id="unlike it", marks=pytest.mark.long),
    ],
)
def test_a_cancel_lets_what_runs_finish_and_starts_nothing_more(
    tmp_path: Path, served: Supervisor, flows: list[tuple[str, bool]]
) -> None:
    options = {"batch_size": 1, "concurrency": 4}

    def story(flow: str, awaited: bool) -> None:
        scene = Scene(tmp_path / f"{flow} {awaited}")
        more = {"seconds": 5, "slow": {"0": 0.1}, "awaited": awaited, "options": options}
        run = served.run(scene.parameters(items=40, **more), flow)
        until(lambda: len(scene.began()) >= 5, PATIENCE)
        served.cancel(run)
        served.wait_for(run, "Cancelled")
        assert sorted(scene.began()) == [(0,), (1,), (2,), (3,), (4,)]
        # An event loop that ends cancels all that is on it; only there is what runs lost.
        lost = 4 if flow == "ajob" and awaited else 0
        assert len(scene.ended()) == 5 - lost
        done = scene.check()
        assert done == {key for keys in scene.ended() for key in keys}
        for left in scene.notes("left"):
            assert left["at"] > max(note["at"] for note in scene.notes("ended"))
        assert run_here(scene, 40, **options).skipped == len(done)
        scene.check(40)
        assert len(scene.began()) == 40 + lost

    at_once(*(partial(story, *each) for each in flows))


@pytest.mark.long
def test_a_cancel_loses_the_batch_that_takes_longer_than_prefect_waits(
    scene: Scene, worker: Supervisor
) -> None:
    options = {"batch_size": 1, "concurrency": 4}
    asked = scene.parameters(items=40, seconds=5, slow={"2": 90}, options=options)
    run = worker.run(asked)
    until(lambda: len(scene.began()) >= 4, PATIENCE)
    worker.cancel(run)
    worker.wait_for(run, "Cancelled")
    assert sorted(scene.began()) == [(0,), (1,), (2,), (3,)]
    assert scene.check() == {0, 1, 3}
    until(lambda: not alive(scene.wait_for_flow(1)["pid"]), 5)
    assert run_here(scene, 40, **options).skipped == 3
    scene.check(40)


@pytest.mark.long
def test_a_suspended_run_resumes(tmp_path: Path, served: Supervisor) -> None:
    def from_outside(flow: str) -> None:
        scene = Scene(tmp_path / flow)
        run = served.run(scene.parameters(items=1_000, awaited=False), flow)
        scene.wait_for_ended(4)
        served.suspend(run)
        until(lambda: not alive(scene.wait_for_flow(1)["pid"]))
        assert served.state(run) == "Suspended"
        done = scene.check()
        assert done == {key for keys in scene.began() for key in keys}
        assert len(done) < 1_000
        scene.hurry()
        served.resume(run)
        served.wait_for(run, "Completed")
        scene.check(1_000)
        assert max(Counter(scene.began()).values()) == 1
        assert scene.wait_for_flow(2)["id"] == run

    def by_itself() -> None:
        """Between two jobs: the first has nothing to do then."""
        scene = Scene(tmp_path / "by itself")
        run = served.run(scene.parameters(items=20), "two-jobs")
        served.wait_for(run, "Suspended")
        until(lambda: not alive(scene.wait_for_flow(1)["pid"]))
        scene.check(20)
        served.resume(run)
        served.wait_for(run, "Completed")
        scene.check(40)
        assert max(Counter(scene.began()).values()) == 1
        assert scene.wait_for_flow(2)["id"] == run

    at_once(lambda: from_outside("job"), lambda: from_outside("ajob"), by_itself)


@pytest.mark.long
def test_a_checkpoint_in_a_workers_temporary_folder_is_refused(
    scene: Scene, worker: Supervisor
) -> None:
    run = worker.run(scene.parameters(checkpoint="checkpoints/mine"))
    worker.wait_for(run, "Failed")
    message = worker.api.flow_run(run)["state"]["message"]
    assert "CheckpointUnusable" in message
    assert "deleted after this flow run" in message
    assert "give an absolute path" in message


def test_so_it_is_where_a_worker_has_started_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    task = resumable_task(lambda rows: rows, name="job", key="id")
    items = [{"id": n} for n in range(3)]
    job = flow(lambda: task.run(items, checkpoint="checkpoints/mine"), name="job")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "of the worker").mkdir()
    monkeypatch.chdir(tmp_path / "of the worker")
    with monkeypatch.context() as patch:
        patch.setenv("PREFECT__FLOW_RUN_ID", str(uuid.uuid4()))
        with pytest.raises(CheckpointUnusable, match=r"deleted after this flow run.*an absolute"):
            job()
    assert not Path("checkpoints").exists()
    assert job().completed == 3
