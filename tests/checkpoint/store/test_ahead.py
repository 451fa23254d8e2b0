"""Reading ahead: in order, so many at a time, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest

from resumable_tasks.checkpoint.store.ahead import at_once, in_order


def readers() -> int:
    return sum(thread.name == "resumable-read" for thread in threading.enumerate())


def until_they_have_ended() -> None:
    for thread in threading.enumerate():
        if thread.name == "resumable-read":
            thread.join(10)
    assert readers() == 0


def test_the_order_is_that_of_the_names_and_no_more_than_the_width_wait() -> None:
    asked: list[str] = []

    def names() -> Iterator[str]:
        for number in range(200):
            asked.append(str(number))
            yield str(number)

    found = in_order(int, names(), 8)
    assert [next(found) for _ in range(20)] == list(range(20))
    assert len(asked) <= 20 + 8
    assert list(found) == list(range(20, 200))
    until_they_have_ended()


def test_reads_are_at_the_same_time() -> None:
    together = threading.Barrier(8, timeout=30)
    assert len(list(in_order(lambda _: together.wait(), map(str, range(8)), 8))) == 8


def test_an_error_comes_in_its_place_and_ends_it() -> None:
    found = in_order(int, ["1", "2", "none", "4"], 8)
    assert [next(found), next(found)] == [1, 2]
    with pytest.raises(ValueError, match="none"):
        next(found)
    until_they_have_ended()


def test_what_is_not_read_to_its_end_leaves_no_thread() -> None:
    found = in_order(int, map(str, range(100)), 4)
    next(found)
    found.close()  # type: ignore[attr-defined]
    until_they_have_ended()


def test_calls_at_once_return_in_their_order() -> None:
    together = threading.Barrier(3, timeout=30)

    def call(number: int) -> int:
        together.wait()
        return number

    assert at_once([partial(call, number) for number in range(3)]) == [0, 1, 2]


def test_the_first_error_is_raised_once_all_calls_have_ended() -> None:
    failed = threading.Event()
    ended: list[str] = []

    def slow() -> None:
        failed.wait(30)
        ended.append("slow")
        raise KeyError("the first in order")

    def quick() -> None:
        failed.set()
        raise ValueError("the first in time")

    with pytest.raises(KeyError, match="the first in order"):
        at_once([slow, quick, lambda: ended.append("third")])
    assert sorted(ended) == ["slow", "third"]
