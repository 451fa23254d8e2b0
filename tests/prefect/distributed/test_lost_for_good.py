"""Workers that no nanny replaces: what a batch does to them, and what is left when none is left."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Failing, JobFailed, Unfinished
from resumable_tasks.prefect import silence
from tests.prefect.api import Api, until
from tests.prefect.distributed import oracle
from tests.prefect.distributed.conftest import Engine
from tests.prefect.distributed.handlers import calls, items, work

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


class Cluster:
    """A cluster of processes that stay dead."""

    engine: Engine

    def lose_all(self) -> None:
        """Kill all workers."""
        raise NotImplementedError


class DaskWorkers(Cluster):
    def __init__(self, address: str, workers: list[subprocess.Popen[bytes]]) -> None:
        from prefect_dask import DaskTaskRunner

        self.workers = workers
        self.engine = Engine("dask", lambda: DaskTaskRunner(address=address), "", 1)

    @property
    def alive(self) -> int:
        return sum(worker.poll() is None for worker in self.workers)

    def lose_all(self) -> None:
        for worker in self.workers:
            worker.kill()


class RayNode(Cluster):
    """A Ray whose head takes no work, and one node that does."""

    def __init__(self, head: Any) -> None:
        from prefect_ray import RayTaskRunner

        self._head = head
        self._node = head.add_node(num_cpus=2, num_gpus=0)
        self.engine = Engine("ray", lambda: RayTaskRunner(address=head.address), "", 1)

    def lose_all(self) -> None:
        # Its raylet is killed first, so that it can tell nobody; its workers die with it.
        self._head.remove_node(self._node, allow_graceful=False)


@pytest.fixture
def dask_workers(in_prefect: None, tmp_path: Path) -> Iterator[Callable[[int], DaskWorkers]]:
    from distributed import LocalCluster

    with ExitStack() as stack:

        def make(count: int) -> DaskWorkers:
            local = stack.enter_context(
                LocalCluster(n_workers=0, dashboard_address=None, silence_logs="CRITICAL")
            )
            command = [sys.executable, "-m", "distributed.cli.dask_worker"]
            command += [local.scheduler_address, "--no-nanny", "--nthreads", "1", "--no-dashboard"]
            command += ["--local-directory", str(tmp_path / "dask")]
            workers = []
            for _ in range(count):
                worker = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                )
                stack.callback(worker.wait)
                stack.callback(worker.kill)
                workers.append(worker)
            local.wait_for_workers(count, timeout=120)
            return DaskWorkers(local.scheduler_address, workers)

        yield make


@pytest.fixture
def ray_node(in_prefect: None) -> Iterator[Callable[[int], RayNode]]:
    library = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster as OwnRay

    if library.is_initialized():
        pytest.skip("this process has another Ray: run this file by itself")
    with ExitStack() as stack:
        head = OwnRay(
            initialize_head=True,
            head_node_args={"num_cpus": 0, "include_dashboard": False},
        )
        stack.callback(head.shutdown)
        stack.callback(library.shutdown)
        yield lambda count: RayNode(head)


@pytest.fixture(params=["dask_workers", pytest.param("ray_node", marks=pytest.mark.long)])
def cluster(request: pytest.FixtureRequest) -> Callable[[int], Cluster]:
    """Makes a cluster of so many workers; on Ray, another node of the same one."""
    found: Callable[[int], Cluster] = request.getfixturevalue(request.param)
    return found


def test_that_all_workers_are_lost_is_said_and_given_up(
    cluster: Callable[[int], Cluster],
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    api: Api,
) -> None:
    monkeypatch.setattr(silence, "PATIENCE_SECONDS", 4.0)
    engine = cluster(2)
    job = work.with_options(
        batch_size=2, concurrency=2, failing=Failing(give_up_after=15), grace_seconds=1
    )

    def kill() -> None:
        until(lambda: len(calls(tmp_path, "ended")) >= 4 or len(calls(tmp_path)) >= 6)
        engine.lose_all()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(Unfinished, match="no sign of life from any worker for") as error:
        engine.engine.run(job, items(tmp_path, 200, seconds=0.5), checkpoint=place)
    thread.join()
    assert error.value.exit_code == 75
    assert error.value.result is not None
    assert error.value.result.failed == 0
    done = error.value.result.completed
    assert 0 < done < 200
    (run, *_) = api.flow_runs(flows={"name": {"any_": ["work"]}}, sort="EXPECTED_START_TIME_DESC")
    # A handful of seconds after the last of them, here, and more than once.
    until(lambda: len([line for line in api.logs(run["id"]) if "no worker has " in line]) > 1)
    # Another cluster goes on where this one was.
    result = cluster(2).engine.run(job, items(tmp_path, 40), checkpoint=place)
    assert result.failed == 0
    assert result.skipped + result.completed == 40
    assert oracle.outbox(place) == set()


def test_a_batch_that_takes_the_last_worker_with_it_has_failed_alone(
    dask_workers: Callable[[int], DaskWorkers], place: Path, tmp_path: Path
) -> None:
    dask = dask_workers(3)
    job = work.with_options(
        batch_size=1, concurrency=2, failing=Failing(give_up_after=15), grace_seconds=1
    )
    # Whether or not there was a worker left for all others by then.
    with pytest.raises((JobFailed, Unfinished)) as error:
        dask.engine.run(job, items(tmp_path, 60, die=[20]), checkpoint=place)
    assert dask.alive == 0
    result = error.value.result
    assert result is not None
    assert [(each.key, each.error, each.attempts) for each in result.failures] == [
        (20, "WorkerLost", 3)
    ]


def test_a_batch_that_kills_its_worker_fails_alone_while_there_are_others(
    dask_workers: Callable[[int], DaskWorkers], place: Path, tmp_path: Path
) -> None:
    dask = dask_workers(4)
    job = work.with_options(batch_size=1, concurrency=2)
    with pytest.raises(JobFailed) as error:
        dask.engine.run(job, items(tmp_path, 60, die=[20]), checkpoint=place)
    assert dask.alive == 1
    oracle.each_once(place, set(range(60)) - {20})
    assert [each.key for each in error.value.result.failures] == [20]
