"""The runners of flow runs keep the contract of runners: threads, and workers of Dask."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar, copy_context
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks.checkpoint.directory import shards
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import UsageError
from resumable_tasks.prefect.remote import RemoteTaskRuns
from resumable_tasks.prefect.task_runs import TaskRuns
from resumable_tasks.prefect.threads import ThreadTaskRuns
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.outcome import Done, Outcome
from resumable_tasks.testing import runner_suite
from resumable_tasks.testing.runner_suite import Bench, ProcessRunnerSuite, RunnerSuite
from tests.prefect.distributed.conftest import Engine

pytestmark = [
    pytest.mark.filterwarnings("default"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]

Variables = dict[ContextVar[Any], Any]


def variables_of_a_flow_run(task_runner: Any) -> Iterator[Variables]:
    """Holds a flow run open in a thread, and gives what makes code be in it."""
    from prefect import flow

    found: Variables = {}
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        found.update(copy_context().items())
        begun.set()
        over.wait()

    thread = threading.Thread(target=flow(hold, name="contract", task_runner=task_runner))
    thread.start()
    begun.wait(60)
    yield found
    over.set()
    thread.join()


@pytest.fixture(scope="module")
def of_threads(in_prefect: None) -> Iterator[Variables]:
    from prefect.task_runners import ThreadPoolTaskRunner

    yield from variables_of_a_flow_run(ThreadPoolTaskRunner())


@pytest.fixture(scope="module")
def of_dask(dask: Engine) -> Iterator[Variables]:
    yield from variables_of_a_flow_run(dask.make())


class InFlowRun:
    """Mixed into a suite: its tests are in the flow run of this fixture."""

    flow_run: str

    @pytest.fixture(autouse=True)
    def _in_flow_run(
        self, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[None]:
        variables: Variables = request.getfixturevalue(self.flow_run)
        # A worker that has died is followed by one that has Prefect to load first.
        monkeypatch.setattr(runner_suite, "PATIENCE", 60.0)
        tokens = [(variable, variable.set(value)) for variable, value in variables.items()]
        yield
        for variable, token in reversed(tokens):
            variable.reset(token)


class TestThreads(InFlowRun, RunnerSuite):
    flow_run = "of_threads"

    def make_runner(self, concurrency: int) -> Runner:
        return ThreadTaskRuns(concurrency, TaskRuns("contract", (), 1_000, 0.05), None)


class Reading(Runner):
    """Workers write shards; those who look at the outcomes want to see the rows."""

    def __init__(self, runner: RemoteTaskRuns, folder: Path) -> None:
        super().__init__(runner.concurrency)
        self._runner = runner
        self._folder = folder

    def start(self, work: Work, done: Callable[[Outcome], None], stopping: threading.Event) -> None:
        if work.writer is None:
            store = LocalStore(self._folder)
            store.prepare((shards.FOLDER,))
            work = replace(work, writer=ShardWriter(store, 1))

            def read(outcome: Outcome) -> None:
                if isinstance(outcome, Done) and outcome.shard is not None:
                    table = shards.read(store, outcome.shard)
                    outcome = replace(outcome, unwritten=table, schema=table.schema, shard=None)
                done(outcome)

            self._runner.start(work, read, stopping)
        else:
            self._runner.start(work, done, stopping)
        self.submit, self.close = self._runner.submit, self._runner.close  # type: ignore[method-assign]

    def submit(self, batch: Any) -> None:
        raise NotImplementedError

    def close(self, *, abandon: bool) -> None:
        raise NotImplementedError


class TestDask(InFlowRun, ProcessRunnerSuite):
    flow_run = "of_dask"

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder, self.made = tmp_path, 0

    def make_runner(self, concurrency: int) -> Runner:
        self.made += 1
        runs = TaskRuns("contract", (), 1_000, 5.0)
        return Reading(RemoteTaskRuns(concurrency, runs), self.folder / f"place-{self.made}")

    def test_a_handler_that_cannot_cross_is_refused_at_the_start(
        self, bench: Callable[..., Bench]
    ) -> None:
        lock = threading.Lock()

        def local(items: Any) -> Any:
            with lock:
                return items

        with pytest.raises(UsageError, match="cannot be sent"):
            bench(1, handler=local)

    def test_never_more_batches_run_at_once(self, bench: Callable[..., Bench]) -> None:
        """How many there are depends on how long Prefect takes to begin a task run."""
        runner = bench(2)
        for _ in range(20):
            runner.submit("pause")
        runner.take(20)
        assert max(map(int, runner.notes("at once"))) <= 2

    def test_what_cannot_cross_becomes_a_failure(self, bench: Callable[..., Bench]) -> None:
        """A lambda can."""
        runner = bench(1)
        bad = runner.submit("echo", odd=threading.Lock())
        good = runner.submit("echo", odd=lambda: None)
        outcomes = runner.take(2)
        assert [failure.key for failure in outcomes[bad.number].failures] == bad.keys
        assert outcomes[good.number].completed == 1
