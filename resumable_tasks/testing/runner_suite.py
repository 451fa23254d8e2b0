"""The contract of every runner, as a pytest class to inherit from.

::

    class TestMyRunner(RunnerSuite):
        def make_runner(self, concurrency): return MyRunner(concurrency)

Runners of coroutines set ``handler = staticmethod(ahandle)``; runners whose handlers run in other
processes inherit from `ProcessRunnerSuite`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextvars import ContextVar
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, ClassVar

import pytest

from resumable_tasks.base.frozen import locked
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch, Cause
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.handle import Work, current_batch
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Fatal, Outcome
from resumable_tasks.runners.retries import RetryPolicy

PATIENCE = 20.0
_POLL = 0.005
_marker: ContextVar[str] = ContextVar("resumable_tasks_testing_marker", default="nobody's")


@locked
class AtOnce(RetryPolicy):
    """Retries without a pause."""

    def pause(self, attempt: int, error: BaseException) -> float | None:
        return None if RetryPolicy.pause(self, attempt, error) is None else 0.0


def handle(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A handler that does what its items tell it; see `_act`."""
    steps = _act(items)
    while True:
        try:
            pause = next(steps)
        except StopIteration as end:
            return list(end.value)
        time.sleep(pause)


async def ahandle(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`handle` as a coroutine function."""
    steps = _act(items)
    while True:
        try:
            pause = next(steps)
        except StopIteration as end:
            return list(end.value)
        await asyncio.sleep(pause)


def _act(items: list[dict[str, Any]]) -> Generator[float, None, list[dict[str, Any]]]:
    """Mark the batch as running in the folder of its first item, and do what that item tells."""
    first = items[0]
    folder = Path(first["folder"])
    mark = folder / f"run-{first['id']}"
    mark.touch()
    _note(folder, "started", first["id"])
    try:
        _note(folder, "at once", str(len(list(folder.glob("run-*")))))
        yield from _wait(first, folder)
        _fail(first, folder)
        return _rows(items)
    finally:
        mark.unlink(missing_ok=True)


def _wait(first: dict[str, Any], folder: Path) -> Generator[float, None, None]:
    match first["do"]:
        case "pause":
            yield 0.03
        case "gather":
            yield from _until(lambda: _lines(folder / "started") >= first["count"])
        case "wait":
            yield from _until((folder / "go").exists)
        case "hang":  # blocks, without a pause that others could use
            # The end of a test removes its folder.
            while folder.exists() and not (folder / "go").exists():
                time.sleep(0.05)


def _fail(first: dict[str, Any], folder: Path) -> None:
    match first["do"]:
        case "raise":
            raise ValueError(f"no luck with {first['id']}")
        case "raise until" if current_batch().attempt < first["attempt"]:
            raise ValueError("not yet")
        case "interrupt":
            raise KeyboardInterrupt
        case "exit":
            raise SystemExit(3)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "die once" if _lines(folder / "started") < first["count"]:
            os._exit(1)


def _rows(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    answer = ""
    match items[0]["do"]:
        case "nonsense":
            return [{"id": "not in this batch"}]
        case "marker":
            answer = _marker.get()
            _marker.set(f"of {items[0]['id']}")
        case "batch":
            batch = current_batch()
            answer = f"{batch.id} {batch.attempt} {list(batch.keys)}"
    return [{"id": item["id"], "answer": answer} for item in items]


def _until(done: Callable[[], bool]) -> Generator[float, None, None]:
    end = time.monotonic() + PATIENCE
    while not done():
        if time.monotonic() > end:
            raise TimeoutError("what the handler waits for did not happen")
        yield _POLL


def _lines(path: Path) -> int:
    return len(path.read_text().splitlines())


def completed(outcome: Outcome) -> int:
    """The number of completed items of its batch."""
    return outcome.completed if isinstance(outcome, Done) else 0


def _note(folder: Path, file: str, line: str) -> None:
    handle = os.open(folder / file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


class Bench:
    """A started runner, its submitted batches, and its outcomes so far."""

    def __init__(self, suite: RunnerSuite, folder: Path, concurrency: int, **work: Any) -> None:
        self.folder = folder
        self.stopping = threading.Event()
        self.runner = suite.make_runner(concurrency)
        self._back: SimpleQueue[Outcome] = SimpleQueue()
        self._batches = 0
        self._out = 0
        self._closed = False
        given: dict[str, Any] = {
            "handler": suite.handler,
            "scheme": KeyScheme("id"),
            "results": "one",
            "retry": AtOnce(0),
            **work,
        }
        self.runner.start(Work(**given), self._back.put, self.stopping)

    def submit(self, do: str, size: int = 1, **more: Any) -> Batch:
        number = self._batches
        self._batches += 1
        self._out += 1
        many: list[keys.Key] = [f"{do}-{number}-{at}" for at in range(size)]
        items = [{"id": key, "do": do, "folder": str(self.folder), **more} for key in many]
        batch = Batch(number, many, keys.join(map(keys.canonical, many)), items)
        self.runner.submit(batch)
        return batch

    def take(self, count: int) -> dict[int, Outcome]:
        """The next ``count`` outcomes, by the number of their batch."""
        found: dict[int, Outcome] = {}
        for _ in range(count):
            try:
                outcome = self._back.get(timeout=PATIENCE)
            except Empty:
                pytest.fail(f"only {len(found)} of {count} batches have come back")
            assert outcome.batch.number not in found, "a batch has come back twice"
            found[outcome.batch.number] = outcome
            self._out -= 1
        return found

    def none_left(self) -> None:
        time.sleep(0.05)
        assert self._back.empty(), "a batch has come back twice"

    def notes(self, file: str) -> list[str]:
        path = self.folder / file
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_started(self, count: int) -> None:
        end = time.monotonic() + PATIENCE
        while len(self.notes("started")) < count:
            assert time.monotonic() < end, "the batches were not started"
            time.sleep(_POLL)

    def go(self) -> None:
        (self.folder / "go").touch()

    def close(self, *, abandon: bool = False) -> None:
        if not self._closed:
            self._closed = True
            self.runner.close(abandon=abandon or self._out > 0)


class RunnerSuite:
    """The contract of `resumable_tasks.runners.base.Runner`."""

    handler: Callable[..., Any] = staticmethod(handle)
    shares_context: ClassVar[bool] = True
    """Whether handlers see the context variables of the driver."""

    def make_runner(self, concurrency: int) -> Runner:
        raise NotImplementedError

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Generator[Callable[..., Bench], None, None]:
        made: list[Bench] = []

        def make(concurrency: int = 2, **work: Any) -> Bench:
            folder = tmp_path / f"bench-{len(made)}"
            folder.mkdir()
            made.append(Bench(self, folder, concurrency, **work))
            return made[-1]

        yield make
        for each in made:
            each.stopping.set()
            each.go()
            each.close()

    def test_every_batch_comes_back_once_with_its_rows(self, bench: Callable[..., Bench]) -> None:
        runner = bench(3)
        batches = [runner.submit("echo", size=3) for _ in range(25)]
        outcomes = runner.take(25)
        runner.close()
        runner.none_left()
        for batch in batches:
            outcome = outcomes[batch.number]
            assert isinstance(outcome, Done)
            assert outcome.batch.keys == batch.keys
            assert (outcome.done, outcome.completed) == (batch.lines, 3)
            assert outcome.failures == ()
            assert outcome.table is not None
            assert outcome.table.column("id").to_pylist() == batch.keys
            assert outcome.schema == outcome.table.schema
            assert outcome.times.calls == 1
            assert outcome.times.seconds >= 0
            assert outcome.times.began <= outcome.times.ended
        assert sorted(runner.notes("started")) == sorted(str(b.keys[0]) for b in batches)

    def test_as_many_batches_run_at_once_as_were_asked_for(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(3)
        for _ in range(3):
            runner.submit("gather", count=3)
        assert [completed(outcome) for outcome in runner.take(3).values()] == [1, 1, 1]

    def test_never_more_batches_run_at_once(self, bench: Callable[..., Bench]) -> None:
        runner = bench(2)
        for _ in range(20):
            runner.submit("pause")
        runner.take(20)
        assert max(map(int, runner.notes("at once"))) == 2

    def test_one_at_a_time_means_in_their_order(self, bench: Callable[..., Bench]) -> None:
        runner = bench(1)
        batches = [runner.submit("pause") for _ in range(10)]
        runner.take(10)
        assert runner.notes("started") == [str(batch.keys[0]) for batch in batches]
        assert set(runner.notes("at once")) == {"1"}

    def test_submit_does_not_wait(self, bench: Callable[..., Bench]) -> None:
        runner = bench(1)
        began = time.monotonic()
        runner.submit("wait")
        for _ in range(50):
            runner.submit("echo")
        assert time.monotonic() - began < PATIENCE / 2
        runner.go()
        assert len(runner.take(51)) == 51

    def test_once_it_is_stopping_nothing_is_started_and_all_come_back(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(2)
        for _ in range(8):
            runner.submit("wait")
        runner.wait_for_started(2)
        runner.stopping.set()
        later = runner.submit("wait")
        runner.go()
        outcomes = runner.take(9)
        runner.close()
        runner.none_left()
        ran = [outcome for outcome in outcomes.values() if not isinstance(outcome, Dropped)]
        assert [completed(outcome) for outcome in ran] == [1, 1]
        assert isinstance(outcomes[later.number], Dropped)
        assert len(runner.notes("started")) == 2

    def test_however_many_wait_they_all_come_back_when_it_is_stopping(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(2)
        for _ in range(2):
            runner.submit("wait")
        runner.wait_for_started(2)
        for _ in range(1_500):
            runner.submit("echo")
        runner.stopping.set()
        runner.go()
        outcomes = runner.take(1_502)
        assert sum(isinstance(each, Dropped) for each in outcomes.values()) == 1_500

    def test_an_exception_becomes_the_failure_of_its_batch_alone(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(2)
        runner.submit("echo")
        bad = runner.submit("raise", size=2)
        runner.submit("echo")
        outcomes = runner.take(3)
        failed = outcomes[bad.number]
        assert isinstance(failed, Failed)
        assert (failed.error.name, failed.error.cause) == ("ValueError", Cause.RAISED)
        assert failed.error.transient
        assert not failed.error.outage
        assert failed.times.calls == 1
        assert [failure.key for failure in failed.failures] == bad.keys
        for failure in failed.failures:
            assert failure.error == "ValueError"
            assert failure.message == f"no luck with {bad.keys[0]}"
            assert failure.attempts == 1
            assert failure.batch == bad.id
            assert "ValueError" in failure.traceback
        assert [completed(outcomes[n]) for n in (0, 2)] == [1, 1]

    def test_a_result_that_does_not_match_becomes_a_failure(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(1)
        bad = runner.submit("nonsense")
        good = runner.submit("echo")
        outcomes = runner.take(2)
        failed = outcomes[bad.number]
        assert isinstance(failed, Failed)
        assert [failure.error for failure in failed.failures] == ["BadResult"]
        assert completed(outcomes[good.number]) == 1

    @pytest.mark.parametrize("do", ["interrupt", "exit"])
    def test_what_is_no_plain_exception_comes_back_too(
        self, bench: Callable[..., Bench], do: str
    ) -> None:
        runner = bench(1)
        bad = runner.submit(do)
        good = runner.submit("echo")
        outcomes = runner.take(2)
        outcome = outcomes[bad.number]
        assert isinstance(outcome, (Failed, Fatal))
        assert completed(outcomes[good.number]) == 1

    def test_a_batch_is_tried_again_as_often_as_was_asked_for(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(2, retry=AtOnce(2))
        good = runner.submit("raise until", attempt=3)
        bad = runner.submit("raise until", attempt=4)
        outcomes = runner.take(2)
        retried, failed = outcomes[good.number], outcomes[bad.number]
        assert isinstance(retried, Done)
        assert isinstance(failed, Failed)
        assert retried.completed == 1
        assert [failure.attempts for failure in failed.failures] == [3]
        # A retried batch shows its number of calls.
        assert (retried.times.calls, failed.times.calls) == (3, 3)
        assert runner.notes("started").count(str(good.keys[0])) == 3
        assert runner.notes("started").count(str(bad.keys[0])) == 3

    def test_handlers_know_their_batch(self, bench: Callable[..., Bench]) -> None:
        runner = bench(3)
        batches = [runner.submit("batch", size=2) for _ in range(6)]
        for number, outcome in runner.take(6).items():
            assert isinstance(outcome, Done)
            assert outcome.table is not None
            wanted = f"{batches[number].id} 1 {batches[number].keys}"
            assert outcome.table.column("answer").to_pylist() == [wanted] * 2
        with pytest.raises(UsageError):
            current_batch()

    def test_handlers_see_the_context_variables_of_the_driver_and_change_only_their_own(
        self, bench: Callable[..., Bench]
    ) -> None:
        if not self.shares_context:
            pytest.skip("handlers run elsewhere")
        token = _marker.set("the driver's")
        try:
            runner = bench(2)
            for _ in range(10):
                runner.submit("marker")
            outcomes = runner.take(10)
            assert _marker.get() == "the driver's"
        finally:
            _marker.reset(token)
        for outcome in outcomes.values():
            assert isinstance(outcome, Done)
            assert outcome.table is not None
            assert outcome.table.column("answer").to_pylist() == ["the driver's"]

    def test_abandoning_does_not_wait_for_a_handler_that_hangs(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(2)
        for _ in range(3):
            runner.submit("hang")
        runner.wait_for_started(1)
        runner.stopping.set()
        began = time.monotonic()
        runner.close(abandon=True)
        assert time.monotonic() - began < PATIENCE / 2
        assert len(runner.notes("started")) <= 2
        runner.go()

    def test_a_runner_that_was_given_nothing_closes(self, bench: Callable[..., Bench]) -> None:
        bench(2).close()
        bench(2).close(abandon=True)


class ProcessRunnerSuite(RunnerSuite):
    """`RunnerSuite`, with tests for handlers in processes of their own."""

    shares_context = False

    def test_a_batch_that_kills_its_process_costs_only_itself(
        self, bench: Callable[..., Bench]
    ) -> None:
        runner = bench(2)
        before = [runner.submit("pause") for _ in range(3)]
        bad = runner.submit("die", size=2)
        after = [runner.submit("pause") for _ in range(4)]
        outcomes = runner.take(8)
        runner.close()
        runner.none_left()
        failed = outcomes[bad.number]
        assert isinstance(failed, Failed)
        assert failed.error.cause is Cause.WORKER_LOST
        assert [failure.key for failure in failed.failures] == bad.keys
        assert {failure.error for failure in failed.failures} == {"WorkerLost"}
        for batch in (*before, *after):
            assert completed(outcomes[batch.number]) == 1

    def test_a_process_that_dies_once_costs_nothing(self, bench: Callable[..., Bench]) -> None:
        runner = bench(1)
        batch = runner.submit("die once", count=2)
        assert completed(runner.take(1)[batch.number]) == 1

    def test_what_cannot_cross_becomes_a_failure(self, bench: Callable[..., Bench]) -> None:
        runner = bench(1)
        bad = runner.submit("echo", odd=lambda: None)
        good = runner.submit("echo")
        outcomes = runner.take(2)
        failed = outcomes[bad.number]
        assert isinstance(failed, Failed)
        assert [failure.key for failure in failed.failures] == bad.keys
        assert completed(outcomes[good.number]) == 1

    def test_a_handler_that_cannot_cross_is_refused_at_the_start(
        self, bench: Callable[..., Bench]
    ) -> None:
        def local(items: Any) -> Any:
            return items

        with pytest.raises(UsageError, match="top level"):
            bench(1, handler=local)

    def test_workers_write_their_shards_themselves(
        self, bench: Callable[..., Bench], tmp_path: Path
    ) -> None:
        store = LocalStore(tmp_path / "store")
        disk.prepare(store, ("shards",))
        runner = bench(2, writer=ShardWriter(store, 7))
        batches = [runner.submit("echo", size=2) for _ in range(3)]
        outcomes = runner.take(3)
        listed = store.list("shards")
        for batch in batches:
            outcome = outcomes[batch.number]
            assert isinstance(outcome, Done)
            assert outcome.table is None
            assert outcome.shard is not None
            assert outcome.shard.path.startswith("shards/e7-")
            assert (outcome.shard.rows, outcome.shard.keys) == (2, 2)
            assert listed[outcome.shard.path] == outcome.shard.bytes
            assert outcome.schema is not None
            assert outcome.schema.names == ["id", "answer"]
        assert len(listed) == 3
