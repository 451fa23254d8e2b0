"""Workers of Dask and Ray write to a bucket, die, and lose nothing."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Bucket
from tests.prefect.distributed import oracle
from tests.prefect.distributed.conftest import THREADS, WORKERS, Engine
from tests.prefect.distributed.handlers import items, times_handled, work

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture
def dask_near(in_prefect: None, bucket: Bucket) -> Iterator[Engine]:
    """A cluster whose processes are started where the bucket is known."""
    import dask
    from distributed import LocalCluster
    from prefect_dask import DaskTaskRunner

    with (
        dask.config.set({"distributed.worker.multiprocessing-method": "spawn"}),
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
        address = cluster.scheduler_address
        yield Engine("dask", lambda: DaskTaskRunner(address=address), "", THREADS)


@pytest.fixture
def ray_near(ray: Engine, bucket: Bucket) -> Iterator[Engine]:
    """The Ray of all tests, whose workers are told where the bucket is."""
    from prefect_ray.context import remote_options

    with remote_options(runtime_env={"env_vars": bucket.server.environment()}):
        yield ray


@pytest.fixture(params=["dask_near", "ray_near"])
def near(request: pytest.FixtureRequest) -> Engine:
    found: Engine = request.getfixturevalue(request.param)
    return found


def mirror(bucket: Bucket, to: Path) -> Path:
    for folder in ("outbox", "shards"):
        (to / folder).mkdir(parents=True, exist_ok=True)
    for name, data in bucket.stored().items():
        path = to / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
    return to


def test_a_worker_that_is_killed_costs_no_row_and_the_next_run_goes_on(
    near: Engine, bucket: Bucket, tmp_path: Path
) -> None:
    def run(count: int, **special: Any) -> Any:
        return near.run(work, items(tmp_path, count, **special), checkpoint=bucket.url)

    first = run(24, die_once=[7], seconds=0.05)
    assert (first.completed, first.failed) == (24, 0)
    assert (tmp_path / "died").exists()
    assert first.table().num_rows == 24
    second = run(40, run=2)
    assert (second.completed, second.skipped) == (16, 24)
    place = mirror(bucket, tmp_path / "mirror")
    oracle.each_once(place, set(range(40)))
    assert not oracle.orphans(place)
    assert not oracle.outbox(place)
    workers = {row["pid"] for row in oracle.rows(place)}
    assert len(workers) > 1
    assert os.getpid() not in workers
    again = times_handled(tmp_path).total() - len(times_handled(tmp_path))
    assert 1 <= again <= near.together, "no more than died with the worker"
