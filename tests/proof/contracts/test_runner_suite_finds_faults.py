"""The suite of runners is worth something: each of these breaks one promise, and is found."""

from __future__ import annotations

import threading
from contextvars import Context
from dataclasses import replace
from pathlib import Path

import pytest

from resumable_tasks.runners import handle
from resumable_tasks.runners.handle import execute
from resumable_tasks.runners.outcome import Done, Dropped, Failed, Fatal, Times
from resumable_tasks.runners.threads import ThreadRunner
from resumable_tasks.testing import runner_suite
from resumable_tasks.testing.runner_suite import Bench, RunnerSuite

FOUND = (AssertionError, pytest.fail.Exception)


class ComesBackTwice(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, lambda outcome: (done(outcome), done(outcome)), stopping)


class LosesWhatFails(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, lambda o: done(o) if not isinstance(o, Failed) else None, stopping)


class LosesWhatIsDropped(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, lambda o: done(o) if not isinstance(o, Dropped) else None, stopping)


class OneTooMany(ThreadRunner):
    def __init__(self, concurrency):
        super().__init__(concurrency + 1)


class OneAtATime(ThreadRunner):
    def __init__(self, concurrency):
        super().__init__(1)


class LastFirst(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, done, stopping)
        self._waiting = []

    def submit(self, batch):
        self._waiting.append(batch)
        if len(self._waiting) == 10:
            while self._waiting:
                super().submit(self._waiting.pop())


class SubmitWaits(ThreadRunner):
    def submit(self, batch):
        self._done(self._context.copy().run(execute, self._work, batch))


class GoesOnWhenStopping(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, done, threading.Event())


class ForgetsWhoseRowsTheyAre(ThreadRunner):
    def start(self, work, done, stopping):
        self._first = None

        def mixed(outcome):
            self._first = self._first or outcome
            done(replace(outcome, unwritten=self._first.table))

        super().start(work, mixed, stopping)


class FailsTheNeighbours(ThreadRunner):
    def start(self, work, done, stopping):
        failures, kinds = [], []

        def all_fail(outcome):
            failures.extend(outcome.failures)
            kinds.extend([outcome.error] if isinstance(outcome, Failed) else [])
            done(Failed(outcome.batch, kinds[0], tuple(failures)) if kinds else outcome)

        super().start(work, all_fail, stopping)


class TriesOnce(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(replace(work, retry=runner_suite.AtOnce(0)), done, stopping)


class TriesForever(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(replace(work, retry=runner_suite.AtOnce(3)), done, stopping)


class SwallowsExits(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, lambda o: done(Done(o.batch) if isinstance(o, Fatal) else o), stopping)


class ForgetsTheCalls(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, lambda o: done(replace(o, times=Times())), stopping)


class HidesTheBatch(ThreadRunner):
    def start(self, work, done, stopping):
        def handler(items):
            handle.current.set((replace(handle.current.get()[0], lines=b""), 1))
            return work.handler(items)

        super().start(replace(work, handler=handler), done, stopping)


class SeesNothing(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, done, stopping)
        self._context = Context()


class SharesOneContext(ThreadRunner):
    def start(self, work, done, stopping):
        super().start(work, done, stopping)
        context, lock = self._context, threading.Lock()

        class Shared:
            def copy(self):
                return self

            def run(self, *call, **more):
                with lock:
                    return context.run(*call, **more)

        self._context = Shared()


class NeverAbandons(ThreadRunner):
    def close(self, *, abandon):
        self._queue.put(None)
        for thread in self._threads:
            thread.join(3)


class MatchesNothing(ThreadRunner):
    def start(self, work, done, stopping):
        def unmatched(outcome):
            if isinstance(outcome, Failed):
                outcome = Done(outcome.batch, outcome.batch.lines, 1)
            done(outcome)

        super().start(work, unmatched, stopping)


CONTEXT = "handlers_see_the_context_variables_of_the_driver_and_change_only_their_own"
CASES = [
    (ComesBackTwice, "every_batch_comes_back_once_with_its_rows"),
    (ForgetsWhoseRowsTheyAre, "every_batch_comes_back_once_with_its_rows"),
    (LosesWhatFails, "an_exception_becomes_the_failure_of_its_batch_alone"),
    (FailsTheNeighbours, "an_exception_becomes_the_failure_of_its_batch_alone"),
    (LosesWhatIsDropped, "once_it_is_stopping_nothing_is_started_and_all_come_back"),
    (LosesWhatIsDropped, "however_many_wait_they_all_come_back_when_it_is_stopping"),
    (GoesOnWhenStopping, "once_it_is_stopping_nothing_is_started_and_all_come_back"),
    (OneTooMany, "never_more_batches_run_at_once"),
    (OneTooMany, "one_at_a_time_means_in_their_order"),
    (OneAtATime, "as_many_batches_run_at_once_as_were_asked_for"),
    (LastFirst, "one_at_a_time_means_in_their_order"),
    (SubmitWaits, "submit_does_not_wait"),
    (MatchesNothing, "a_result_that_does_not_match_becomes_a_failure"),
    (SwallowsExits, "what_is_no_plain_exception_comes_back_too", "interrupt"),
    (TriesOnce, "a_batch_is_tried_again_as_often_as_was_asked_for"),
    (TriesForever, "a_batch_is_tried_again_as_often_as_was_asked_for"),
    (ForgetsTheCalls, "a_batch_is_tried_again_as_often_as_was_asked_for"),
    (HidesTheBatch, "handlers_know_their_batch"),
    (SeesNothing, CONTEXT),
    (
        SharesOneContext,
        "handlers_see_the_context_variables_of_the_driver_and_change_only_their_own",
    ),
    (NeverAbandons, "abandoning_does_not_wait_for_a_handler_that_hangs"),
]


@pytest.mark.parametrize(
    ("kind", "test", "arguments"),
    [pytest.param(k, t, a, id=f"{k.__name__}-{n}") for n, (k, t, *a) in enumerate(CASES)],
)
def test_the_suite_finds(kind, test, arguments, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(runner_suite, "PATIENCE", 1.0)
    made = []

    class Suite(RunnerSuite):
        def make_runner(self, concurrency):
            return kind(concurrency)

    def bench(concurrency=2, **work):
        made.append(Bench(Suite(), tmp_path, concurrency, **work))
        return made[-1]

    try:
        with pytest.raises(FOUND):
            getattr(Suite(), f"test_{test}")(bench, *arguments)
    finally:
        for each in made:
            each.stopping.set()
            each.go()
            each.close()
