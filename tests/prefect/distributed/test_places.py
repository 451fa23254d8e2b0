"""Workers that do not see what the driver sees: the run ends with what is wrong, no item fails."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumable_tasks import UsageError
from tests.prefect.distributed import handlers, oracle
from tests.prefect.distributed.conftest import Engine

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def hidden(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of this machine, under whose path the worker has one of its own."""
    return tmp_path_factory.mktemp("hidden")


@pytest.fixture(scope="module")
def other_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the worker sees under the path of ``hidden``."""
    return tmp_path_factory.mktemp("other-disk")


@pytest.fixture(scope="module")
def elsewhere(
    in_prefect: None, hidden: Path, other_disk: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """Dask with one worker, in a mount namespace of its own."""
    if not shutil.which("unshare"):
        pytest.skip("unshare(1) gives a process its own view of the files; there is none here")
    from distributed import LocalCluster
    from prefect_dask import DaskTaskRunner

    log = tmp_path_factory.mktemp("worker")
    with LocalCluster(n_workers=0, dashboard_address=None, silence_logs="CRITICAL") as cluster:
        address = cluster.scheduler_address
        command = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--no-nanny"]
        command += ["--nthreads", "1", "--no-dashboard", "--local-directory", str(log)]
        mount = f'mount --bind "{other_disk}" "{hidden}" && exec "$@"'
        worker = subprocess.Popen(
            ["unshare", "--map-root-user", "--mount", "sh", "-c", mount, "sh", *command],
            stdin=subprocess.DEVNULL,
            stdout=(log / "log").open("wb"),
            stderr=subprocess.STDOUT,
        )
        try:
            cluster.wait_for_workers(1, timeout=60)
            runner = DaskTaskRunner
            yield Engine("dask", lambda: runner(address=address), "", 1)
        finally:
            worker.kill()
            worker.wait()


def test_a_worker_that_does_not_see_the_checkpoint(elsewhere: Engine, hidden: Path) -> None:
    place = hidden / "checkpoint"
    with pytest.raises(UsageError, match=r"checkpoint does not exist on host .* all workers share"):
        elsewhere.run(handlers.known, [{"id": n} for n in range(20)], checkpoint=place)
    assert oracle.keys(place) == []
    assert oracle.failed(place) == set()


def test_a_worker_that_sees_another_checkpoint_under_that_path(
    elsewhere: Engine, hidden: Path, other_disk: Path
) -> None:
    """Such as what an earlier run has left there when it was killed."""
    place = hidden / "copied"
    handlers.known.run([], checkpoint=place)
    (place / "outbox").mkdir()
    (place / "outbox" / "e2-open").write_text("of another run")
    for number in range(40):
        (place / "outbox" / f"e2-t{number}").write_text("")
    shutil.copytree(place, other_disk / "copied")
    with pytest.raises(UsageError, match="before they started"):
        elsewhere.run(handlers.known, [{"id": n} for n in range(20)], checkpoint=place)
    assert oracle.keys(place) == []
    assert oracle.failed(place) == set()
    assert list((other_disk / "copied" / "shards").iterdir()) == []


def test_a_worker_that_lacks_a_module(
    elsewhere: Engine, place: Path, hidden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (hidden / "lonely.py").write_text("def handle(rows): return rows\n")
    monkeypatch.syspath_prepend(hidden)
    import lonely  # type: ignore[import-not-found]

    from resumable_tasks import resumable_task

    job = resumable_task(lonely.handle, key="id")
    with pytest.raises(UsageError, match=r"handler .* cannot be loaded .*No module named 'lonely'"):
        elsewhere.run(job, [{"id": 1}], checkpoint=place)
    assert oracle.keys(place) == []
    assert oracle.failed(place) == set()


def test_a_worker_that_lacks_the_library(elsewhere: Engine, place: Path) -> None:
    """As its last: this worker is good for nothing afterwards."""
    from distributed import Client

    def forget() -> None:
        import sys

        for name in [name for name in sys.modules if name.startswith("resumable_tasks")]:
            sys.modules[name] = None  # type: ignore[assignment]

    with Client(elsewhere.make().address, set_as_default=False) as client:
        client.run(forget)
    with pytest.raises(UsageError, match=r"resumable_tasks.*need the same code and packages"):
        elsewhere.run(handlers.known, [{"id": n} for n in range(20)], checkpoint=place)
    assert oracle.failed(place) == set()
