"""Waiting for a service: in its time, by a clock that nobody sets, cheaply, and until a signal."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import Waiting, resumable_task
from resumable_tasks.engine import minutes
from resumable_tasks.engine.events import Event, Progressed
from resumable_tasks.engine.progress import describe, said_of
from resumable_tasks.runners.submitted import life, runner
from resumable_tasks.runners.submitted.protocol import Ended, Pending
from tests.processes import started
from tests.submitted.jobs import job
from tests.submitted.service import FileService, Row, items

ROOT = Path(__file__).parents[2]
HOURS = 3_600.0
# A busy machine may take some seconds to end a process. A run that took no notice would go on for
# the grace of 25 seconds, or the ten minutes until the next look.
SOON = 20.0


@dataclass
class Waiter:
    """A process whose run waits for two submissions of ten items."""

    folder: Path
    process: subprocess.Popen[str]
    began: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.began

    @property
    def service(self) -> FileService:
        return FileService(self.folder / "home", takes=None)

    def until(self, pattern: str, count: int = 1) -> None:
        """Wait until the service has so many files of this name."""
        end = time.monotonic() + 60
        while len([*self.service.home.glob(pattern)]) < count:
            assert time.monotonic() < end, self.process.poll()
            time.sleep(0.02)

    def ends_soon(self) -> tuple[int, str]:
        """Its exit code, and what it has said."""
        said = self.process.communicate(timeout=SOON)[1]
        return self.process.returncode, said

    def assert_resumes(self) -> None:
        """The handles are in the journal: nobody has to look for what was submitted."""
        without = FileService(self.folder / "home", without=("find", "fence"))
        made = resumable_task(without, name="waits", key="id", batch_size=10)
        assert made.run(items(20), checkpoint=self.folder / "c").completed == 20
        assert without.paid == dict.fromkeys(range(20), 1)
        assert not [*without.home.glob("*.cancelled")]


@contextmanager
def waiter(
    folder: Path, *, wait: Any = True, submit_seconds: float = 0, budget: float = 0
) -> Iterator[Waiter]:
    words = [str(folder / "c"), json.dumps(wait), str(submit_seconds), str(budget)]
    service = {"SERVICE_HOME": str(folder / "home"), "SERVICE_TAKES": "null"}
    with started(
        [sys.executable, "-m", "tests.submitted.waiting_program", *words],
        cwd=ROOT,
        env={**os.environ, **service},
        stderr=subprocess.PIPE,
    ) as process:
        yield Waiter(folder, process)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_run_that_waits_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with waiter(tmp_path) as found:
        found.until("polled")
        time.sleep(0.5)
        found.process.send_signal(number)
        code, said = found.ends_soon()
    assert code == 75, said
    assert number.name in said
    found.assert_resumes()


def test_what_is_being_submitted_at_a_signal_is_waited_for(tmp_path: Path) -> None:
    with waiter(tmp_path, submit_seconds=2) as found:
        found.until("asked-*", 2)
        found.process.send_signal(signal.SIGTERM)
        code, said = found.ends_soon()
    assert code == 75, said
    assert len(found.service.submissions) == 2
    found.assert_resumes()


def test_a_run_waits_for_so_many_seconds_however_rarely_it_looks(tmp_path: Path) -> None:
    with waiter(tmp_path, wait=3) as found:
        found.until("polled")
        code, said = found.ends_soon()
        assert found.seconds > 3
    assert code == 75, said
    assert "look again at" in said


def test_a_run_that_does_not_wait_ends_soon(tmp_path: Path) -> None:
    with waiter(tmp_path, wait=False) as found:
        found.until("polled")
        code, said = found.ends_soon()
    assert code == 75, said


def test_a_budget_of_seconds_ends_the_waiting_and_not_the_work(tmp_path: Path) -> None:
    with waiter(tmp_path, budget=2) as found:
        found.until("polled")
        code, said = found.ends_soon()
    assert code == 75, said
    assert "seconds=2" in said
    assert "look again at" in said
    found.assert_resumes()


@pytest.mark.timing
def test_waiting_costs_nothing(tmp_path: Path) -> None:
    with waiter(tmp_path) as found:
        found.until("polled")
        time.sleep(1)
        before, began = cpu_seconds(found.process.pid), time.monotonic()
        time.sleep(10)
        used = cpu_seconds(found.process.pid) - before
        assert used / (time.monotonic() - began) < 0.005


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Counting(FileService):
    """Counts how often it is asked, and says when to look again."""

    again_in: float | None = 0.3
    asked = 0

    def poll(self, handle: Row) -> Pending | Ended:
        self.asked += 1
        found = super().poll(handle)
        return Pending(found.progress, self.again_in) if isinstance(found, Pending) else found


@contextmanager
def run_of(service: FileService, folder: Path) -> Iterator[threading.Thread]:
    """A run in a thread, which has ended afterwards."""
    made = job(service)
    run = threading.Thread(
        target=lambda: made.run(items(10), checkpoint=folder / "c", wait=True), daemon=True
    )
    run.start()
    try:
        yield run
    finally:
        service.end_all()


def eventually(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("hours", [8, -8])
def test_a_wall_clock_that_is_set_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    service, wall = Counting(tmp_path / "home", takes=None), time.time
    with run_of(service, tmp_path) as run:
        eventually(lambda: service.asked > 1)
        monkeypatch.setattr(time, "time", lambda: wall() + hours * HOURS)
        before, began = service.asked, time.monotonic()
        time.sleep(2)
        eventually(lambda: service.asked > before + 1)
        looks, most = service.asked - before, 2 + (time.monotonic() - began) / 0.3
    run.join(30)
    assert not run.is_alive()
    assert looks <= most


def test_a_machine_that_has_slept_looks_when_it_wakes_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`time.monotonic`, by which threads wait, stands still in a machine that sleeps."""
    service, asleep = Counting(tmp_path / "home", takes=None), 0.0
    service.again_in = HOURS
    awake = runner.boottime
    for module in (runner, life):
        monkeypatch.setattr(module, "boottime", lambda: awake() + asleep)
    monkeypatch.setattr(runner, "_SLICE_SECONDS", 0.2)
    with run_of(service, tmp_path) as run:
        eventually(lambda: service.asked == 1)
        time.sleep(0.6)
        assert service.asked == 1
        asleep = HOURS
        eventually(lambda: service.asked == 2)
        asleep = 2 * HOURS
        service.end_all()
    run.join(30)
    assert not run.is_alive()


@pytest.mark.skipif(not hasattr(time, "CLOCK_BOOTTIME"), reason="this system has no such clock")
def test_the_clock_goes_on_while_a_machine_sleeps() -> None:
    """Linux's: clock_gettime(2)."""
    before = time.clock_gettime(time.CLOCK_BOOTTIME)
    assert before <= runner.boottime() <= time.clock_gettime(time.CLOCK_BOOTTIME)


def test_looks_become_rarer() -> None:
    pauses = life.Pauses()
    each = [pauses.next() for _ in range(20)]
    assert each[0] == 1
    assert each == sorted(each)
    assert each[-1] == 300


@pytest.mark.parametrize(
    ("age", "again_in", "seconds"),
    [(0, None, 60), (1_000, None, 200), (40_000, None, 1_800), (40_000, 5.0, 5)],
)
def test_who_leaves_is_told_when_to_look_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    age: float,
    again_in: float | None,
    seconds: float,
) -> None:
    service = Counting(tmp_path / "home", takes=None)
    service.again_in = again_in
    with pytest.raises(Waiting):
        job(service).run(items(10), checkpoint=tmp_path / "c", wait=False)
    monkeypatch.setattr(life, "_age", lambda _: age)
    began = datetime.now(UTC)
    with pytest.raises(Waiting, match="look again at") as waiting:
        job(service).run(items(10), checkpoint=tmp_path / "c", wait=False)
    at = waiting.value.look_again_at
    assert at is not None
    assert timedelta(seconds=seconds) <= at - began < timedelta(seconds=seconds * 1.02 + 30)
    assert f"{at:%Y-%m-%d %H:%M:%S} UTC" in str(waiting.value)


class Clocked(FileService):
    """Its clock is a file."""

    @property
    def now(self) -> float:
        path = self.home / "clock"
        return float(path.read_text()) if path.exists() else 0.0

    def go_on(self, seconds: float) -> None:
        (self.home / "clock").write_text(str(self.now + seconds))

    def submit(self, given: list[Row], token: str) -> Row:
        handle = super().submit(given, token)
        (self.home / f"{handle['number']}.at").write_text(str(self.now))
        return handle

    def _has_ended(self, told: Row) -> bool:
        at = self.home / f"{told['number']}.at"
        assert self.takes is not None
        return self.now >= (float(at.read_text()) if at.exists() else 0.0) + self.takes


def test_a_day_in_fifty_runs_that_do_not_wait(tmp_path: Path) -> None:
    service = Clocked(tmp_path / "home", takes=5 * HOURS, undone=9, lose=3)
    service.patience = 0.1
    made, waited, began = job(service, batch_size=10, concurrency=2), [], datetime.now(UTC)
    for _ in range(50):
        with suppress(Waiting):
            try:
                result = made.run(items(60), checkpoint=tmp_path / "c", wait=False)
            except Waiting as waiting:
                waited.append(waiting)
                raise
        service.go_on(24 / 50 * HOURS)
    assert result.skipped == 60
    assert 40 <= len(waited) < 50
    assert {each.exit_code for each in waited} == {75}
    assert all(each.look_again_at and each.look_again_at > began for each in waited)
    assert service.paid == dict.fromkeys(range(60), 1)


def test_a_run_that_waits_says_that_it_is_the_service(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once a minute, in the log and on a bar."""
    monkeypatch.setattr(minutes, "SECONDS", 0.5)
    service, said = Counting(tmp_path / "home", takes=None), []

    def listener(event: Event) -> None:
        if isinstance(event, Progressed):
            said.append((said_of(event), describe(event.progress), event.progress.bound_by))
            if len(said) > 3:
                service.end_all()

    made = job(service, batch_size=4, concurrency=3)
    result = made.run(items(10), checkpoint=tmp_path / "c", wait=True, listeners=[listener])
    line, bar, bound = said[2]
    assert bound is not None
    assert bound.what == "service"
    assert line is not None
    told = r"; bound by the service \(3 out, oldest [\d.]+ s\)"
    assert re.search(f"{told}: it was at work \\d+ % of the time$", line)
    assert re.search(f"{told}$", bar)
    assert result.bound_by is not None
    assert result.bound_by.what == "service"
    assert result.bound_by.shares["service"] > 0.5
