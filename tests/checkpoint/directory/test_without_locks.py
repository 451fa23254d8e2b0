"""Who holds a checkpoint where there are no locks: dead processes, heartbeats, several at once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointHeld, StoreError, resumable_task
from resumable_tasks.base import process
from resumable_tasks.checkpoint.directory import holder as holders
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.holder import Holder, Watch, read
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.form import Opening
from tests.checkpoint.store.plain import Plain, at

WANTED = Manifest("job", "1", {"field": "id"}, "one")
ITEMS = [{"id": n} for n in range(60)]


@resumable_task(name="job", key="id", batch_size=1)
def job(items: list[Any]) -> list[Any]:
    return items


@pytest.fixture
def store(tmp_path: Path) -> Plain:
    return Plain(tmp_path / "checkpoint")


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody can wait for as long as a beat takes here."""
    monkeypatch.setattr(holders, "BEAT_SECONDS", 3600.0)


def left_by(store: Plain, **about: Any) -> dict[str, Any]:
    """Leave the sign of life of another run behind."""
    hold = Holder(store, "other")
    hold._record |= about
    hold._write()
    return hold._record


def ended() -> int:
    """The pid of a process that has ended."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.mark.usefixtures("patient")
def test_a_holder_whose_process_has_ended_is_dead_at_once(store: Plain) -> None:
    left_by(store, pid=ended(), started="1")
    assert Watch(store).holder() is None
    left_by(store, started="1")  # its pid is another process's by now
    assert Watch(store).holder() is None
    hold = Holder(store, "mine")
    hold.take(takeover=False)
    assert read(store)["run"] == "mine"
    hold.release()
    assert read(store) == {}


@pytest.mark.usefixtures("patient")
def test_who_only_looks_takes_the_word_of_a_process_that_lives(store: Plain) -> None:
    left_by(store)
    found = Watch(store).holder()
    assert found is not None
    assert found["run"] == "other"


def test_one_of_another_machine_lives_as_long_as_it_beats(
    store: Plain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holders, "BEAT_SECONDS", 0.2)
    left_by(store, machine="another", pid=ended(), beat=1)
    watch = Watch(store)
    assert watch.holder() is None
    store.counted()
    assert watch.holder() is None
    assert store.counted() == {"read holder.json": 1}  # it is not waited for again

    monkeypatch.setattr(holders, "BEAT_SECONDS", 10.0)
    beats = iter(range(2, 10_000))
    store.before = lambda method, name: (
        left_by(Plain(store.url), machine="another", beat=next(beats)) and None
        if (method, name) == ("read", "holder.json")
        else None
    )
    assert watch.holder() is not None
    with pytest.raises(CheckpointHeld, match="run other"):
        Holder(store, "mine").take(takeover=False)


def test_the_start_of_a_process_tells_it_from_a_later_one_of_its_pid() -> None:
    here, pid = process.machine(), os.getpid()
    assert here
    assert not process.is_gone(here, pid, process.started(pid))
    assert process.is_gone(here, pid, "1")
    assert not process.is_gone("another", ended(), "1")
    assert process.is_gone(here, ended(), "1")
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    since = process.started(child.pid)
    assert not process.is_gone(here, child.pid, since)
    child.kill()  # a zombie until somebody asks for it
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    assert process.is_gone(here, child.pid, since)
    child.wait()


@pytest.mark.parametrize("before", [False, True], ids=["new", "after a crash"])
def test_of_three_that_start_at_once_one_runs(store: Plain, before: bool) -> None:
    if before:
        job.run(ITEMS[:5], checkpoint=at(store.url))
        left_by(store, pid=ended(), started="1")
    looked = threading.Barrier(3)
    outcomes: list[Any] = []

    def start() -> None:
        mine = Plain(store.url)

        def wait(method: str, name: str) -> None:
            if (method, name) == ("put", "holder.json"):
                looked.wait(20)
                mine.before = lambda method, name: None

        mine.before = wait
        try:
            outcomes.append(DirectoryCheckpoint.open(mine, WANTED))
        except CheckpointHeld as error:
            outcomes.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one,) = (each for each in outcomes if isinstance(each, DirectoryCheckpoint))
    refused = [each for each in outcomes if each is not one]
    assert [type(each) for each in refused] == [CheckpointHeld] * 2
    assert [each.holder["run"] for each in refused] == [one.run] * 2
    assert one.state.epoch == 1 + before
    one.end("done", {})  # nobody has fenced it
    one.close()


def test_one_that_is_asked_to_takes_over_whoever_has_begun_meanwhile(store: Plain) -> None:
    first = DirectoryCheckpoint.open(store, WANTED)
    mine = Plain(store.url)
    others: list[DirectoryCheckpoint] = []

    def overtake(method: str, name: str) -> None:
        if method == "put" and not others:
            others.append(DirectoryCheckpoint.open(store, WANTED, opening=Opening(takeover=True)))

    mine.before = overtake
    last = DirectoryCheckpoint.open(mine, WANTED, opening=Opening(takeover=True))
    assert [each.state.epoch for each in (first, *others, last)] == [1, 2, 3]
    for each in (first, *others, last):
        each.close()


CHILD = """
import os, signal, sys
from resumable_tasks import resumable_task

@resumable_task(name="job", key="id", batch_size=1)
def job(items):
    if items[0]["id"] == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    return items

job.run([{"id": n} for n in range(60)], checkpoint=sys.argv[1])
"""


def test_after_a_kill_on_this_machine_nobody_waits(bucket: Any) -> None:
    child = subprocess.run([sys.executable, "-c", CHILD, bucket.url], check=False)
    assert child.returncode == -signal.SIGKILL
    assert "holder.json" in bucket.stored()
    bucket.server.forget()
    assert Reader.at(bucket.url).status == "incomplete"
    bucket_reads = bucket.server.counts("*/holder.json")
    run = job.run(ITEMS, checkpoint=bucket.url)
    assert run.skipped + run.completed == 60
    assert sorted(run.table()["id"].to_pylist()) == list(range(60))
    # To wait for a beat would be to look for it again and again.
    assert bucket.server.counts("*/holder.json")["GET"] <= bucket_reads["GET"] + 3
    assert bucket_reads.total() <= 2


def test_a_bucket_is_opened_by_seven_requests_and_resumed_by_twelve(bucket: Any) -> None:
    def opened() -> Counter[str]:
        bucket.server.forget()
        from resumable_tasks.checkpoint.store.urls import open_store

        checkpoint = DirectoryCheckpoint.open(open_store(bucket.url), WANTED)
        found = bucket.server.counts()
        checkpoint.close()
        return found

    assert opened().total() <= 7
    job.run(ITEMS, checkpoint=bucket.url)
    records = sum(name.startswith("journal/") for name in bucket.stored())
    assert opened().total() <= 12 + records


def test_a_heartbeat_that_fails_is_said_once_and_so_is_its_return(
    store: Plain, caplog: pytest.LogCaptureFixture
) -> None:
    hold = Holder(store, "mine")
    hold.take(takeover=False)

    def fail(method: str, name: str) -> None:
        raise StoreError("no answer")

    def answer(method: str, name: str) -> None:
        pass

    with caplog.at_level(logging.INFO, logger="resumable_tasks"):
        for before in (answer, fail, fail, fail, answer, answer, fail, fail):
            store.before = before
            hold.beat()
        hold.release()
    said = [record.getMessage() for record in caplog.records]
    assert [text.partition(":")[0] for text in said] == [
        "the heartbeat could not be written",
        "the heartbeat is written again",
        "the heartbeat could not be written",
        "holder.json could not be removed",
    ]
