"""A worker or the driver dies at each step between a handler's return and the end of a task run.

The task runs are executed in threads of this process; a death is an exception that nothing here
catches, at a fault point of the library.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks.base import faults, log
from resumable_tasks.errors import WorkerLost
from resumable_tasks.prefect import task_runs
from resumable_tasks.prefect.remote import RemoteTaskRuns
from resumable_tasks.prefect.worker import handle_group
from resumable_tasks.prefect.workorder import WorkOrder
from resumable_tasks.task import run as runs
from tests.prefect.distributed import oracle
from tests.prefect.distributed.handlers import items, times_handled, work
from tests.prefect.distributed.test_driver_side import Future, Runs

pytestmark = pytest.mark.filterwarnings("default")

ITEMS = 16
BATCHES = ITEMS // 2


class Died(BaseException):
    """As SIGKILL, to one thread."""


class Deaths:
    """Lets a thread of the driver, or of a worker, die at the nth fault point that it passes."""

    def __init__(self) -> None:
        self.passed: dict[str, list[str]] = {"worker": [], "driver": []}
        self.who, self.nth = "", 0

    def __call__(self, point: str) -> None:
        name = threading.current_thread().name
        who = {"worker": "worker", "resumable-commit": "driver"}.get(name, "")
        if who:
            self.passed[who].append(point)
            if who == self.who and len(self.passed[who]) == self.nth:
                raise Died(f"{who}, at {point}")


@contextmanager
def dying(who: str = "", nth: int = 0) -> Iterator[Deaths]:
    deaths = Deaths()
    deaths.who, deaths.nth = who, nth
    faults.arm(deaths)
    try:
        yield deaths
    finally:
        faults.arm(None)


def in_a_thread(order: WorkOrder, future: Future) -> None:
    threading.current_thread().name = "worker"
    try:
        handle_group(order)
    except Died:
        future.end(WorkerLost("died"))
    except BaseException as error:
        future.end(error)
    else:
        future.end()


Run = Callable[[], Any]


@pytest.fixture
def run(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the job with such workers."""
    monkeypatch.setattr(task_runs, "get_run_logger", lambda: log.logger)

    def runner(handler: Any, options: Any, *_: Any) -> RemoteTaskRuns:
        task_runs = Runs("job", (), 1_000, 5.0)
        object.__setattr__(task_runs, "behave", in_a_thread)
        object.__setattr__(task_runs, "submitted", [])
        return RemoteTaskRuns(1, task_runs)

    monkeypatch.setattr(runs, "runner_of", runner)
    return lambda: work.run(items(tmp_path, ITEMS), checkpoint=place)


def passings(who: str) -> int:
    """At least so many fault points are passed in a run of the job; see the first test."""
    return {"worker": 6 * BATCHES, "driver": 8}[who]


def test_the_points_are_passed(run: Run) -> None:
    with dying() as deaths:
        assert run().completed == ITEMS
    each = ["shard.before_put", "store.temp_written", "store.renamed", "shard.written"]
    each += ["store.temp_written", "store.renamed"]
    # And each task run is begun, by a file that is created.
    begun = ["store.temp_written", "store.linked", "store.created"]
    assert deaths.passed["worker"][:9] == begun + each
    assert len(deaths.passed["worker"]) >= passings("worker")
    assert len(deaths.passed["driver"]) >= passings("driver")


@pytest.mark.parametrize("nth", range(1, 30))
def test_a_worker_dies(run: Run, place: Path, tmp_path: Path, nth: int) -> None:
    with dying("worker", nth) as deaths:
        assert run().completed == ITEMS
    assert len(deaths.passed["worker"]) > nth
    oracle.each_once(place, set(range(ITEMS)))
    handled = times_handled(tmp_path)
    # One batch at most again, whose worker died with it: then in its halves.
    assert sum(len(batch) * times for batch, times in handled.items()) <= ITEMS + 2
    assert oracle.outbox(place) == set()
    assert len(oracle.orphans(place)) <= 1
    assert run().skipped == ITEMS
    assert oracle.orphans(place) == set()
    assert oracle.unfinished(place) == set()


@pytest.mark.parametrize("nth", range(1, passings("driver") + 1))
def test_the_driver_dies(run: Run, place: Path, tmp_path: Path, nth: int) -> None:
    with dying("driver", nth), pytest.raises(Died):
        run()
    committed = set(oracle.keys(place))
    before = times_handled(tmp_path)
    result = run()
    assert result.completed + result.skipped == ITEMS
    oracle.each_once(place, set(range(ITEMS)))
    for batch, times in times_handled(tmp_path).items():
        assert times == before[batch] + (not committed.issuperset(batch))
    assert oracle.orphans(place) == set()
    assert oracle.unfinished(place) == set()
    assert oracle.outbox(place) == set()
