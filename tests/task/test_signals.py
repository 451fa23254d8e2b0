"""Signals, wherever a job runs: off the main thread, several at once, in a host of its own mind."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from resumable_tasks import Budget, Interrupted, JobFailed, resumable_task
from resumable_tasks.engine.events import Event, RunFinished

PROGRAM = '''
import asyncio, concurrent.futures, os, queue, signal, sys, threading, time
from resumable_tasks import resumable_task
from resumable_tasks.engine.events import Stopping

place, how, seconds, grace = sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4])

def note(name, text=""):
    with open(os.path.join(place, name), "a") as file:
        file.write(f"{text}\\n")

def listen(event):
    if isinstance(event, Stopping):
        with open(os.path.join(place, "called")) as called:
            note("stopping", len(called.readlines()))

def handled(items):
    note("called", items[0]["id"])
    return [{"id": item["id"]} for item in items]

def work(items):
    rows = handled(items)
    time.sleep(seconds)
    return rows

def ends_child(items):
    rows = handled(items)
    child = os.fork()
    if not child:
        time.sleep(seconds)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    note("child", os.waitpid(child, 0)[1])
    return rows

async def awork(items):
    rows = handled(items)
    await asyncio.sleep(seconds)
    return rows

async def aslow(items):
    rows = handled(items)
    await asyncio.sleep(8 * seconds)
    return rows

async def blocks(items):
    rows = handled(items)
    time.sleep(600)
    return rows

OPTIONS = dict(key="id", batch_size=1, concurrency=2, grace_seconds=grace)
ends_children = resumable_task(ends_child, **OPTIONS)
sync = resumable_task(work, **OPTIONS)
coroutines = resumable_task(awork, **OPTIONS)

def given(part):
    return [{"id": f"{part}{number}"} for number in range(300)]

def go(part, job=sync, items=None):
    return job.run(items or given(part), checkpoint=os.path.join(place, part), listeners=[listen])

def ago(part, job=coroutines):
    return job.arun(given(part), checkpoint=os.path.join(place, part), listeners=[listen])

def silent():
    yield from given("a")[:4]
    note("waits")
    queue.Queue().get()

def executor():
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for found in [pool.submit(go, part) for part in "abcdef"]:  # four of them wait
            found.result()

async def to_thread():
    await asyncio.gather(*(asyncio.to_thread(go, part) for part in "ab"))

async def together():
    await asyncio.gather(*map(ago, "ab"))

async def apart():
    slow = resumable_task(aslow, **OPTIONS)
    await asyncio.gather(ago("a"), ago("b", slow))

async def blocked_loop():
    await ago("a", resumable_task(blocks, **OPTIONS))

class HostEnds(Exception):
    """As Celery's of a soft time limit."""

def host(error):
    def end(number, frame):
        raise error
    signal.signal(signal.SIGTERM, end)
    go("a")

def in_a_thread(call):
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        found = pool.submit(call)
        while not found.done():
            try:
                concurrent.futures.wait([found])
            except KeyboardInterrupt:
                note("main thread goes on")
    found.result()

def forked():
    def fork():
        while not os.path.exists(os.path.join(place, "called")):
            time.sleep(0.01)
        child = os.fork()
        if not child:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        note("child", os.waitpid(child, 0)[1])
    watch = threading.Thread(target=fork)
    watch.start()
    in_a_thread(lambda: go("a", items=given("a")[:8]))
    watch.join()

{
    "main": lambda: go("a"),
    "executor": executor,
    "to_thread": lambda: asyncio.run(to_thread()),
    "together": lambda: asyncio.run(together()),
    "apart": lambda: asyncio.run(apart()),
    "thread": lambda: in_a_thread(lambda: go("a")),
    "silent": lambda: go("a", items=silent()),
    "silent in a thread": lambda: in_a_thread(lambda: go("a", items=silent())),
    "blocked loop": lambda: asyncio.run(blocked_loop()),
    "sys.exit": lambda: host(SystemExit(9)),
    "own exception": lambda: host(HostEnds()),
    "forked": forked,
    "ends children": lambda: go("a", ends_children, given("a")[:60]),
    "ends children in a thread": lambda: in_a_thread(
        lambda: go("a", ends_children, given("a")[:60])
    ),
}[how]()
'''


class Program:
    """The program in a process of its own, and what it noted down."""

    def __init__(self, place: Path, how: str, seconds: float, grace: float) -> None:
        self.place = place
        (place / "program.py").write_text(PROGRAM)
        # A fresh one: how an interpreter takes a signal and ends is what is looked at.
        self.process = subprocess.Popen(
            [sys.executable, place / "program.py", place, how, str(seconds), str(grace)],
            stderr=subprocess.PIPE,
            text=True,
        )

    def notes(self, name: str) -> list[str]:
        path = self.place / name
        return path.read_text().split("\n")[:-1] if path.exists() else []

    def until(self, name: str, count: int) -> None:
        for _ in range(1_000):
            if len(self.notes(name)) >= count or self.process.poll() is not None:
                break
            time.sleep(0.05)
        assert self.process.poll() is None, self.process.communicate()[1]
        assert len(self.notes(name)) >= count

    def has_begun_nothing_more(self) -> bool:
        """Whether no more than what ran just then was called after all runs were to stop."""
        return len(self.notes("called")) <= max(map(int, self.notes("stopping"))) + 2

    def end(self) -> tuple[int, str]:
        """The exit code, and what it said."""
        said = self.process.communicate(timeout=40)[1]
        return self.process.returncode, said

    def committed(self) -> set[str]:
        """The keys in all checkpoints, read without the library."""
        lines = (
            json.loads(line)
            for file in self.place.glob("?/journal/*.jsonl")
            for line in file.read_text().splitlines()
        )
        return {line["key"] for line in lines if set(line) & {"key"} and "error" not in line}


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[Program]]:
    found: list[Program] = []
    yield found
    for each in found:
        each.process.kill()
        each.process.wait()


def begun(started: list[Program], place: Path, how: str, seconds: float, grace: float) -> Program:
    program = Program(place, how, seconds, grace)
    started.append(program)
    return program


STOPS = {
    "main": [signal.SIGINT, signal.SIGTERM, signal.SIGHUP],
    "executor": [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM],
    "to_thread": [signal.SIGUSR1, signal.SIGINT, signal.SIGTERM],
    "together": [signal.SIGHUP, signal.SIGINT, signal.SIGTERM],
    "apart": [signal.SIGTERM, signal.SIGINT, signal.SIGHUP],
}


@pytest.mark.parametrize(
    ("how", "number"),
    [
        pytest.param(
            how,
            number,
            # What asyncio.to_thread runs is off the main thread too, in an executor of its own.
            marks=[pytest.mark.long] if n or how == "to_thread" else [],
            id=f"{how}-{number.name}",
        )
        for how, numbers in STOPS.items()
        for n, number in enumerate(numbers)
    ],
)
def test_a_signal_stops_every_run_in_order(
    started: list[Program], tmp_path: Path, how: str, number: signal.Signals
) -> None:
    program = begun(started, tmp_path, how, 0.3, 20)
    program.until("called", 8)
    program.process.send_signal(number)
    code, said = program.end()
    assert code == 75, said
    assert "un the same command again" in said
    # What was in flight is committed, and nothing has begun since.
    assert program.committed() == set(program.notes("called"))
    assert program.has_begun_nothing_more()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("how", ["run", "arun"])
def test_a_signal_that_comes_when_a_run_is_at_its_end_is_not_lost(
    tmp_path: Path, how: str, number: signal.Signals
) -> None:
    """A program with many runs would go on to its next one."""

    def late(event: Event) -> None:
        if isinstance(event, RunFinished):
            signal.raise_signal(number)

    task = resumable_task(lambda items: [{"n": n} for n in items], name="job")

    def go() -> None:
        if how == "arun":
            asyncio.run(task.arun(range(3), checkpoint=tmp_path / "c", listeners=[late]))
        else:
            task.run(range(3), checkpoint=tmp_path / "c", listeners=[late])

    with pytest.raises(Interrupted, match=f"interrupted by {number.name}, which arrived when"):
        go()
    run = task.run(range(5), checkpoint=tmp_path / "c")
    assert (run.skipped, run.completed) == (3, 2)


@pytest.mark.parametrize("how", ["failed", "spent"])
def test_a_signal_beside_an_error_stops_the_next_run(tmp_path: Path, how: str) -> None:
    def late(event: Event) -> None:
        if isinstance(event, RunFinished):
            signal.raise_signal(signal.SIGTERM)

    def job(items: list[int]) -> list[dict[str, int]]:
        return [{"n": n} for n in items if n or how == "spent"]

    task = resumable_task(job, name="job", batch_size=2)
    budget = Budget(items=2) if how == "spent" else None
    with pytest.raises((JobFailed, Interrupted), match=r"failed|budget used up"):
        task.run(range(4), checkpoint=tmp_path / "a", budget=budget, listeners=[late])
    with pytest.raises(Interrupted, match="interrupted by SIGTERM: 0 items were completed"):
        task.run(range(1, 4), checkpoint=tmp_path / "b")
    assert task.run(range(1, 4), checkpoint=tmp_path / "b").completed == 3


def test_a_signal_to_a_main_thread_that_goes_on_stops_the_others(
    started: list[Program], tmp_path: Path
) -> None:
    program = begun(started, tmp_path, "thread", 0.2, 20)
    program.until("called", 4)
    program.process.send_signal(signal.SIGINT)
    _, said = program.end()
    assert program.notes("main thread goes on"), said
    assert program.committed() == set(program.notes("called"))
    assert program.has_begun_nothing_more()


@pytest.mark.parametrize(
    "how", [pytest.param("silent", marks=pytest.mark.long), "silent in a thread"]
)
def test_items_that_wait_for_their_source_keep_no_process(
    started: list[Program], tmp_path: Path, how: str
) -> None:
    program = begun(started, tmp_path, how, 0.0, 1)
    program.until("waits", 1)
    program.until("called", 4)
    program.process.send_signal(signal.SIGTERM)
    code, said = program.end()
    assert code == 75, said
    assert len(program.committed()) == 4


def test_a_coroutine_that_blocks_its_loop_keeps_no_process(
    started: list[Program], tmp_path: Path
) -> None:
    program = begun(started, tmp_path, "blocked loop", 0.0, 1)
    program.until("called", 1)
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == 75


@pytest.mark.parametrize("how", ["executor", "main"])
def test_a_second_signal_ends_at_once_what_hangs(
    started: list[Program], tmp_path: Path, how: str
) -> None:
    program = begun(started, tmp_path, how, 600, 600)
    program.until("called", 2)
    program.process.send_signal(signal.SIGTERM)
    program.until("stopping", 1)
    program.process.send_signal(signal.SIGTERM)
    assert program.end()[0] == 75


@pytest.mark.parametrize(
    ("how", "code"),
    [pytest.param("sys.exit", 9, marks=pytest.mark.long), ("own exception", 1)],
)
def test_a_host_that_raises_at_its_signal_loses_no_call_in_flight(
    started: list[Program], tmp_path: Path, how: str, code: int
) -> None:
    program = begun(started, tmp_path, how, 0.5, 20)
    program.until("called", 4)
    program.process.send_signal(signal.SIGTERM)
    ended, said = program.end()
    assert ended == code, said
    assert program.committed() == set(program.notes("called"))
    assert len(program.notes("called")) < 20


def test_a_forked_child_still_ends_by_its_own_signal_and_stops_nobody(
    started: list[Program], tmp_path: Path
) -> None:
    program = begun(started, tmp_path, "forked", 0.3, 20)
    code, said = program.end()
    assert code == 0, said
    assert program.notes("child") == [str(int(signal.SIGTERM))]
    assert len(program.committed()) == 8


@pytest.mark.parametrize("how", ["ends children", "ends children in a thread"])
def test_a_forked_child_ends_by_a_signal_that_comes_before_it_has_begun(
    started: list[Program], tmp_path: Path, how: str
) -> None:
    """As the end of a ``with multiprocessing.Pool()`` sends it."""
    program = begun(started, tmp_path, how, 5, 20)
    code, said = program.end()
    assert code == 0, said
    assert program.notes("child") == [str(int(signal.SIGTERM))] * 60
    assert len(program.committed()) == 60
