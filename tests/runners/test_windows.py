"""Windows of weights: held to a count of all entries, one by one."""

from __future__ import annotations

import random

import pytest

from resumable_tasks.runners.windows import Window


def most_in_any(seconds: float, entries: list[tuple[float, int]]) -> int:
    return max(
        sum(weight for at, weight in entries if start <= at and at + 1e-6 < start + seconds)
        for start, _ in entries
    )


@pytest.mark.sample(one_in=5)
@pytest.mark.parametrize("seed", range(5))
def test_no_window_holds_more_and_no_call_waits_longer_than_it_must(seed: int) -> None:
    chance = random.Random(seed)
    window, now = Window(1_000, 60.0), 0.0
    entries: list[tuple[float, int]] = []
    for _ in range(2_000):
        weight = min(1_000, int(chance.lognormvariate(4, 1)) + 1)
        while True:
            slot, wait = window.put(weight, now)
            held = sum(w for at, w in entries if at + 60.0 > now)
            assert (slot is not None) == (held + weight <= 1_000)
            if slot is not None:
                break
            # A moment earlier there is no room yet.
            early = sum(w for at, w in entries if at + 60.0 > now + wait - 1e-6)
            assert early + weight > 1_000
            now += wait
        entries.append((now, weight))
        now += chance.expovariate(20.0)
    assert most_in_any(60.0, entries) <= 1_000
    assert most_in_any(60.0, entries) > 900  # and it is used


def test_an_entry_that_is_corrected_counts_as_it_is_corrected() -> None:
    window = Window(100, 10.0)
    slot, _ = window.put(90, 0.0)
    assert window.put(20, 1.0) == (None, 9.0)
    window.correct(slot, 50)
    assert window.left(1.0) == 50
    other, wait = window.put(20, 1.0)
    assert (other is not None, wait) == (True, 0.0)
    window.correct(slot, 80)
    assert window.left(1.0) == 0
    assert window.left(10.0) == 80  # only the second is left
    window.correct(slot, 1_000)  # too late: it has gone
    assert window.left(10.0) == 80


def test_a_debt_delays_the_next_call_in_proportion() -> None:
    window = Window(100, 10.0)
    slot, _ = window.put(10, 0.0)
    window.correct(slot, 350)
    assert window.put(1, 1.0) == (None, 34.0)
    assert window.put(1, 35.0)[1] == 0.0


def test_a_call_heavier_than_the_limit_goes_alone_and_costs_its_time() -> None:
    window = Window(100, 10.0)
    window.put(10, 0.0)
    assert window.put(250, 5.0) == (None, 5.0)
    slot, wait = window.put(250, 10.0)
    assert (slot is not None, wait) == (True, 0.0)
    assert window.put(1, 20.0) == (None, 15.0)
    assert window.put(1, 35.0)[1] == 0.0
