"""Reading ahead: in order, so many at a time, and no thread is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from resumable_tasks.checkpoint.store.ahead import in_order


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
