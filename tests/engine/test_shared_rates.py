"""A rate that processes share by a file."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import StoreError, UsageError, current_batch, resumable_task
from resumable_tasks.runners.shared import SharedWindow
from tests import warm
from tests.ports import free_port

PROGRAM = """
import sys
from resumable_tasks import Budget, BudgetUsedUp, current_batch, resumable_task

name, checkpoint, share, reported = sys.argv[1:]

@resumable_task(
    key="id", batch_size=1, concurrency=4, rate_limit="1000 tokens/hour", weight="n", share=share
)
def job(rows):
    current_batch().report(tokens=int(reported))
    return rows

try:
    found = job.run(
        [{"id": i, "n": 50} for i in range(40)], checkpoint=checkpoint, budget=Budget(seconds=8)
    )
except BudgetUsedUp as error:
    found = error.result
print(found.completed)
"""


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A Redis of this test's own."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is not installed (`make system` installs it)")
    port = free_port()
    started = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    server = subprocess.Popen(started, cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        for _ in range(200):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0#quota"
    finally:
        server.terminate()
        server.wait(20)


@pytest.mark.sample
@pytest.mark.timing
@pytest.mark.parametrize("place", ["a file", "a Redis"])
@pytest.mark.parametrize(("reported", "most"), [("50", 20), ("40", 25)])
def test_two_processes_stay_below_the_limit_together(
    reported: str, most: int, place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    redis = place == "a Redis"
    share = request.getfixturevalue("redis_url") if redis else str(tmp_path / "quota")
    running = [
        warm.start(
            [sys.executable, "-c", PROGRAM, name, tmp_path / name, share, reported],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in "ab"
    ]
    counts = [int(each.communicate(timeout=120)[0]) for each in running]
    # Of the last ones, those that are under way count as estimated.
    assert most - 1 <= sum(counts) <= most


def test_the_window_of_all_is_corrected_and_outlives_a_process(tmp_path: Path) -> None:
    one, two = (SharedWindow(str(tmp_path / "quota"), "tokens", 100, 60.0) for _ in range(2))
    slot, wait = one.put(80, 1_010.0)
    assert (slot is not None, wait) == (True, 0.0)
    assert two.put(30, 1_011.0) == (None, 59.0)
    assert two.put(30, 1_009.9)[0] is None  # it looked at the clock, and waited for the file
    one.correct(slot, 50)
    other, _ = two.put(30, 1_012.0)
    assert other is not None
    assert one.left(1_012.0) == 20
    again = SharedWindow(str(tmp_path / "quota"), "tokens", 100, 60.0)
    assert again.put(60, 1_020.0) == (None, 50.0)
    assert SharedWindow(str(tmp_path / "quota"), "calls", 1, 60.0).left(1_020.0) == 1
    assert again.left(5.0) == 100  # the host was started again: what it says of later is nothing


def test_hosts_share_a_window_by_a_redis_whose_clock_counts(redis_url: str) -> None:
    one, two = (SharedWindow(redis_url, "tokens", 100, 60.0) for _ in range(2))
    slot, wait = one.put(80, 5.0)  # no two hosts' clocks agree
    assert wait == 0.0
    nothing, wait = two.put(30, 9_000.0)
    assert nothing is None
    assert 55.0 < wait <= 60.0
    one.correct(slot, 50)
    assert two.put(30, 0.0)[0] is not None
    assert one.left(0.0) == 20
    assert SharedWindow(redis_url.replace("#quota", "#other"), "tokens", 7, 60.0).left(0.0) == 7


def test_a_redis_that_does_not_answer_ends_the_run_with_its_error(tmp_path: Path) -> None:
    made = resumable_task(
        lambda rows: rows, name="job", key="id", rate_limit="1/s", share="redis://127.0.0.1:1/0"
    )
    with pytest.raises(StoreError, match="once Redis answers"):
        made.run([{"id": 1}], checkpoint=tmp_path / "c")


@pytest.mark.parametrize("when", ["while it reports", "once it has reported"])
@pytest.mark.parametrize("kind", ["plain", "coroutine"])
def test_a_file_that_breaks_during_a_call_costs_no_answer(
    kind: str, when: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    share, calls = tmp_path / "quota", []

    def handle(rows: list[int]) -> list[int]:
        calls.append(rows[0])
        if when == "once it has reported":
            current_batch().report(tokens=5)
        if calls == [0, 1, 2]:
            share.unlink()
            share.mkdir()
        if when == "while it reports":
            current_batch().report(tokens=5)
        return [{"key": row} for row in rows]  # type: ignore[misc]

    async def ahandle(rows: list[int]) -> list[int]:
        return handle(rows)

    task = resumable_task(
        handle if kind == "plain" else ahandle,
        name="job",
        batch_size=1,
        concurrency=1,
        rate_limit="1000 tokens/s",
        weight=lambda row: 10,
        share=share,
    )
    with pytest.raises(StoreError, match=re.escape(f"share={share}: ")):
        task.run(range(6), checkpoint=tmp_path / "checkpoint")
    assert calls == [0, 1, 2]
    assert "could not be reported to the processes that share its rate" in caplog.text
    share.rmdir()
    assert task.run(range(6), checkpoint=tmp_path / "checkpoint").skipped == 3
    assert calls == [0, 1, 2, 3, 4, 5]


def test_a_file_that_is_damaged_counts_as_full(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "quota").write_text('{"tokens":[[10.0,')
    window = SharedWindow(str(tmp_path / "quota"), "tokens", 100, 60.0)
    assert window.put(1, 10.0) == (None, 60.0)
    assert "damaged" in caplog.text
    assert window.put(1, 70.0)[1] == 0.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"share": "http://host/0", "rate_limit": "1/s"}, "neither a path of a file"),
        ({"share": "", "rate_limit": "1/s"}, "neither a path of a file"),
        ({"share": "quota"}, "there are none"),
    ],
)
def test_what_cannot_be_shared(options: Any, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        resumable_task(lambda rows: rows, name="job", **options)


def test_a_file_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    share = tmp_path / "missing" / "quota"
    task = resumable_task(lambda rows: rows, name="job", rate_limit="1/s", share=share)
    with pytest.raises(StoreError, match=re.escape(f"share={share}: ")):
        task.run([1], checkpoint=tmp_path / "checkpoint")
