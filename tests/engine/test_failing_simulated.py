"""What a failed batch means, in virtual time: hours of outage and nights of bad items, no sleep."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resumable_tasks.items.batch import ErrorKind
from tests.engine.simulation import (
    BAD,
    DOWN,
    PROGRAMMING,
    SHAPE,
    Answer,
    Report,
    Simulation,
    planned,
)

# As tests/proof/properties has it: more of them in `make test-long`.
often = settings(
    deadline=None,
    max_examples=500 if os.environ.get("RESUMABLE_TASKS_PROFILE") == "long" else 25,
)


def bad_items(bad: set[int], kind: ErrorKind = BAD) -> Answer:
    return lambda now, items: kind if bad & set(items) else None


def extra_calls(bad: int, batch_size: int) -> int:
    """So many calls more than one a batch may be made for so many bad items."""
    return bad * 2 * math.ceil(math.log2(max(batch_size, 2)))


def check_records(report: Report) -> None:
    """Each item comes to one end, and each error is of a call with its item alone, or says so."""
    assert max(Counter(report.done + report.failed).values(), default=1) == 1
    for failure in report.failures:
        alone = failure.message.endswith(f" of [{failure.key}]")
        assert alone or failure.error_of == "batch"
        # Where nothing works, nothing is known to be an item's fault.
        assert failure.attempts == (1 if alone and not report.hopeless else 0)


# --- bad items


@often
@given(
    bad=st.sets(st.integers(0, 299), max_size=60),
    batch_size=st.integers(1, 50),
    lanes=st.integers(1, 6),
    kind=st.sampled_from([BAD, PROGRAMMING]),
)
def test_bad_items_are_found_and_the_others_are_done(
    bad: set[int], batch_size: int, lanes: int, kind: ErrorKind
) -> None:
    batches = planned(range(300), batch_size)
    report = Simulation(batches, bad_items(bad, kind), lanes=lanes).run()
    check_records(report)
    if report.is_done():
        assert sorted(report.failed) == sorted(bad)
        assert len(report.done) == 300 - len(bad)
        # And a few single items in pauses that were none.
        assert len(report.calls) <= len(batches) + extra_calls(len(bad), batch_size) + len(bad) + 8
        assert {failure.error_of for failure in report.failures} <= {"item"}
    else:
        # As many batches in a row as that have failed, and a few items tried by themselves.
        assert report.hopeless
        assert len(bad) > 15
        assert bad >= set(report.failed)


@pytest.mark.parametrize("count", [1, 39, 100])
@pytest.mark.parametrize("kind", [BAD, PROGRAMMING])
@pytest.mark.parametrize("batch_size", [1, 30])
def test_a_second_night_completes_what_is_fixed(
    count: int, kind: ErrorKind, batch_size: int
) -> None:
    """The items that failed before are all that is left, and one of them is fixed."""
    always = set(range(7, 3_000, 3_000 // count)[:count])
    once = 1_500 - 1
    first = Simulation(planned(range(3_000), batch_size), bad_items({*always, once}, kind)).run()
    assert sorted(first.failed) == sorted({*always, once})
    check_records(first)
    for _ in range(3):
        batches = planned(sorted({*always, once}), batch_size, suspects={*always, once})
        report = Simulation(batches, bad_items(always, kind)).run()
        check_records(report)
        assert report.is_done()
        assert report.done == [once]
        assert sorted(report.failed) == sorted(always)
        assert len(report.calls) <= len(batches) + extra_calls(count, batch_size)


@often
@given(
    start=st.integers(0, 25),
    count=st.integers(1, 10),
    batch_size=st.sampled_from([6, 10, 30, 50]),
    kind=st.sampled_from([BAD, PROGRAMMING]),
)
def test_bad_items_in_a_row_do_not_hide_the_good_ones_of_a_small_job(
    start: int, count: int, batch_size: int, kind: ErrorKind
) -> None:
    """Wherever they stand, also where every batch begins with one."""
    rows = set(range(start, min(start + count, 30)))
    for bad in (rows, set(range(0, 30, batch_size))):
        report = Simulation(planned(range(30), batch_size), bad_items(bad, kind)).run()
        check_records(report)
        assert report.is_done()
        assert sorted(report.failed) == sorted(bad)
        assert len(report.done) == 30 - len(bad)


def test_each_night_tries_other_items_where_nothing_has_worked() -> None:
    """Of 40 items one is good, and it is found within as many nights as it takes to look at all."""
    for good in range(40):
        answer = bad_items(set(range(40)) - {good}, PROGRAMMING)
        nights = (Simulation(planned(range(40), 40), answer, number=n).run() for n in range(1, 25))
        assert any(report.done == [good] for report in nights)


@often
@given(
    fixed=st.sets(st.integers(0, 99)),
    fresh=st.sets(st.integers(100, 160)),
    batch_size=st.integers(1, 40),
    kind=st.sampled_from([BAD, PROGRAMMING, SHAPE]),
)
def test_suspects_are_no_evidence_against_the_rest(
    fixed: set[int], fresh: set[int], batch_size: int, kind: ErrorKind
) -> None:
    bad = set(range(100)) - fixed
    batches = planned([*range(100), *sorted(fresh)], batch_size, suspects=range(100))
    report = Simulation(batches, bad_items(bad, kind)).run()
    check_records(report)
    assert report.is_done()
    assert set(report.done) == fixed | fresh
    assert len(report.calls) <= len(batches) + 2 * len(bad) * max(
        1, math.ceil(math.log2(batch_size))
    )


def test_without_isolation_the_batch_is_what_failed() -> None:
    report = Simulation(planned(range(100), 10), bad_items({33}), isolate=False).run()
    assert len(report.calls) == 10
    assert sorted(report.failed) == list(range(30, 40))
    assert {(f.error_of, f.attempts) for f in report.failures} == {("batch", 1)}


# --- outages


def down(since: float, until: float, bad: set[int]) -> Answer:
    def answer(now: float, items: Sequence[int]) -> ErrorKind | None:
        if since <= now < until:
            return DOWN
        return BAD if bad & set(items) else None

    return answer


@often
@given(
    since=st.floats(0, 10),
    lasts=st.floats(8, 25),
    batch_size=st.integers(1, 30),
    lanes=st.integers(1, 6),
    bad=st.sets(st.integers(0, 599), max_size=20),
)
def test_an_outage_fails_no_item_whenever_it_comes(
    since: float, lasts: float, batch_size: int, lanes: int, bad: set[int]
) -> None:
    batches = planned(range(600), batch_size)
    report = Simulation(batches, down(since, since + lasts, bad), lanes=lanes).run()
    check_records(report)
    assert report.is_done()
    assert sorted(report.failed) == sorted(bad)
    assert {failure.error for failure in report.failures} <= {"ValueError"}


@often
@given(since=st.floats(0, 20), batch_size=st.integers(1, 30), lanes=st.integers(1, 6))
def test_a_service_that_stays_down_is_given_up_and_uses_no_attempt_up(
    since: float, batch_size: int, lanes: int
) -> None:
    items = 2_000
    report = Simulation(
        planned(range(items), batch_size), down(since, math.inf, set()), lanes=lanes
    ).run()
    if report.is_done():
        return  # it was quicker
    if report.give_up is None:
        assert len(report.done) + len(report.failed) == items, "only the last were left"
        return
    assert report.failures == []
    assert "600 s without a success" in report.give_up
    assert since + 600 <= report.seconds < since + 600 + 60
    # Those on their way, and one item and one batch at growing pauses, of 15 seconds at most.
    since_then = [call for call in report.calls if call[0] >= since]
    assert len(since_then) <= 2 * lanes + 10 + 2 * (600 / 15 + 6)


def test_pauses_grow_and_the_last_call_is_made_when_patience_ends() -> None:
    answer = down(0.0, math.inf, set())
    report = Simulation(planned(range(500), 50), answer, lanes=1, give_up_after=40.0).run()
    tried = [at for at, items in report.calls if len(items) == 1]
    between = [round(b - a, 1) for a, b in itertools.pairwise(tried)]
    assert between[:4] == [1.1, 2.1, 4.1, 8.1]
    assert report.give_up
    assert report.seconds == pytest.approx(0.5 + 40.0 + 0.1)  # from the fifth failure on


def test_an_outage_of_the_last_batches_is_waited_for_half_a_minute_and_once() -> None:
    report = Simulation(planned(range(100), 50), down(0.0, 29.0, set())).run()
    assert sorted(report.done) == list(range(100))
    dead = Simulation(planned(range(3), 1), lambda now, items: DOWN if 2 in items else None).run()
    assert (sorted(dead.done), dead.failed) == ([0, 1], [2])
    assert 30 <= dead.seconds < 32


def test_a_success_that_was_on_its_way_says_nothing_of_what_came_after() -> None:
    slow = {0}

    class Slow(Simulation):
        def _call(self, batch, running, report):  # type: ignore[no-untyped-def]
            self.call_seconds = 5.0 if slow & set(batch.items) else 0.1
            super()._call(batch, running, report)

    answer: Answer = lambda now, items: None if slow & set(items) else DOWN  # noqa: E731
    report = Slow(planned(range(100), 1), answer, pause_after=200, give_up_after=20.0).run()
    assert (report.done, report.failed) == ([0], [])
    assert report.give_up


@pytest.mark.parametrize("batch_size", [1, 50])
def test_an_outage_with_many_faces_is_one(batch_size: int) -> None:
    kinds = [ErrorKind(name, transient=True, outage=True) for name in ("A", "B", "C")]
    calls: list[int] = []

    def answer(now: float, items: Sequence[int]) -> ErrorKind | None:
        calls.append(1)
        return kinds[len(calls) % 3] if now > 1 else None

    report = Simulation(planned(range(5_000), batch_size), answer, give_up_after=5.0).run()
    assert report.give_up
    assert report.failures == []
    assert sum(at > 1 for at, _ in report.calls) < 40


@pytest.mark.parametrize("batches", [1, 3])
def test_an_outage_among_the_last_batches_uses_no_attempt_up(batches: int) -> None:
    report = Simulation(planned(range(50 * batches), 50), down(0.0, 2.0, set()), lanes=2).run()
    assert (len(report.done), report.failed) == (50 * batches, [])


def test_a_short_blip_condemns_no_batch_of_one_item() -> None:
    report = Simulation(planned(range(60), 1), down(1.0, 2.0, set()), lanes=1).run()
    assert (len(report.done), report.failed) == (60, [])


def test_what_failed_meanwhile_is_handled_again_and_counted() -> None:
    report = Simulation(planned(range(400), 10), down(0.3, 9.0, set())).run()
    assert len(report.done) == 400
    assert 5 <= report.retried <= 20


# --- a handler that is wrong


@pytest.mark.parametrize("batch_size", [1, 50])
@pytest.mark.parametrize("worked_for", [0.0, 1.0])
def test_a_handler_that_is_wrong_is_found_out_early(batch_size: int, worked_for: float) -> None:
    answer: Answer = lambda now, items: PROGRAMMING if now >= worked_for else None  # noqa: E731
    report = Simulation(planned(range(10_000), batch_size), answer).run()
    check_records(report)
    assert report.hopeless is not None
    assert "nothing has succeeded" in report.hopeless
    assert sum(at >= worked_for for at, _ in report.calls) < (60 if worked_for else 35)


@pytest.mark.parametrize("kind", [BAD, PROGRAMMING])
@pytest.mark.parametrize("batches", [1, 4, 5, 12, 40])
def test_a_handler_that_never_works_is_called_few_times(batches: int, kind: ErrorKind) -> None:
    """However few items there are: no batch is halved for what befalls all of them."""
    answer: Answer = lambda now, items: kind  # noqa: E731
    report = Simulation(planned(range(10 * batches), 10), answer, give_up_after=20).run()
    check_records(report)
    assert report.hopeless or report.give_up
    assert len(report.calls) <= batches + 10


@pytest.mark.parametrize("alone", [SHAPE, None])
@pytest.mark.parametrize(("batch_size", "batches"), [(50, 1), (50, 2), (2, 3), (50, 200), (1, 200)])
def test_results_of_a_wrong_shape_are_one_error(
    batch_size: int, batches: int, alone: ErrorKind | None
) -> None:
    """Also where one item gets one row, as if that were right: the same row for each batch."""
    if batch_size == 1 and alone is None:
        return
    items = range(batch_size * batches)
    answer: Answer = lambda now, items: SHAPE if len(items) > 1 else alone  # noqa: E731
    report = Simulation(planned(items, batch_size), answer).run()
    check_records(report)
    assert report.done == []
    assert report.hopeless is not None
    assert report.hopeless.startswith("no result of the handler can be matched to its items")
    assert len(report.calls) <= 8 + 3


@often
@given(odd=st.integers(0, 99), batch_size=st.integers(2, 50))
def test_one_odd_item_on_the_first_call_is_no_wrong_shape(odd: int, batch_size: int) -> None:
    report = Simulation(planned(range(100), batch_size), bad_items({odd}, SHAPE)).run()
    assert report.is_done()
    assert report.failed == [odd]


def test_a_wrong_shape_and_then_an_outage_is_an_outage() -> None:
    def answer(now: float, items: Sequence[int]) -> ErrorKind | None:
        return SHAPE if 0 in items and now < 0.05 else DOWN if now < 20 else None

    report = Simulation(planned(range(1_000), 20), answer).run()
    assert report.is_done()
    assert report.failures == []


# --- with pause_after=None


@often
@given(bad=st.sets(st.integers(0, 79)), kind=st.sampled_from([BAD, PROGRAMMING, SHAPE, DOWN]))
def test_pause_after_none_handles_everything_whatever_fails(bad: set[int], kind: ErrorKind) -> None:
    report = Simulation(planned(range(80), 4), bad_items(bad, kind), pause_after=None).run()
    check_records(report)
    assert report.is_done()
    assert sorted(report.failed) == sorted(bad)
    assert report.seconds < 80 * 3 * 0.1
