"""The contract of a service of submitted work, as a pytest class to inherit from.

::

    class TestMyService(SubmittedSuite):
        def make_service(self, place):        # called as by several processes with one account
            return MyService(account=…)

        def make_items(self, count): return [{"id": n, "text": f"text {n}"} for n in range(count)]

        def count_started(self, place): ...   # the number of submissions begun, if known

Each test has its own ``place``, an empty folder, for services that live in one. The suite tests
those of `find`, `fence`, `prepare`, `cancel` and ``idempotent_for`` that the service has. It starts
real work: with a provider that charges, use few and short items.

For detailed failures, call ``pytest.register_assert_rewrite(...)`` before the import.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from resumable_tasks.base.token import token
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.submission import Submission
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.outcome import Done
from resumable_tasks.runners.retries import RetryPolicy
from resumable_tasks.runners.submitted.calls import Calls
from resumable_tasks.runners.submitted.check import as_json
from resumable_tasks.runners.submitted.kind import is_submitted
from resumable_tasks.runners.submitted.protocol import (
    CannotTell,
    Ended,
    NotAccepted,
    NotReady,
    Pending,
)
from resumable_tasks.runners.submitted.results import Answer, answer_of


class Bench:
    """One account with the service, and the submissions made there."""

    def __init__(self, suite: SubmittedSuite, place: Path) -> None:
        self.suite = suite
        self.place = place
        self._made: list[Calls] = []

    def another(self) -> Calls:
        """The service as seen by another process."""
        self._made.append(Calls(self.suite.make_service(self.place)))
        return self._made[-1]

    def started(self) -> int | None:
        return self.suite.count_started(self.place)

    def close(self) -> None:
        for calls in self._made:
            calls.close()


class Sent:
    """One submission, beginning with its token."""

    def __init__(self, bench: Bench, calls: Calls, count: int, first: int = 0) -> None:
        self.bench, self.calls = bench, calls
        self.token = token(8)
        self.items = bench.suite.make_items(first + count)[first:]
        found = bench.suite.keys_of(self.items)
        lines = keys.join(map(keys.canonical, found))
        self.batch = Batch(0, found, lines, self.items)
        self.prepared: Any = None
        self.handle: Any = None

    def prepare(self) -> Sent:
        if self.calls.has("prepare"):
            self.prepared = as_json("prepare", self.calls.call("prepare", self.items, self.token))
        return self

    def submit(self) -> Sent:
        returned = self.calls.call("submit", self.items, self.token, maybe=self.prepared)
        self.handle = as_json("submit", returned)
        return self

    def find(self, calls: Calls | None = None) -> Any:
        found = (calls or self.calls).call("find", self.token, maybe=self.prepared)
        return None if found is None else as_json("find", found)

    def find_in_time(self, calls: Calls | None = None) -> Any:
        """The result of `find` within the service's patience, or once a candidate has ended."""
        patience = self.calls.seconds("patience", self.bench.suite.seconds)
        end = time.monotonic() + patience + self.bench.suite.seconds
        while time.monotonic() < end:
            try:
                found = self.find(calls)
            except CannotTell:
                found = None
            if found is not None:
                return found
            time.sleep(self.bench.suite.pause)
        pytest.fail(f"find() does not find what was submitted within its patience of {patience} s")

    def wait(self, calls: Calls, handle: Any) -> None:
        end = time.monotonic() + self.bench.suite.seconds
        while time.monotonic() < end:
            try:
                state = calls.call("poll", handle)
            except NotReady:
                state = Pending("not known yet")
            assert isinstance(state, (Pending, Ended)), f"poll() returned {state!r}"
            if isinstance(state, Ended):
                return
            time.sleep(self.bench.suite.pause)
        pytest.fail(f"not ended within {self.bench.suite.seconds} s: give the suite more `seconds`")

    def collect(self, calls: Calls | None = None, handle: Any = None) -> Answer:
        """Wait for the end. Returns the results, matched to the items as in a run."""
        calls, handle = calls or self.calls, handle or self.handle
        self.wait(calls, handle)
        found = keys.parse_lines(self.batch.lines)
        submission = Submission(self.token, self.batch.lines, len(self.batch))
        end = time.monotonic() + self.bench.suite.seconds
        while True:
            try:
                return answer_of(
                    self.bench.suite.work,
                    self.batch,
                    submission,
                    lambda: calls.call("collect", handle, maybe=found),
                    1,
                )
            except NotReady as error:
                if time.monotonic() > end:
                    pytest.fail(f"collect() is never ready: {error}")
                time.sleep(self.bench.suite.pause)

    def check(self, answer: Answer) -> Done:
        """Check that all items are answered."""
        done = answer.done
        answered = Counter(keys.split(done.done))
        failed = {keys.canonical(failure.key) for failure in done.failures}
        wanted = Counter(keys.split(self.batch.lines))
        assert not answer.again, f"{len(answer.again)} items were left undone: {answer.why}"
        assert not failed, f"items have failed: {done.failures[0].message}"
        assert answered == wanted, "collect() returned results of other items"
        return done


class SubmittedSuite:
    """The contract of `resumable_tasks.Submitted`."""

    seconds: ClassVar[float] = 60.0
    """The longest wait for the work, or for a result that is not ready."""
    pause: ClassVar[float] = 0.02
    """Seconds between two looks."""
    count: ClassVar[int] = 5
    """Items of one submission."""
    key: ClassVar[Any] = "id"
    results: ClassVar[Any] = "one"

    def make_service(self, place: Path) -> Any:
        raise NotImplementedError

    def make_items(self, count: int) -> list[Any]:
        """The first ``count`` items: always the same ones, which the service handles well."""
        return [{"id": number} for number in range(count)]

    def count_started(self, place: Path) -> int | None:
        """The number of submissions that the service has begun; None if unknown."""
        return None

    def keys_of(self, items: list[Any]) -> list[Any]:
        return KeyScheme(self.key).extract_all(items)

    @property
    def work(self) -> Work:
        return Work(lambda items: items, KeyScheme(self.key), self.results, RetryPolicy(0))

    @pytest.fixture
    def bench(self, tmp_path: Path) -> Iterator[Bench]:
        made = Bench(self, tmp_path)
        yield made
        made.close()

    def test_it_is_submitted_work(self, bench: Bench) -> None:
        assert is_submitted(bench.another().service)

    def test_every_item_is_answered_under_its_key(self, bench: Bench) -> None:
        sent = Sent(bench, bench.another(), self.count).prepare().submit()
        sent.check(sent.collect())

    def test_a_single_item_is_answered(self, bench: Bench) -> None:
        sent = Sent(bench, bench.another(), 1).prepare().submit()
        sent.check(sent.collect())

    def test_another_process_collects_by_what_the_journal_has(self, bench: Bench) -> None:
        sent = Sent(bench, bench.another(), self.count).prepare().submit()
        sent.check(sent.collect(bench.another()))

    def test_the_results_can_be_collected_again(self, bench: Bench) -> None:
        sent = Sent(bench, bench.another(), self.count).prepare().submit()
        first, second = (sent.check(sent.collect()) for _ in range(2))
        assert _rows(first) == _rows(second), "the second collect() returned other results"

    def test_two_submissions_are_kept_apart(self, bench: Bench) -> None:
        calls = bench.another()
        first = Sent(bench, calls, self.count).prepare().submit()
        second = Sent(bench, calls, self.count, first=self.count).prepare().submit()
        second.check(second.collect())
        first.check(first.collect())

    def test_one_submit_begins_one_submission(self, bench: Bench) -> None:
        before = self._counted(bench)
        sent = Sent(bench, bench.another(), self.count).prepare()
        assert bench.started() == before, "prepare() has begun the work"
        sent.submit()
        sent.collect()
        assert bench.started() == before + 1

    def test_what_was_submitted_is_found_under_its_token(self, bench: Bench) -> None:
        self._needs(bench, "find")
        sent = Sent(bench, bench.another(), self.count).prepare().submit()
        other = bench.another()
        sent.check(sent.collect(other, sent.find_in_time(other)))

    def test_each_submission_is_found_under_its_own_token(self, bench: Bench) -> None:
        self._needs(bench, "find")
        calls = bench.another()
        first = Sent(bench, calls, self.count).prepare().submit()
        second = Sent(bench, calls, self.count, first=self.count).prepare().submit()
        for sent in (first, second):
            sent.check(sent.collect(calls, sent.find_in_time()))

    def test_nothing_is_found_before_it_was_submitted(self, bench: Bench) -> None:
        self._needs(bench, "find")
        calls = bench.another()
        other = Sent(bench, calls, self.count).prepare().submit()
        other.collect()  # wait for the end, so that nothing stays open
        sent = Sent(bench, calls, self.count).prepare()
        assert sent.find() is None, "find() found what was never submitted"
        assert sent.find(bench.another()) is None, "find() found what was never submitted"

    def test_what_was_fenced_does_not_begin_any_more(self, bench: Bench) -> None:
        self._needs(bench, "fence")
        sent = Sent(bench, bench.another(), self.count).prepare()
        before, other = bench.started(), bench.another()
        other.call("fence", sent.token, maybe=sent.prepared)
        other.call("fence", sent.token, maybe=sent.prepared)  # a process that died fences again
        refused = None
        try:
            sent.submit()
        except Exception as error:  # noqa: BLE001 - whichever
            refused = error
        assert refused is not None, "submit() was accepted after the fence"
        assert bench.started() == before, "submit() began after the fence"
        if other.has("find"):
            patience = other.seconds("patience", 0.0)
            time.sleep(min(patience, self.seconds))
            assert sent.find(other) is None, "submit() began after the fence"

    def test_a_fence_does_not_lose_what_has_begun(self, bench: Bench) -> None:
        self._needs(bench, "fence")
        sent = Sent(bench, bench.another(), self.count).prepare().submit()
        other = bench.another()
        other.call("fence", sent.token, maybe=sent.prepared)
        try:
            answer = sent.collect(other)
        except NotAccepted:
            return  # and nothing is charged
        if not answer.again:
            sent.check(answer)

    def test_a_token_begins_nothing_twice(self, bench: Bench) -> None:
        calls = bench.another()
        if not calls.idempotent_for:
            pytest.skip("the service has no idempotent_for")
        before = self._counted(bench)
        sent = Sent(bench, calls, self.count).prepare().submit()
        sent.calls = bench.another()
        sent.submit()
        assert bench.started() == before + 1, "the same token began its work twice"
        sent.check(sent.collect())

    def test_what_is_cancelled_ends(self, bench: Bench) -> None:
        self._needs(bench, "cancel")
        sent = Sent(bench, bench.another(), self.count).prepare().submit()
        sent.calls.call("cancel", sent.handle)
        sent.calls.call("cancel", sent.handle)  # a process that died cancels again
        try:
            sent.collect()
        except NotAccepted:
            return

    def test_a_run_whose_answers_are_lost_pays_once(self, bench: Bench, tmp_path: Path) -> None:
        before = self._counted(bench)
        if not (bench.another().has("find") or bench.another().idempotent_for):
            pytest.skip("the service has neither find nor idempotent_for")
        self._run(bench, tmp_path, _losing(self.make_service(tmp_path), ConnectionError))
        assert bench.started() == before + 2

    def test_a_run_that_dies_with_an_answer_pays_once(self, bench: Bench, tmp_path: Path) -> None:
        before = self._counted(bench)
        if not (bench.another().has("find") or bench.another().idempotent_for):
            pytest.skip("the service has neither find nor idempotent_for")
        with pytest.raises(_Died):
            self._run(bench, tmp_path, _losing(self.make_service(tmp_path), _Died))
        self._run(bench, tmp_path, self.make_service(tmp_path))
        assert bench.started() == before + 2

    def _run(self, bench: Bench, place: Path, service: Any) -> None:
        from resumable_tasks import resumable_task

        job = resumable_task(
            service,
            name="suite",
            key=self.key,
            batch_size=self.count,
            concurrency=1,
            results=self.results,
        )
        items = self.make_items(2 * self.count)
        result = job.run(items, checkpoint=place / "checkpoint-of-the-suite", progress=False)
        assert result.total == len(items)

    def _counted(self, bench: Bench) -> int:
        before = bench.started()
        if before is None:
            pytest.skip("count_started() does not say what the service has begun")
        return before

    def _needs(self, bench: Bench, method: str) -> None:
        if not bench.another().has(method):
            pytest.skip(f"the service has no {method}")


class _Died(BaseException):
    """Stands for the death of a process."""


def _losing(service: Any, error: type[BaseException]) -> Any:
    """The service, but its first answer to `submit` is lost."""
    submit: Callable[..., Any] = service.submit
    calls = Calls(service)
    lost: list[bool] = []

    def losing(items: Any, made: str, prepared: Any = None) -> Any:
        handle = calls.call("submit", items, made, maybe=prepared)
        if not lost:
            lost.append(True)
            raise error("the answer is lost")
        return handle

    calls.service = SimpleNamespace(submit=submit)
    service.submit = losing
    return service


def _rows(done: Done) -> list[Any]:
    rows = done.rows if done.rows is not None else done.table and done.table.to_pylist()
    return sorted(map(repr, rows or ()))
