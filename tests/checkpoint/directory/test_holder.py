"""Who holds a checkpoint: refusal, takeover, and a lock that dies with its process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointHeld, Fenced, resumable_task
from resumable_tasks.base import hanging
from resumable_tasks.checkpoint.directory import holder as holder_module
from resumable_tasks.checkpoint.directory.holder import Holder, Watch, read
from resumable_tasks.checkpoint.store.local import LocalStore
from tests.processes import started

ITEMS = [{"id": i} for i in range(40)]


def _is_held(store: LocalStore) -> bool:
    return Watch(store).holder() is not None


@pytest.fixture
def store(place: Path) -> LocalStore:
    store = LocalStore(place)
    store.prepare(("journal", "shards"))
    return store


def test_a_heartbeat_on_its_way_is_not_waited_for_after_ctrl_c(
    store: LocalStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(holder_module, "BEAT_SECONDS", 0.01)
    hold, began, goes_on = Holder(store, "r1"), threading.Event(), threading.Event()

    def beat() -> None:
        began.set()
        goes_on.wait()

    monkeypatch.setattr(hold, "beat", beat)
    hold.take(takeover=False)
    assert began.wait(30)
    with contextlib.suppress(KeyboardInterrupt), hanging.heeded():
        raise KeyboardInterrupt
    try:
        hold.release()
        assert "the last heartbeat is still being written" in caplog.text
        assert not _is_held(store), "the lock is free all the same"
    finally:
        goes_on.set()
        monkeypatch.setattr(hanging, "_interrupted_at", float("-inf"))


def taken(store: LocalStore, run: str, *, takeover: bool = False) -> Holder:
    hold = Holder(store, run)
    hold.take(takeover=takeover)
    return hold


def test_a_second_one_is_refused_and_told_who_holds_it(store: LocalStore) -> None:
    hold = taken(store, "first")
    with pytest.raises(CheckpointHeld, match=rf"run first on host .*, pid {os.getpid()}, since 20"):
        taken(store, "second")
    assert _is_held(store)
    hold.release()
    assert not _is_held(store)
    assert read(store) == {}
    taken(store, "second").release()


def test_after_a_takeover_the_lock_is_the_new_ones(store: LocalStore) -> None:
    first = taken(store, "first")
    second = taken(store, "second", takeover=True)
    with pytest.raises(CheckpointHeld, match="run second"):
        first.check()
    first.release()  # must neither free the checkpoint nor remove the other's name
    with pytest.raises(CheckpointHeld, match="run second"):
        taken(store, "third")
    second.release()
    taken(store, "third").release()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_hold_that_is_lost_sight_of_is_free(store: LocalStore) -> None:
    hold: Holder | None = taken(store, "first")
    assert _is_held(store)
    del hold
    assert not _is_held(store)


def test_a_forked_child_does_not_keep_the_lock_of_a_dead_run(place: Path) -> None:
    script = f"""
import os, sys, time
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.store.local import LocalStore
store = LocalStore({str(place)!r}); store.prepare(())
hold = Holder(store, "parent"); hold.take(takeover=False)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(child, flush=True)
time.sleep(60)
"""
    command = [sys.executable, "-W", "ignore", "-c", script]
    with started(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert _is_held(LocalStore(place))
            parent.kill()
            parent.wait()
            time.sleep(0.1)
            assert not _is_held(LocalStore(place))
        finally:
            os.kill(child, signal.SIGKILL)


class WithoutLocks(LocalStore):
    """As a bucket, or a network file system without locks, is."""

    def lock(self, name: str, *, steal: bool = False) -> Any:
        raise NotImplementedError

    def locked(self, name: str) -> bool:
        raise NotImplementedError


def test_without_locks_a_heartbeat_that_moves_refuses_and_one_that_rests_does_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder_module, "BEAT_SECONDS", 0.1)
    store = WithoutLocks(place)
    store.prepare(())
    first = taken(store, "first")
    with monkeypatch.context() as patient:
        patient.setattr(holder_module, "WATCHED_BEATS", 600.0)  # however late the first one beats
        with pytest.raises(CheckpointHeld, match="run first"):
            taken(store, "second")
    first._stop.set()  # it dies: its file stays, and beats no more
    first._thread.join()
    second = taken(store, "second")
    assert read(store)["run"] == "second"
    second.release()


def test_one_that_was_taken_over_while_it_works_stops_with_who_did(place: Path) -> None:
    go_on, at_work = threading.Event(), threading.Event()

    def handler(rows: list[Any]) -> list[Any]:
        at_work.set()
        go_on.wait(20)
        return rows

    errors: list[BaseException] = []

    def first() -> None:
        try:
            resumable_task(handler, name="job", key="id").run(ITEMS, checkpoint=place)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=first)
    thread.start()
    at_work.wait(20)
    job = resumable_task(lambda rows: rows, name="job", key="id")
    result = job.run(ITEMS, checkpoint=place, takeover=True)
    go_on.set()
    thread.join()
    assert result.completed == 40
    assert isinstance(errors[0], Fenced)
    assert errors[0].holder["pid"] == os.getpid()
    assert errors[0].holder["run"] == result.run
    assert sorted(result.table().column("id").to_pylist()) == list(range(40))
