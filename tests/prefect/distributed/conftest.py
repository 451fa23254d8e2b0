"""A Dask cluster, a Ray, and Prefect's process pool: real ones, each started once a session."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.context import refresh_global_settings_context

from resumable_tasks import ResumableTask, RunResult
from tests.prefect.conftest import api, prefect_env, prefect_server

__all__ = ["api", "prefect_env", "prefect_server"]

# Clusters and parallel tests do not share two cores well: `make test-distributed` runs these alone.
collect_ignore_glob = ["test_*.py"] if "PYTEST_XDIST_WORKER" in os.environ else []

REPOSITORY = Path(__file__).parents[3]
WORKERS = 2
THREADS = 2

# Three seconds of a worker's start are imports: the workers of Dask and of Prefect's process pool
# are forked from a process that has them behind it. What drivers in other processes start
# (test_driver_killed.py), and Ray does, are fresh interpreters.
FORKSERVER = (
    "pytest",  # the main module of the process that starts them
    "distributed",
    "tornado.platform.asyncio",
    "prefect.task_engine",
    "prefect_dask",
    "pyarrow.parquet",
    "pandas",  # which Arrow looks for when it makes an array
    "resumable_tasks.prefect.worker",
    "resumable_tasks.runners.values.tables",
    "tests.prefect.distributed.handlers",
)


@pytest.fixture(scope="session")
def in_prefect(prefect_env: dict[str, str]) -> Iterator[None]:
    """This process and those that it starts talk to the server."""
    before = dict(os.environ)
    # Workers find the tests' own modules, wherever they were started.
    more = {"PYTHONPATH": str(REPOSITORY), "PREFECT_LOGGING_LEVEL": "WARNING"}
    os.environ.update(prefect_env | more)
    # Some of the tests' modules have loaded Prefect, which has read the environment then.
    refresh_global_settings_context()
    yield
    os.environ.clear()
    os.environ.update(before)
    refresh_global_settings_context()


@dataclass(frozen=True)
class Engine:
    """A task runner: how one is made here, and how in another process."""

    name: str
    make: Callable[[], Any]
    elsewhere: str
    together: int
    """How many task runs a killed process takes with it, at most."""

    def run(self, task: ResumableTask[Any], items: Any, **arguments: Any) -> RunResult:
        """Run a job in a flow with this task runner."""
        from prefect import flow

        def job() -> RunResult:
            return task.run(items, **arguments)

        return flow(job, name=task.name, task_runner=self.make())()


class Forking:
    """In the place of `multiprocessing` in Prefect's task runners: it spawns no process."""

    def __getattr__(self, name: str) -> Any:
        return getattr(multiprocessing, name)

    def get_context(self, method: str) -> Any:
        assert method == "spawn"
        return multiprocessing.get_context("forkserver")


@pytest.fixture(scope="session")
def forked(in_prefect: None) -> Iterator[None]:
    """New workers have the imports behind them, and the environment of this moment."""
    import dask
    from distributed.utils import get_mp_context
    from prefect import task_runners

    with (
        dask.config.set(
            {
                "distributed.worker.multiprocessing-method": "forkserver",
                # Dask gives a worker up for good that is not there just so long after a death,
                # though it is about to be back after another: tests kill many of them.
                "distributed.deploy.lost-worker-timeout": "1 day",
            }
        ),
        pytest.MonkeyPatch.context() as patch,
    ):
        get_mp_context()  # once, it says what to import itself
        multiprocessing.set_forkserver_preload(list(FORKSERVER))
        patch.setattr(task_runners, "multiprocessing", Forking())
        yield


@pytest.fixture(scope="session")
def dask_address(forked: None) -> Iterator[str]:
    """Two processes with two threads each: what dies takes a neighbour with it."""
    from distributed import LocalCluster

    with (
        tempfile.TemporaryDirectory() as folder,
        LocalCluster(
            n_workers=WORKERS,
            threads_per_worker=THREADS,
            dashboard_address=None,
            local_directory=folder,
            silence_logs="CRITICAL",
            memory_limit=0,
        ) as cluster,
    ):
        yield cluster.scheduler_address


@pytest.fixture(scope="session")
def dask(dask_address: str) -> Engine:
    from prefect_dask import DaskTaskRunner

    return Engine(
        "dask",
        lambda: DaskTaskRunner(address=dask_address),
        f"__import__('prefect_dask').DaskTaskRunner(address={dask_address!r})",
        THREADS,
    )


@pytest.fixture(scope="session")
def ray(in_prefect: None) -> Iterator[Engine]:
    import ray as library
    from prefect_ray import RayTaskRunner

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        context = library.init(
            address="local",  # whatever other Ray is on this machine
            num_cpus=WORKERS,
            include_dashboard=False,
            namespace="prefect",
            log_to_driver=False,
        )
    yield Engine(
        "ray",
        RayTaskRunner,
        f"__import__('prefect_ray').RayTaskRunner(address={context.address_info['address']!r})",
        1,
    )
    library.shutdown()


@pytest.fixture(scope="session")
def pool(forked: None) -> Engine:
    from prefect.task_runners import ProcessPoolTaskRunner

    return Engine(
        "pool",
        lambda: ProcessPoolTaskRunner(max_workers=WORKERS),
        f"__import__('prefect').task_runners.ProcessPoolTaskRunner(max_workers={WORKERS})",
        WORKERS,
    )


@pytest.fixture(params=["dask", "ray", "pool"])
def engine(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found
