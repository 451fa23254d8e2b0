"""What a run waits for: the rule by a table, the meter in virtual time, six jobs on all runners."""

from __future__ import annotations

import json
import pickle
import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import Adaptive, Failing, Progress, Retry, current_batch, resumable_task
from resumable_tasks.base.stopping import NEVER
from resumable_tasks.cli import main
from resumable_tasks.engine import bound, breaker, minutes
from resumable_tasks.engine.bound import Meter
from resumable_tasks.engine.events import Progressed, RunFinished
from resumable_tasks.engine.progress import describe, said_of
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.bound import Trail, judge
from resumable_tasks.runners.limits import AdditiveIncrease, Limits
from resumable_tasks.runners.outcome import Done, Times
from resumable_tasks.runners.rates import RateLimit
from resumable_tasks.runners.usage import Load
from tests.engine.simulation import VirtualClock

ITEMS = [{"id": i} for i in range(40)]
ROW = random.Random(1).randbytes(2_000_000)


class Told(Exception):
    retry_after = 0.4


# --- the rule


@pytest.mark.parametrize(
    ("what", "says", "shares"),
    [
        # The measured shares of the six jobs of the design.
        ("latency", "calls took 92 %", {"handler": 0.92, "idle": 0.01, "commit": 0.22}),
        ("rate", "own rate", {"handler": 0.15, "idle": 0.05, "rate": 0.74, "commit": 0.2}),
        ("source", "96 %", {"handler": 0.1, "idle": 0.81, "source": 0.96, "commit": 0.15}),
        ("quota", "429", {"handler": 0.07, "told": 0.68, "commit": 0.08}),
        ("commits", "94 %", {"handler": 0.14, "idle": 0.78, "commit": 0.94}),
        ("quota", "429", {"handler": 0.1, "told": 0.8, "idle": 0.1, "commit": 0.3}),
        # And what they leave open.
        ("outage", "down", {"down": 0.4, "handler": 0.5, "idle": 0.5}),
        ("retries", "pauses", {"handler": 0.2, "retries": 0.6, "idle": 0.2}),
        ("commits", "80 %", {"handler": 0.1, "write": 0.8, "idle": 0.1}),
        ("latency", "calls took", {"handler": 0.9, "idle": 0.1, "commit": 0.9, "source": 0.9}),
        ("latency", "calls took 60 %", {"handler": 0.6, "rate": 0.4}),
        ("latency", "69 %", {"handler": 0.69, "idle": 0.31, "commit": 0.61, "source": 0.6}),
        ("quota", "told", {"handler": 0.3, "told": 0.3, "rate": 0.2, "idle": 0.2}),
        (
            "nothing",
            "commits 37 %, calls took 19 %",
            {"handler": 0.19, "commit": 0.37, "idle": 0.8},
        ),
        ("latency", "waiting to make them took 95 %", {"handler": 0.27, "adaptive": 0.68}),
        ("nothing", "nothing in particular", {"idle": 1.0}),
        # The last of the batches, alone; and commits after all calls.
        ("latency", "calls took 100 %", {"handler": 1.0, "spare": 0.9}),
        ("commits", "90 %", {"handler": 1.0, "spare": 0.9, "commit": 0.9}),
    ],
)
def test_what_shares_say(what: str, says: str, shares: dict[str, float]) -> None:
    found = judge(shares)
    assert found.what == what
    assert says in found.sentence
    assert pickle.loads(pickle.dumps(found)) == found
    assert json.loads(json.dumps(asdict(found)))["shares"]["idle"] == shares.get("idle", 0.0)


def test_latency_says_what_sets_the_number_of_calls_at_once() -> None:
    limits = Limits((), Adaptive(2, 4))
    control = limits._control
    assert isinstance(control, AdditiveIncrease)
    assert limits.at_once == "2 calls at once, and rising"
    control.was_throttled(time.monotonic(), OSError())
    assert limits.at_once == "the service handles no more than 2 at once"
    control.limit = 4.0
    assert limits.at_once == "at highest=4"
    assert "latency (at highest=4)" in judge({"adaptive": 0.6}, limits.at_once).sentence


def test_a_call_that_is_told_holds_others_back_as_told() -> None:
    limits = Limits((RateLimit(2, 60.0),), Adaptive(1, 1))
    first = limits.enter(Load(), NEVER)
    assert first is not None
    waits: dict[str, float] = {}
    stop = threading.Timer(0.05, limits.leave, (first, Told()))
    stop.start()
    assert limits.enter(Load(), NEVER, waits) is not None
    assert waits.keys() == {"adaptive", "told"}
    assert waits["told"] > 0.3


# --- the meter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    clock = VirtualClock()
    monkeypatch.setattr("resumable_tasks.runners.bound.time.monotonic", clock.monotonic)
    return clock


def done(number: int, seconds: float, ended: float, **waits: float) -> Done:
    batch = Batch(number, [number], b"%d" % number, [number])
    return Done(batch, times=Times(seconds, 0.0, ended, 1, waits=waits or None))


def test_shares_are_of_the_lanes_or_of_the_run(clock: VirtualClock) -> None:
    meter = Meter(2, str, clock)
    source = meter.reading(iter(range(2)))

    def slow() -> Iterator[int]:
        for number in range(2):
            clock.now += 3.0
            yield number

    source = meter.reading(slow())
    assert [next(source), next(source)] == [0, 1]
    with meter.committing():
        clock.now += 1.0
    meter.down(True)
    clock.now += 2.0
    meter.down(True)
    meter.down(False)
    clock.now += 1.0
    assert meter.over_the_run() is None  # nothing was handled
    meter.begin()
    meter.took(done(0, 4.0, 10.0, told=2.0, retries=1.0))
    found = meter.over_the_run()
    assert found is not None
    assert {place: share for place, share in found.shares.items() if share} == {
        "source": 0.6,
        "commit": 0.1,
        "down": 0.2,
        "handler": 0.2,
        "told": 0.1,
        "retries": 0.05,
        "idle": 0.65,
    }


def test_the_start_of_the_lanes_is_left_out(clock: VirtualClock) -> None:
    meter = Meter(1, str, clock)
    meter.begin()
    clock.now = 100.0
    meter.took(done(0, 2.0, 100.0, rate=3.0))
    clock.now = 101.0
    found = meter.over_the_run()
    assert found is not None
    assert found.shares["handler"] == round(2 / 6, 3)


def test_lanes_for_which_nothing_is_left_wait_for_nothing(clock: VirtualClock) -> None:
    meter = Meter(4, str, clock)
    for number in meter.reading([0, 1]):
        meter.spare.out[number] = done(number, 0.0, 0.0).batch
    clock.now = 1.0
    del meter.spare.out[0]
    with meter.committing():
        meter.took(done(0, 1.0, 1.0))
    clock.now = 11.0
    del meter.spare.out[1]
    with meter.committing():
        meter.took(done(1, 11.0, 11.0))
    found = meter.over_the_run()
    assert found is not None
    assert found.shares["handler"] == 1.0
    assert found.shares["spare"] == round((2 + 30) / 44, 3)
    assert found.what == "latency"


def test_what_is_still_being_handled_counts(clock: VirtualClock) -> None:
    meter = Meter(1, str, clock)
    meter.trails[0] = trail = Trail()
    trail.enter("handler")
    clock.now = 5.0
    trail.leave()
    trail.enter("told")
    clock.now = 20.0
    found = meter.over_the_run()
    assert found is not None
    assert (found.what, found.shares["handler"], found.shares["told"]) == ("quota", 0.25, 0.75)


def test_the_last_minute_is_told_from_the_run(clock: VirtualClock) -> None:
    meter = Meter(1, str, clock)
    for second in range(1, 301):
        clock.now = float(second)
        early = second <= 200
        meter.took(done(second, 0.9, second, **({} if early else {"rate": 0.0})))
        if not early:
            meter._seconds["handler"] -= 0.9
            meter._seconds["rate"] += 0.9
        lately = meter.lately()
    assert lately is not None
    assert lately.what == "rate"
    assert meter.over_the_run().what == "latency"  # type: ignore[union-attr]
    assert len(meter._past) <= bound.LATELY_SECONDS + 2


# --- the jobs, on each runner


def wait(rows: Any) -> Any:
    time.sleep(0.08)
    return rows


def quick(rows: Any) -> Any:
    time.sleep(0.002)
    return rows


def large(rows: Any) -> Any:
    return [{**row, "blob": ROW} for row in rows]


_told: set[str] = set()


def every_sixth_is_told(rows: Any) -> Any:
    time.sleep(0.003)
    batch = current_batch().id
    if rows[0]["id"] % 6 == 0 and batch not in _told:
        _told.add(batch)
        raise Told
    return rows


def slowly() -> Iterator[Any]:
    for item in ITEMS[:20]:
        time.sleep(0.02)
        yield item


JOBS: dict[str, tuple[str, Callable[[Any], Any], Callable[[], Any], dict[str, Any]]] = {
    "calls": ("latency", wait, lambda: ITEMS[:16], {}),
    "rate_limit": ("rate", quick, lambda: ITEMS[:20], {"rate_limit": "10/second"}),
    "slow generator": ("source", quick, slowly, {}),
    "told, with a rate": (
        "quota",
        every_sixth_is_told,
        lambda: ITEMS[:20],
        {"rate_limit": "99/second"},
    ),
    "large rows": ("commits", large, lambda: ITEMS[:24], {}),
    "told": ("quota", every_sixth_is_told, lambda: ITEMS[:20], {}),
}


def in_a_loop(handler: Callable[[Any], Any]) -> Any:
    import asyncio

    async def call(rows: Any) -> Any:
        return await asyncio.to_thread(handler, rows)

    return call


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What the first run of a process imports takes longer than these short jobs, on a busy day."""
    job = resumable_task(quick, name="job", key="id")
    job.run(ITEMS[:1], checkpoint=tmp_path_factory.mktemp("first"))


@pytest.mark.sample
@pytest.mark.timing
@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize("runner", ["threads", "loop", "processes"])
@pytest.mark.parametrize("name", JOBS)
def test_six_jobs_say_what_they_wait_for(name: str, runner: str, place: Path) -> None:
    what, handler, items, options = JOBS[name]
    _told.clear()
    job = resumable_task(
        in_a_loop(handler) if runner == "loop" else handler,
        **{"name": "job", "key": "id", "batch_size": 1, "concurrency": 2, **options},
        runner="processes" if runner == "processes" else "local",
    )
    found = job.run(items(), checkpoint=place).bound_by
    assert found is not None
    assert found.what == what, found
    assert what != "latency" or "(concurrency=2)" in found.sentence


def test_a_run_says_it_where_people_look(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    job = resumable_task(wait, name="job", key="id", batch_size=1)
    result = job.run(ITEMS[:8], checkpoint=place)
    assert result.bound_by is not None
    sentence = result.bound_by.sentence
    assert f"job: bound by {sentence}" in caplog.text
    assert pickle.loads(pickle.dumps(result)).bound_by == result.bound_by
    shown = CliRunner().invoke(main, ["status", str(place)]).output
    assert sentence[:40] in shown
    described = CliRunner().invoke(main, ["status", "--json", str(place)]).output
    assert json.loads(described)["last_run"]["bound_by"] == asdict(result.bound_by)
    assert job.run(ITEMS[:8], checkpoint=place).bound_by is None  # nothing was handled


def test_once_a_minute_it_is_said_over_the_last_minute(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(minutes, "SECONDS", 0.1)
    monkeypatch.setattr(bound, "_EVERY_SECONDS", 0.05)
    caplog.set_level("INFO")
    seen: list[Any] = []
    job = resumable_task(wait, name="job", key="id", batch_size=1, concurrency=2)
    job.run(ITEMS[:16], checkpoint=place, listeners=[seen.append])
    told = [event.progress for event in seen if isinstance(event, Progressed)]
    assert "latency" in {each.bound_by.what for each in told if each.bound_by is not None}
    assert re.search(r"job: .*/16 done.*; bound by latency \(.*\): calls took \d+ %", caplog.text)
    assert seen[-1].progress.bound_by.shares["handler"] > 0  # over the run


def test_the_bar_names_it_and_the_last_line_says_it() -> None:
    progress = Progress(1, 0, 0, 2, 2.0, bound_by=judge({"source": 0.9, "idle": 0.9}))
    assert describe(progress) == "1/2 done, 0.5/s, 2 s left; bound by source"
    line = said_of(RunFinished("job", "/data", "run", "done", progress))
    assert line is not None
    assert "; bound by source: reading the items took 90 % of the time; checkpoint" in line


def test_a_service_that_is_down_is_what_is_waited_for(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "FIRST_PAUSE", 0.3)
    began = time.monotonic()

    def down_at_first(rows: Any) -> Any:
        if time.monotonic() - began < 0.4:
            raise ConnectionError
        return rows

    job = resumable_task(
        down_at_first, name="job", key="id", batch_size=1, failing=Failing(pause_after=2)
    )
    found = job.run(ITEMS, checkpoint=place).bound_by
    assert found is not None
    assert found.what == "outage", found


def test_pauses_before_retries_are_what_is_waited_for(place: Path) -> None:
    def fails_once(rows: Any) -> Any:
        if current_batch().attempt == 1:
            raise ConnectionError
        return rows

    job = resumable_task(
        fails_once, name="job", key="id", batch_size=1, retries=Retry(1, delay=0.1), concurrency=2
    )
    found = job.run(ITEMS[:12], checkpoint=place).bound_by
    assert found is not None
    assert found.what == "retries", found
