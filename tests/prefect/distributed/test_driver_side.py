"""The driver's side against task runs that end as it suits the test, or never."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import cloudpickle
import pytest
from prefect.exceptions import Pause

from resumable_tasks.base import log
from resumable_tasks.checkpoint.directory.outbox import Outbox
from resumable_tasks.checkpoint.directory.shards import ShardWriter
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import StoreError, UsageError, WorkerLost
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch, Cause, ErrorKind, Part
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.prefect import groups, remote, silence, task_runs, worker
from resumable_tasks.prefect.remote import RemoteTaskRuns
from resumable_tasks.prefect.task_runs import TaskRuns
from resumable_tasks.prefect.worker import handle_group
from resumable_tasks.prefect.workorder import WorkOrder, handle
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Failure, Fatal, Outcome
from resumable_tasks.runners.retries import RetryPolicy
from tests.prefect.api import until

pytestmark = pytest.mark.filterwarnings("default")

PATIENCE = 10.0


class Future:
    """A future that ends when it is told to."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._callbacks: list[Callable[[Any], None]] = []
        self._error: BaseException | None = None

    def add_done_callback(self, fn: Callable[[Any], None]) -> None:
        self._callbacks.append(fn)
        if self._ended.is_set():
            fn(self)

    def end(self, error: BaseException | None = None) -> None:
        self._error = error
        self._ended.set()
        for fn in self._callbacks:
            fn(self)

    def result(self, timeout: float) -> None:
        if not self._ended.wait(timeout):
            raise TimeoutError
        if self._error is not None:
            raise self._error


def numbers_of(order: WorkOrder) -> list[int]:
    return [sent[0] for sent in order.batches]


def order(outbox: Outbox, number: int, work: bytes) -> WorkOrder:
    return WorkOrder((outbox.token, number), cloudpickle.dumps(outbox), work, [])


def outbox_of(order: WorkOrder) -> Outbox:
    found: Outbox = cloudpickle.loads(order.outbox)
    return found


Behaviour = Callable[[WorkOrder, Future], None]


class Runs(TaskRuns):
    """Gives what is submitted to the test's own function, in a thread."""

    __slots__ = ("behave", "submitted")
    behave: Behaviour
    submitted: list[list[int]]

    def as_task(self, fn: Callable[..., Any], name: str) -> Any:
        return self

    def submit(self, order: WorkOrder) -> Future:
        self.submitted.append(numbers_of(order))
        crossed: WorkOrder = cloudpickle.loads(cloudpickle.dumps(order))
        future = Future()
        threading.Thread(target=self.behave, args=(crossed, future), daemon=True).start()
        return future


def succeed(order: WorkOrder, future: Future) -> None:
    """As a worker does it."""
    try:
        handle_group(order)
    except BaseException as error:
        future.end(error)
    else:
        future.end()


class Bench:
    """A runner, its task runs, and what has come back of it."""

    def __init__(self, folder: Path, behave: Behaviour, concurrency: int, seconds: float) -> None:
        self.store = LocalStore(folder)
        self.store.prepare(("shards",))
        self.store.create("job.json", b"{}")
        self.runs = Runs("job", (), 1_000, seconds)
        object.__setattr__(self.runs, "behave", behave)
        object.__setattr__(self.runs, "submitted", [])
        self.runner = RemoteTaskRuns(concurrency, self.runs)
        self.stopping = threading.Event()
        self._back: SimpleQueue[Outcome] = SimpleQueue()
        self._count = 0
        self._closed = False
        self.runner.start(
            Work(echo, KeyScheme("id"), "one", RetryPolicy(), writer=ShardWriter(self.store, 1)),
            self._back.put,
            self.stopping,
        )

    def submit(self, count: int = 1, size: int = 1, **more: Any) -> None:
        for _ in range(count):
            many: list[keys.Key] = [f"{self._count}-{at}" for at in range(size)]
            items = [{"id": key, **more} for key in many]
            lines = keys.join(map(keys.canonical, many))
            self.runner.submit(Batch(self._count, many, lines, items))
            self._count += 1

    def take(self, count: int) -> dict[int, Outcome]:
        found: dict[int, Outcome] = {}
        for _ in range(count):
            try:
                outcome = self._back.get(timeout=PATIENCE)
            except Empty:
                pytest.fail(f"only {len(found)} of {count} have come back: {sorted(found)}")
            assert outcome.batch.number not in found, "came back twice"
            found[outcome.batch.number] = outcome
        return found

    def close(self, *, abandon: bool = False) -> None:
        if not self._closed:
            self._closed = True
            thread = threading.Thread(target=self.runner.close, kwargs={"abandon": abandon})
            thread.start()
            thread.join(PATIENCE)
            assert not thread.is_alive(), "close() hangs"
            assert self._back.empty()


def echo(rows: list[dict[str, Any]]) -> list[Any]:
    return [{"id": row["id"]} for row in rows]


Make = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    monkeypatch.setattr(task_runs, "get_run_logger", lambda: log.logger)
    made: list[Bench] = []

    def make(behave: Behaviour = succeed, concurrency: int = 2, seconds: float = 5.0) -> Bench:
        made.append(Bench(tmp_path / f"place-{len(made)}", behave, concurrency, seconds))
        return made[-1]

    yield make
    for each in made:
        each.close(abandon=True)


def fatal(outcome: Outcome, kind: type[BaseException] = BaseException) -> BaseException:
    assert isinstance(outcome, Fatal)
    assert isinstance(outcome.error, kind)
    return outcome.error


def failures(outcome: Outcome) -> tuple[Failure, ...]:
    """Of a batch that failed because its worker was lost."""
    assert isinstance(outcome, Failed)
    assert outcome.error.cause is Cause.WORKER_LOST
    return outcome.failures


def done(outcomes: dict[int, Outcome]) -> set[int]:
    for outcome in outcomes.values():
        assert isinstance(outcome, (Done, Dropped))
        assert not (isinstance(outcome, Done) and outcome.failures)
    return {number for number, outcome in outcomes.items() if isinstance(outcome, Done)}


def test_all_come_back_and_nothing_is_left(bench: Make) -> None:
    runner = bench()
    runner.submit(40, size=2)
    assert done(runner.take(40)) == set(range(40))
    runner.store.put("outbox/e1-7", b"late, by a worker that was given up")
    runner.close()
    assert runner.store.list("outbox") == {}
    assert len(runner.store.list("shards")) == 40
    assert len(runner.runs.submitted) < 20


@pytest.mark.parametrize("concurrency", [1, 3])
def test_task_runs_that_never_begin_end_the_run_and_fail_no_item(
    bench: Make, concurrency: int
) -> None:
    def refuse(order: WorkOrder, future: Future) -> None:
        future.end(ModuleNotFoundError("No module named 'resumable_tasks'"))

    runner = bench(refuse, concurrency)
    runner.submit(10)
    outcomes = runner.take(10).values()
    for outcome in outcomes:
        assert "No module named 'resumable_tasks'" in str(fatal(outcome, UsageError))
    assert len(runner.runs.submitted) <= 3 * concurrency
    runner.submit()
    fatal(runner.take(1)[10], UsageError)


def test_a_worker_that_refuses_now_and_then_is_got_over(bench: Make) -> None:
    turn = iter(range(1_000))

    def now_and_then(order: WorkOrder, future: Future) -> None:
        if next(turn) % 2:
            future.end(OSError("no route to Prefect's API"))
        else:
            succeed(order, future)

    runner = bench(now_and_then, 1, seconds=0.0)
    runner.submit(20)
    assert done(runner.take(20)) == set(range(20))


def test_what_is_wrong_with_the_place_ends_the_run_at_once(bench: Make) -> None:
    def misplaced(order: WorkOrder, future: Future) -> None:
        future.end(UsageError("the checkpoint is not there"))

    runner = bench(misplaced)
    runner.submit(5)
    outcomes = runner.take(5).values()
    assert {str(fatal(each)) for each in outcomes} == {"the checkpoint is not there"}


@pytest.mark.parametrize("how", [RuntimeError("what"), WorkerLost("gone"), None])
def test_of_a_task_run_that_was_lost_the_batch_it_was_at_is_suspected(
    bench: Make, how: BaseException | None
) -> None:
    """Batch 6 ends whatever it is in, the first time together with other batches."""

    def fragile(order: WorkOrder, future: Future) -> None:
        numbers = numbers_of(order)
        if 6 in numbers:
            del order.batches[numbers.index(6) :]
            handle_group(order)
            future.end(how)
        else:
            succeed(order, future)

    runner = bench(fragile, 1)
    runner.submit(12)
    outcomes = runner.take(12)
    runner.close()
    (failure,) = failures(outcomes.pop(6))
    assert (failure.error, failure.attempts) == ("WorkerLost", 3)
    assert done(outcomes) == set(range(12)) - {6}
    with_it = [numbers for numbers in runner.runs.submitted if 6 in numbers]
    assert len(with_it[0]) > 1
    assert with_it[1:] == [[6], [6]]
    # Those behind it in its task run are not held against it, nor handled before they are sent.
    assert sum(numbers.count(5) for numbers in runner.runs.submitted) == 1


def test_a_batch_is_isolated_before_it_is_given_up(bench: Make) -> None:
    running: list[int] = []
    most: dict[tuple[int, ...], list[int]] = {}
    lock = threading.Lock()

    def fragile(order: WorkOrder, future: Future) -> None:
        numbers = tuple(numbers_of(order))
        with lock:
            running.append(1)
        time.sleep(0.3)
        with lock:
            most.setdefault(numbers, []).append(len(running))
        if 3 in numbers:
            outbox_of(order).begin(order.name[1])
            how: BaseException | None = BrokenProcessPool("gone")
        else:
            handle_group(order)
            how = None
        with lock:
            running.pop()
        future.end(how)

    runner = bench(fragile, 3, seconds=0.0)
    runner.submit(30)
    outcomes = runner.take(30)
    assert failures(outcomes.pop(3))
    assert done(outcomes) == set(range(30)) - {3}
    assert most[(3,)][-1] == 1
    assert max(times for each in most.values() for times in each) == 3


def test_a_part_of_a_batch_whose_worker_was_lost_is_alone_and_tried_once(bench: Make) -> None:
    def die(order: WorkOrder, future: Future) -> None:
        outbox_of(order).begin(order.name[1])
        future.end(WorkerLost("gone"))

    runner = bench(die)
    part_of = Part(0, ErrorKind("WorkerLost", Cause.WORKER_LOST))
    runner.runner.submit(Batch(7, ["a"], keys.canonical("a"), [{"id": "a"}], part_of))
    assert failures(runner.take(1)[7])
    assert runner.runs.submitted == [[7]]


def test_a_suspect_whose_task_run_is_refused_stays_one(bench: Make) -> None:
    """Batch 6 ends whatever it is in; the second task run that has it does not even begin."""
    turn = itertools.count()

    def fragile(order: WorkOrder, future: Future) -> None:
        numbers = numbers_of(order)
        if 6 not in numbers:
            succeed(order, future)
        elif next(turn) == 1:
            future.end(OSError("no route to Prefect's API"))
        else:
            del order.batches[numbers.index(6) :]
            handle_group(order)
            future.end(WorkerLost("gone"))

    runner = bench(fragile, 1)
    runner.submit(12)
    outcomes = runner.take(12)
    assert failures(outcomes.pop(6))
    assert done(outcomes) == set(range(12)) - {6}
    with_it = [numbers for numbers in runner.runs.submitted if 6 in numbers]
    assert len(with_it[0]) > 1
    assert with_it[1:] == [[6], [6], [6]]


def test_those_that_wait_in_a_pool_that_one_has_broken_are_no_suspects(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch 0 breaks the pool, each time before the others in it have begun."""
    broken = threading.Event()
    monkeypatch.setattr(groups, "renew_pool", broken.clear)

    def behave(order: WorkOrder, future: Future) -> None:
        if numbers_of(order) == [0]:
            outbox_of(order).begin(order.name[1])
            broken.set()
        # Its end is the last to be known.
        time.sleep(0.3 if broken.is_set() and numbers_of(order)[0] == 0 else 0.1)
        if broken.is_set():
            future.end(BrokenProcessPool("gone"))
        else:
            succeed(order, future)

    runner = bench(behave, 4, seconds=0.0)
    runner.submit(20)
    outcomes = runner.take(20)
    assert [failure.attempts for failure in failures(outcomes.pop(0))] == [3]
    assert done(outcomes) == set(range(1, 20))


def test_a_task_run_that_is_complete_need_not_end(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_OVERDUE_SECONDS", 0.2)

    def hang(order: WorkOrder, future: Future) -> None:
        handle_group(order)

    runner = bench(hang, 1)
    runner.submit(9)
    assert done(runner.take(9)) == set(range(9))
    runner.close()


def test_outcomes_count_before_their_task_run_ends(bench: Make) -> None:
    go = threading.Event()

    def slow(order: WorkOrder, future: Future) -> None:
        handle_group(order)
        go.wait(PATIENCE)
        future.end()

    runner = bench(slow, 1)
    runner.submit(1)
    assert done(runner.take(1)) == {0}
    go.set()
    runner.submit(3)
    runner.take(3)


def test_an_outcome_that_is_in_no_listing_yet_is_found(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outbox, "numbers", lambda outbox: set())
    runner = bench()
    runner.submit(10)
    assert done(runner.take(10)) == set(range(10))
    assert sum(map(len, runner.runs.submitted)) == 10


def test_a_damaged_outcome_is_had_anew(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged: list[str] = []
    put = LocalStore.put

    def damage(store: LocalStore, name: str, data: bytes) -> None:
        if name == "outbox/e1-2" and not damaged:
            damaged.append(name)
            data = data[:-9]
        put(store, name, data)

    runner = bench(concurrency=1)
    monkeypatch.setattr(LocalStore, "put", damage)
    runner.submit(8)
    assert done(runner.take(8)) == set(range(8))
    assert damaged
    assert sorted(n for numbers in runner.runs.submitted for n in numbers) == [
        0,
        1,
        2,
        2,
        3,
        4,
        5,
        6,
        7,
    ]


@pytest.mark.parametrize("when", ["submitting", "looking", "letting go"])
def test_whatever_goes_wrong_in_the_thread_all_come_back(
    bench: Make, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def hang(order: WorkOrder, future: Future) -> None: ...

    runner = bench(hang)
    if when == "submitting":

        def submit(order: WorkOrder) -> Future:
            raise RuntimeError("Prefect has gone")

        monkeypatch.setattr(Runs, "submit", lambda self, order: submit(order))
    elif when == "letting go":

        def withdraw(outbox: Outbox, task_run: int) -> None:
            raise StoreError("the disk has gone")

        object.__setattr__(
            runner.runs, "behave", lambda order, future: future.end(RuntimeError("what"))
        )
        monkeypatch.setattr(Outbox, "withdraw", withdraw)
    else:

        def numbers(outbox: Outbox) -> set[int]:
            raise StoreError("the disk has gone")

        monkeypatch.setattr(Outbox, "numbers", numbers)
    runner.submit(9)
    assert all("has gone" in str(fatal(each)) for each in runner.take(9).values())
    runner.submit(1)
    assert "has gone" in str(fatal(runner.take(1)[9]))
    runner.close(abandon=True)


def test_what_runs_when_the_flow_run_is_suspended_is_waited_for(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go = threading.Event(), threading.Event()
    put = Outbox.put

    def late(outbox: Outbox, outcome: Done | Failed | Fatal) -> None:
        begun.set()
        go.wait(PATIENCE)
        put(outbox, outcome)

    monkeypatch.setattr(Outbox, "put", late)
    runner = bench(concurrency=2)
    runner.submit(1)
    assert begun.wait(PATIENCE)

    def suspended(runs: Runs, order: WorkOrder) -> Future:
        raise Pause(state=None)

    monkeypatch.setattr(Runs, "submit", suspended)
    runner.submit(2)
    assert all(isinstance(each, Dropped) for each in runner.take(2).values())
    go.set()
    assert done(runner.take(1)) == {0}
    runner.close()


def test_a_flow_that_cannot_be_sent_is_said(bench: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def submit(runs: Runs, order: WorkOrder) -> Future:
        raise TypeError("cannot pickle 'generator' object")

    monkeypatch.setattr(Runs, "submit", submit)
    runner = bench()
    runner.submit(1)
    assert "parameters" in str(fatal(runner.take(1)[0], UsageError))


def test_once_it_stops_nothing_begins_in_a_worker(bench: Make) -> None:
    go = threading.Event()
    states: list[Any] = []

    def late(order: WorkOrder, future: Future) -> None:
        go.wait(PATIENCE)
        states.append(handle_group(order))
        future.end()

    runner = bench(late, 2)
    runner.submit(7)
    until(lambda: len(runner.runs.submitted) == 2)
    runner.stopping.set()
    until(lambda: not any(name.endswith("-open") for name in runner.store.list("outbox")))
    go.set()
    assert all(isinstance(each, Dropped) for each in runner.take(7).values())
    runner.close()
    assert runner.store.list("shards") == {}
    assert {state.type.name for state in states} == {"CANCELLED"}


def test_a_task_run_that_has_begun_begins_no_other_batch(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = bench(concurrency=1)
    runner.submit(8)
    runner.take(8)
    put = Outbox.put

    def stop(outbox: Outbox, outcome: Outcome) -> None:
        put(outbox, outcome)
        runner.stopping.set()
        until(lambda: not outbox.is_open())

    monkeypatch.setattr(Outbox, "put", stop)
    runner.submit(6)
    outcomes = runner.take(6)
    assert len(done(outcomes)) == 1
    assert sum(isinstance(each, Dropped) for each in outcomes.values()) == 5
    assert len(runner.store.list("shards")) == 9
    assert max(map(len, runner.runs.submitted)) > 1


def test_what_another_driver_has_taken_over_is_not_lost(bench: Make) -> None:
    def taken_over(order: WorkOrder, future: Future) -> None:
        outbox_of(order).begin(order.name[1])
        outbox_of(order).clear()
        future.end(WorkerLost("the worker that had begun this task run was lost"))

    runner = bench(taken_over, 1)
    runner.submit(1)
    assert isinstance(runner.take(1)[0], Dropped)


def test_closing_does_not_wait_for_a_submission(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = threading.Event()
    states: list[Any] = []

    def submit(runs: Runs, order: WorkOrder) -> Future:
        go.wait(PATIENCE)
        states.append(handle_group(order))
        return Future()

    monkeypatch.setattr(Runs, "submit", submit)
    runner = bench()
    runner.submit(1)
    until(lambda: any(name.endswith("-t0") for name in runner.store.list("outbox")))
    began = time.monotonic()
    runner.close(abandon=True)
    assert time.monotonic() - began < PATIENCE / 2
    go.set()
    until(lambda: states)
    assert states[0].type.name == "CANCELLED"
    assert runner.store.list("shards") == {}


def test_large_batches_share_a_task_run_with_few(bench: Make) -> None:
    runner = bench(concurrency=1)
    runner.submit(8)
    runner.take(8)
    before = len(runner.runs.submitted)
    runner.submit(30, data="x" * 1_000_000)
    runner.take(30)
    assert max(map(len, runner.runs.submitted[before:])) == 9
    assert runner.runner.window < 30
    assert max(map(len, runner.runs.submitted)) > 1


def test_the_items_are_let_go_when_they_are_submitted(bench: Make) -> None:
    go = threading.Event()

    def hold(order: WorkOrder, future: Future) -> None:
        go.wait(PATIENCE)
        succeed(order, future)

    runner = bench(hold, 1)
    runner.submit(3, data="x")
    until(lambda: runner.runs.submitted)
    (group,) = runner.runner._groups
    assert all(isinstance(batch.items, bytes) for batch in group.missing.values())
    assert all(isinstance(batch.items, bytes) for batch in runner.runner._waiting)
    go.set()
    runner.take(3)


def test_an_outbox_that_takes_long_to_list_is_listed_less_often(
    bench: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[float] = []
    numbers = Outbox.numbers

    def slow(outbox: Outbox) -> set[int]:
        listed.append(time.monotonic())
        time.sleep(0.1)
        return numbers(outbox)

    def hold(order: WorkOrder, future: Future) -> None:
        time.sleep(2.5)
        succeed(order, future)

    runner = bench(hold, 1)
    monkeypatch.setattr(Outbox, "numbers", slow)
    runner.submit(1)
    runner.take(1)
    assert len(listed) <= 6


def test_that_no_worker_begins_is_said(
    bench: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(silence, "PATIENCE_SECONDS", 0.2)
    go = threading.Event()

    def wait(order: WorkOrder, future: Future) -> None:
        go.wait(PATIENCE)
        outbox_of(order).begin(order.name[1])
        time.sleep(0.6)
        for name in outbox_of(order).store.list("outbox"):
            if name.endswith("-begun"):
                outbox_of(order).store.delete(name)
        succeed(order, future)

    runner = bench(wait, 1)
    runner.submit(1)
    until(lambda: "no worker has started any of the 1 waiting task runs" in caplog.text)
    go.set()
    time.sleep(0.2)
    caplog.clear()
    runner.take(1)
    assert "no worker has started" not in caplog.text


def test_what_is_sent_can_be_loaded_where_this_library_is_not(bench: Make, tmp_path: Path) -> None:
    """And says then what is missing; but for this, a worker of Dask would end without a word."""
    sent: list[bytes] = []

    def keep(order: WorkOrder, future: Future) -> None:
        sent.append(cloudpickle.dumps((handle, order)))
        succeed(order, future)

    runner = bench(keep)
    runner.submit(1)
    runner.take(1)
    (tmp_path / "sent").write_bytes(sent[0])
    program = (
        "import sys, cloudpickle\n"
        "sys.modules['resumable_tasks'] = None\n"
        "handle, order = cloudpickle.load(open(sys.argv[1], 'rb'))\n"
        "try: handle(order)\n"
        "except ModuleNotFoundError as error: print(error)\n"
    )
    said = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "sent")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "resumable_tasks" in said.stdout


class TestWorker:
    """`handle_group`, as a scheduler may call it."""

    def test_a_task_run_that_is_run_again_handles_nothing(self, bench: Make) -> None:
        again: list[Any] = []

        def twice(order: WorkOrder, future: Future) -> None:
            copy = cloudpickle.loads(cloudpickle.dumps(order))
            handle_group(order)
            again.append(handle_group(copy))
            future.end()

        runner = bench(twice, 1)
        runner.submit(4)
        assert done(runner.take(4)) == set(range(4))
        assert len(runner.store.list("shards")) == 4
        assert {state.type.name for state in again} == {"COMPLETED"}

    def test_one_whose_worker_has_died_is_left_to_the_driver(self, bench: Make) -> None:
        again: list[Any] = []

        def half(order: WorkOrder, future: Future) -> None:
            copy = cloudpickle.loads(cloudpickle.dumps(order))
            if len(order.batches) > 1 and not again:
                order.batches.pop()
                handle_group(order)
                with pytest.raises(WorkerLost) as caught:
                    handle_group(copy)
                again.append(caught.value)
                future.end(caught.value)
            else:
                succeed(order, future)

        runner = bench(half, 1)
        runner.submit(6)
        assert done(runner.take(6)) == set(range(6))
        assert len(runner.store.list("shards")) == 6
        assert len(again) == 1

    def test_one_that_the_driver_has_let_go_handles_nothing(self, bench: Make) -> None:
        kept: list[WorkOrder] = []

        def keep(order: WorkOrder, future: Future) -> None:
            kept.append(cloudpickle.loads(cloudpickle.dumps(order)))
            succeed(order, future)

        runner = bench(keep, 1)
        runner.submit(1)
        runner.take(1)
        until(lambda: not any("-t0" in name for name in runner.store.list("outbox")))
        assert handle_group(kept[0]).type.name == "CANCELLED"
        assert len(runner.store.list("shards")) == 1

    def test_it_knows_this_checkpoint_from_another_on_the_same_path(self, bench: Make) -> None:
        one, other = bench(), bench()
        work = one.runner._submitter.work
        for folder in (one, other):
            Outbox(folder.store, 1).open()
        mine = Outbox(one.store, 1)
        mine.open()
        mine.expect(99)
        elsewhere = Outbox(other.store, 1, mine.token)
        other.store.put("outbox/e1-t99", b"")
        assert handle_group(order(mine, 99, work)).type.name == "COMPLETED"
        assert handle_group(order(elsewhere, 99, work)).type.name == "CANCELLED"

    def test_a_place_without_a_checkpoint_is_said(self, bench: Make, tmp_path: Path) -> None:
        runner = bench()
        nowhere = Outbox(LocalStore(tmp_path / "nowhere"), 1)
        with pytest.raises(
            UsageError, match=r"nowhere does not exist on host .* all workers share"
        ):
            handle_group(order(nowhere, 0, runner.runner._submitter.work))

    def test_pauses_between_attempts_end_with_the_run(self, bench: Make) -> None:
        outbox = Outbox(bench().store, 5)
        outbox.open()
        outbox.expect(3)
        withdrawn = worker.Withdrawn(outbox, 3)
        assert not withdrawn.wait(0.01)
        threading.Timer(0.2, outbox.close).start()
        began = time.monotonic()
        assert withdrawn.wait(60)
        assert time.monotonic() - began < 30
