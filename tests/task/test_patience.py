"""Ctrl-C at a checkpoint whose service does not answer: while it is opened, and closed."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Interrupted, resumable_task
from resumable_tasks.base.hanging import Call, GaveUp
from tests.checkpoint.store.plain import AtPlain, at
from tests.processes import started

ITEMS = [{"id": n} for n in range(5)]

CHILD = """
import sys
from resumable_tasks import resumable_task

@resumable_task(name="job", key="id")
def job(items):
    return items

job.run([{"id": n} for n in range(5)], checkpoint=sys.argv[1])
"""


@resumable_task(name="job", key="id")
def job(items: list[Any]) -> list[Any]:
    return items


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_an_opening_that_hangs(bucket: Any, number: signal.Signals) -> None:
    job.run(ITEMS[:2], checkpoint=bucket.url)
    before = bucket.stored()
    bucket.server.fail("hang", key="*/journal*", times=10_000)
    bucket.server.forget()
    with started([sys.executable, "-c", CHILD, bucket.url], stderr=subprocess.PIPE) as child:
        while not any("journal" in str(each.query) for each in bucket.server.log):
            assert child.poll() is None
            threading.Event().wait(0.05)
        child.send_signal(number)
        # A request is not given up before 20 s, nor is it then for good.
        _, said = child.communicate(timeout=15)
    assert child.returncode == 75, said
    assert "has not opened its checkpoint, which does not respond" in said
    assert "Run the same command again" in said
    assert bucket.stored().keys() - {"holder.json"} == before.keys() - {"holder.json"}
    bucket.server.heal()
    assert job.run(ITEMS, checkpoint=bucket.url).completed == 3


class Hanging:
    """Holds a call of a store up, and interrupts the run once it does."""

    def __init__(self, place: AtPlain, method: str, name: str, interrupt: Callable[[], None]):
        self.go_on = threading.Event()
        self.what = method, name
        self.interrupt = interrupt
        place.plain.before = self.before

    def before(self, method: str, name: str) -> None:
        if (method, name) == self.what and not self.go_on.is_set():
            self.interrupt()
            self.go_on.wait(30)


def test_who_was_given_up_claims_nothing(tmp_path: Path) -> None:
    place = at(tmp_path / "checkpoint")
    job.run(ITEMS[:2], checkpoint=place)
    records = len(list(Path(place.path, "journal").iterdir()))
    hanging = Hanging(place, "list", "shards", lambda: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(Interrupted, match="does not respond"):
            job.run(ITEMS, checkpoint=place)
        (opening,) = (each for each in threading.enumerate() if each.name == "resumable-call")
    finally:
        hanging.go_on.set()
    opening.join(20)
    assert not opening.is_alive()
    assert len(list(Path(place.path, "journal").iterdir())) == records
    assert not Path(place.path, "holder.json").exists()
    assert job.run(ITEMS, checkpoint=place).completed == 3


def test_a_signal_ends_a_close_that_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = at(tmp_path / "checkpoint")
    hanging = Hanging(place, "delete", "holder.json", lambda: signal.raise_signal(signal.SIGINT))
    try:
        with pytest.raises(Interrupted, match="arrived when the run was ending"):
            job.run(ITEMS, checkpoint=place)
    finally:
        hanging.go_on.set()
    assert "does not respond, so it could not be released" in caplog.text
    assert job.run(ITEMS, checkpoint=place, takeover=True).skipped == 5


def test_what_a_call_returns_too_late_is_handed_over_once() -> None:
    go_on, late = threading.Event(), []
    call = Call(lambda: go_on.wait(20), late=late.append)
    with pytest.raises(GaveUp):
        call.wait(lambda: 0.1)
    assert call.given_up
    go_on.set()
    (thread,) = (each for each in threading.enumerate() if each.name == "resumable-call")
    thread.join(20)
    assert late == [True]

    def fail() -> None:
        raise ValueError("as it was")

    with pytest.raises(ValueError, match="as it was"):
        Call(fail).wait(lambda: None)
    assert Call(lambda: 7, late=late.append).wait(lambda: None) == 7
    assert late == [True]
