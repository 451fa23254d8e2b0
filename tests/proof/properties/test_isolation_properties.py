"""Whatever items are bad, however they are cut into batches: these fail, all others are done."""

from __future__ import annotations

import itertools
import math
import tempfile
import threading
from typing import Any
from unittest.mock import patch

from hypothesis import example, given
from hypothesis import strategies as st

from resumable_tasks import Failing, ItemFailure, JobFailed, RunResult, resumable_task
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.engine import breaker

RAISES, FAILS, LEFT_OUT = "raises", "fails", "left out"


class Wrong(Exception):
    pass


@given(
    count=st.integers(1, 120),
    batch_size=st.integers(1, 40),
    concurrency=st.integers(1, 6),
    bad=st.dictionaries(
        st.integers(0, 119), st.sampled_from([RAISES, RAISES, FAILS, LEFT_OUT]), max_size=12
    ),
    programming=st.booleans(),
)
def test_bad_items_fail_and_all_others_are_done(
    count: int, batch_size: int, concurrency: int, bad: dict[int, str], programming: bool
) -> None:
    bad = {key: how for key, how in bad.items() if key < count}
    calls: list[list[int]] = []

    def handler(rows: list[dict[str, int]]) -> list[Any]:
        ids = [row["id"] for row in rows]
        calls.append(ids)
        if any(bad.get(i) == RAISES for i in ids):
            raise KeyError("x") if programming else Wrong
        rest = [i for i in ids if bad.get(i) != LEFT_OUT]
        return [ItemFailure(i, "no") if bad.get(i) == FAILS else {"id": i} for i in rest]

    task = resumable_task(
        handler,
        name="job",
        key="id",
        batch_size=batch_size,
        concurrency=concurrency,
        # That many batches in a row with nothing but bad items have tests of their own.
        failing=Failing(pause_after=20),
    )
    with tempfile.TemporaryDirectory() as folder:
        result: RunResult | None
        try:
            result = task.run([{"id": i} for i in range(count)], checkpoint=folder + "/c")
        except JobFailed as error:
            result = error.result
        assert result is not None
        store = open_store(folder + "/c")
        assert not verify(store).damages, "a key stands twice"
        _, state = read_checkpoint(store)
        failed = sorted(failure.key for failure in state.failures.values())
        rows = result.table()["id"].to_pylist() if len(bad) < count else []

    raising = [i for i, how in bad.items() if how == RAISES]
    halvings = 2 * math.ceil(math.log2(batch_size)) if batch_size > 1 else 0
    left_out = sum(how == LEFT_OUT for how in bad.values())
    planned = math.ceil(count / batch_size)
    assert failed == sorted(bad)
    assert len(failed) == result.failed
    assert sorted(rows) == sorted(set(range(count)) - set(bad))
    # Halving, and the few that are tried where nothing has worked yet.
    assert len(calls) <= planned + len(raising) * (halvings + 2) + left_out + 5


@example(
    batch_size=5,
    concurrency=5,
    pause_after=1,
    outages=[(7, 16), (48, 15)],
    bad={48, 26},
    isolate=True,
)  # all that is held at the end are bad items
@example(
    batch_size=1, concurrency=1, pause_after=1, outages=[(0, 1)], bad=set(), isolate=True
)  # the probe is all that is held
@given(
    batch_size=st.integers(1, 20),
    concurrency=st.integers(1, 6),
    pause_after=st.integers(1, 6),
    outages=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), max_size=3),
    bad=st.sets(st.integers(0, 99), max_size=3),
    isolate=st.booleans(),
)
def test_whatever_is_down_and_when_every_item_is_done_once(
    batch_size: int,
    concurrency: int,
    pause_after: int,
    outages: list[tuple[int, int]],
    bad: set[int],
    isolate: bool,
) -> None:
    """``outages``: from which call on, for how many calls, nothing succeeds."""
    numbers, lock = itertools.count(), threading.Lock()

    def handler(rows: list[dict[str, int]]) -> list[dict[str, int]]:
        with lock:
            number = next(numbers)
        if any(start <= number < start + length for start, length in outages):
            raise ConnectionError("down")
        if isolate and any(row["id"] in bad for row in rows):
            raise Wrong
        return rows

    task = resumable_task(
        handler,
        name="job",
        key="id",
        batch_size=batch_size,
        concurrency=concurrency,
        failing=Failing(pause_after=pause_after, isolate=isolate),
        tolerated_failures=100,
    )
    pauses = patch.multiple(breaker, FIRST_PAUSE=0.001, LONGEST_PAUSE=0.004)
    with tempfile.TemporaryDirectory() as folder, pauses:
        result = task.run([{"id": i} for i in range(100)], checkpoint=folder + "/c")
        store = open_store(folder + "/c")
        assert not verify(store).damages, "a key stands twice"
        rows = sorted(result.table()["id"].to_pylist()) if result.completed else []
        assert rows == sorted(result.completed_keys())
    assert result.completed + result.failed == 100
