"""What a service may do to its items: each is paid once, or as often as it was asked for."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import (
    Budget,
    BudgetUsedUp,
    Changes,
    DuplicateKey,
    Failing,
    Interrupted,
    JobFailed,
    NotAccepted,
    QueueFull,
    Undone,
    resumable_task,
    submitted,
)
from resumable_tasks.errors import BadResult, UsageError
from resumable_tasks.runners.submitted import life, runner
from tests.proof.submitted.child import be_quick
from tests.proof.submitted.service import Knobs, Service, value_of


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LEASE_SECONDS", "_FIRST_PAUSE", "_LAST_PAUSE", "_LONGEST_LOOK"):
        monkeypatch.setattr(life, name, getattr(life, name))
    be_quick()


class Bench:
    """A service in a folder, and runs of one job that submits to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def service(self, **knobs: Any) -> Service:
        return Service(self.folder / "service", Knobs(**knobs))

    def run(self, knobs: dict[str, Any], items: Any = 20, *, handler: Any = None, **options: Any):
        at_run = {
            name: options.pop(name) for name in ("wait", "budget", "on_unknown") if name in options
        }
        items = [{"id": key} for key in range(items)] if isinstance(items, int) else items
        job = resumable_task(
            self.service(**knobs) if handler is None else handler,
            **{"name": "trouble", "key": "id", "batch_size": 10, "concurrency": 2} | options,
        )
        return job.run(items, checkpoint=self.folder / "checkpoint", progress=False, **at_run)

    def paid(self, refuses: tuple[int, ...] = ()) -> Counter[int]:
        return self.service(refuses=refuses).paid()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def values(result: Any) -> dict[int, Any]:
    rows = result.table().to_pylist()
    found = {row["id"]: row["value"] for row in rows}
    assert len(found) == len(rows)
    return found


def once(count: int) -> Counter[int]:
    return Counter(range(count))


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"lose_each": 2},
        {"lost_before": 2},
        {"undone_each": 3},
        {"expires": 1},
        {"outage": (2, 6)},
        {"most_running": 1, "takes": 0.1},
        {"not_ready": 3},
        {"gone": 1},
        {"coroutines": True, "has": ("prepare", "find", "fence", "cancel"), "lose_each": 2},
        {"has": ("find",), "lag": 0.15, "lose_each": 1, "cannot_tell": True, "takes": 0.1},
        {"has": (), "idempotent_for": 60.0, "lose_each": 2},
    ],
    ids=lambda knobs: " ".join(map(str, knobs)) or "none",
)
def test_paid_once_whatever_happens(bench: Bench, knobs: dict[str, Any]) -> None:
    result = bench.run(knobs)
    assert values(result) == {key: value_of(key) for key in range(20)}
    assert bench.paid() == once(20)


def test_items_and_rows_of_arrow(bench: Bench) -> None:
    class OfArrow(Service):
        def collect(self, handle: Any) -> Any:
            return pa.Table.from_pylist(super().collect(handle).results)

    items = pa.table({"id": range(20)})
    handler = OfArrow(bench.folder / "service", Knobs(lose_each=2))
    assert values(bench.run({}, items, handler=handler)) == {n: value_of(n) for n in range(20)}
    assert bench.paid() == once(20)


def test_items_of_arrow_that_are_left_undone(bench: Bench) -> None:
    items = pa.table({"id": range(20)})
    with pytest.raises(KeyError):
        bench.run({"undone_each": 3, "bug": 1}, items)
    assert len(values(bench.run({"undone_each": 3}, items))) == 20
    assert bench.paid() == once(20)


def test_plain_functions(bench: Bench) -> None:
    it = bench.service(lose_each=2)
    handler = submitted(it.submit, it.poll, it.collect, find=it.find, patience=0.2)
    assert len(values(bench.run({}, handler=handler))) == 20
    assert bench.paid() == once(20)


def test_parameters_of_its_own_keep_their_defaults(bench: Bench) -> None:
    it, seen = bench.service(), []

    def submit(items: Any, token: str, model: str = "small") -> Any:
        seen.append(model)
        return it.submit(items, token)

    def collect(handle: Any, timeout: float = 60) -> Any:
        seen.append(timeout)
        return it.collect(handle)

    def find(token: str, limit: int = 100) -> Any:
        raise AssertionError("nothing is unknown")

    handler = submitted(submit, it.poll, collect, find=find)
    assert len(values(bench.run({}, 10, handler=handler))) == 10
    assert seen == ["small", 60]


def test_a_bug_in_collect_leaves_the_work_with_the_service(bench: Bench) -> None:
    with pytest.raises(KeyError, match="answer"):
        bench.run({"bug": 1})
    result = bench.run({})
    assert len(values(result)) == 20
    assert bench.paid() == once(20)


def test_a_changed_item_is_collected_as_it_was_and_redone_by_the_next_run(bench: Bench) -> None:
    def items(edition: int) -> list[dict[str, int]]:
        return [{"id": key, "edition": edition * (key == 3)} for key in range(20)]

    changes = Changes("edition")
    with pytest.raises(KeyError):
        bench.run({"bug": 1}, items(1), changes=changes, concurrency=1)
    before = bench.run({}, items(2), changes=changes)
    assert values(before)[3] == value_of(3) + 1000
    assert bench.paid() == once(20)
    after = bench.run({}, items(2), changes=changes)
    assert values(after)[3] == value_of(3) + 2000
    assert bench.paid() == once(20) + Counter([3])
    bench.run({}, items(2), changes=changes)
    assert bench.paid() == once(20) + Counter([3])


def test_a_bad_answer_is_asked_for_again_as_often_as_retries_say(bench: Bench) -> None:
    result = bench.run({"bad_once": (4, 13)}, retries=1)
    assert len(values(result)) == 20
    assert bench.paid() == once(20) + Counter([4, 13])


def test_a_bad_answer_fails_without_retries(bench: Bench) -> None:
    with pytest.raises(JobFailed) as failed:
        bench.run({"bad_once": (4,)})
    assert [(each.key, each.error) for each in failed.value.result.failures] == [(4, "BadResult")]
    assert bench.paid() == once(20)
    assert len(values(bench.run({"bad_once": (4,)}))) == 20
    assert bench.paid() == once(20) + Counter([4])


def test_a_refused_item_is_not_asked_for_again(bench: Bench) -> None:
    with pytest.raises(JobFailed) as failed:
        bench.run({"refuses": (4,)}, retries=3)
    (failure,) = failed.value.result.failures
    assert (failure.key, failure.error, failure.attempts) == (4, "ValueError", 1)
    assert len(bench.service().all()) == 2


def test_tolerated_failures(bench: Bench) -> None:
    result = bench.run({"refuses": (4,)}, tolerated_failures=1)
    assert len(values(result)) == 19


def test_an_item_that_fails_each_time_is_quarantined(bench: Bench) -> None:
    failing = Failing(max_attempts=2)
    for _ in range(2):
        with pytest.raises(JobFailed):
            bench.run({"refuses": (4,)}, failing=failing)
    assert bench.run({"refuses": (4,)}, failing=failing).quarantined == 1
    asked = Counter(item["id"] for each in bench.service().all() for item in each["items"])
    assert asked[4] == 2
    assert bench.paid((4,)) == once(20) - Counter([4])


def test_a_submission_that_is_refused_for_good_fails_its_items(bench: Bench) -> None:
    with pytest.raises(JobFailed) as failed:
        bench.run({"whole_refused": 2})
    assert len(failed.value.result.failures) == 10
    assert len(values(bench.run({}))) == 20
    assert bench.paid() == once(20)


def test_a_service_that_accepts_nothing_is_not_asked_for_ever(bench: Bench) -> None:
    with pytest.raises(Interrupted):
        bench.run({"never_accepts": True}, failing=Failing(give_up_after=0.5))
    assert not bench.service().all()
    assert len(values(bench.run({}))) == 20


def test_what_is_undone_each_time_ends_the_run(bench: Bench) -> None:
    class Never(Service):
        def collect(self, handle: Any) -> Any:
            rows = super().collect(handle).results
            return [row for row in rows if row["id"] != 5]

    handler = Never(bench.folder / "service", Knobs())
    with pytest.raises(Interrupted, match=r"undone|nothing"):
        bench.run({}, handler=handler)
    asked = Counter(item["id"] for each in bench.service().all() for item in each["items"])
    assert 2 <= asked[5] <= 4
    assert max(asked[key] for key in range(20) if key != 5) == 1


@pytest.mark.parametrize("mode", ["many", "none"])
@pytest.mark.parametrize("undone", [0, 3])
def test_other_modes_of_results(bench: Bench, mode: str, undone: int) -> None:
    result = bench.run({"mode": mode, "undone_each": undone}, results=mode)
    assert result.completed == 20
    if mode == "many":
        assert Counter(row["id"] for row in result.table().to_pylist()) == once(20) + once(20)
    assert bench.paid() == once(20)


def test_rows_that_do_not_fit_are_parked_and_not_paid_again(bench: Bench) -> None:
    with pytest.raises(JobFailed):
        bench.run({"odd_rows": (7, 15)})
    assert bench.paid() == once(20)
    with pytest.raises(JobFailed):
        bench.run({"odd_rows": (7, 15)})
    assert bench.paid() == once(20)


def test_an_item_that_comes_twice(bench: Bench) -> None:
    items = [{"id": key} for key in (*range(20), 3)]
    with pytest.raises(DuplicateKey):
        bench.run({}, items)
    assert not bench.service().all()
    bench.run({}, items, on_duplicate="skip")
    with pytest.raises(KeyError):
        bench.run({"bug": 3}, [{"id": key} for key in range(30)])
    bench.run({}, [{"id": key} for key in (*range(30), 25)], on_duplicate="skip")
    assert bench.paid() == once(30)


def test_a_budget_of_items(bench: Bench) -> None:
    with pytest.raises(BudgetUsedUp):
        bench.run({}, budget=Budget(items=12))
    assert sum(bench.paid().values()) == 12
    bench.run({})
    assert bench.paid() == once(20)


@pytest.mark.parametrize("wrong", [None, {1, 2}, object(), float("nan"), "x" * 70_000])
@pytest.mark.parametrize("method", ["submit", "prepare"])
def test_what_is_no_handle_ends_the_run_and_is_found(
    bench: Bench, method: str, wrong: object
) -> None:
    class Odd(Service):
        def submit(self, *given: Any) -> Any:
            made = super().submit(*given)
            return wrong if method == "submit" else made

        def prepare(self, *given: Any) -> Any:
            made = super().prepare(*given)
            return wrong if method == "prepare" else made

    knobs = {"has": ("prepare", "find", "fence")}
    with pytest.raises(UsageError, match=f"the value that {method} returned"):
        bench.run({}, handler=Odd(bench.folder / "service", Knobs(**knobs)))
    assert len(values(bench.run(knobs))) == 20
    assert bench.paid() == once(20)


def test_unknown_and_nothing_to_look_with_is_for_a_person_to_decide(bench: Bench) -> None:
    with pytest.raises(Interrupted, match="unknown"):
        bench.run({"has": (), "lose_each": 2})
    assert bench.paid() == once(20)
    with pytest.raises(Interrupted, match="attach"):
        bench.run({"has": ()})
    assert bench.paid() == once(20)
    assert len(values(bench.run({"has": ()}, on_unknown="resubmit"))) == 20
    assert max(bench.paid().values()) == 2


@pytest.mark.parametrize("later", [False, True])
def test_a_batch_that_is_many_times_larger_than_the_queue(bench: Bench, later: bool) -> None:
    """Each of its parts is a submission of its own, of which none has left anything undone."""

    class Small(Service):
        def submit(self, items: Any, *more: Any) -> Any:
            if len(items) > 2 and not later:
                raise QueueFull("the queue takes 2")
            return super().submit(items, *more)

        def collect(self, handle: Any) -> Any:
            if len(self._begun(handle["id"])["items"]) > 2:
                raise QueueFull("the queue takes 2")
            return super().collect(handle)

    handler = Small(bench.folder / "service", Knobs())
    assert len(values(bench.run({}, handler=handler, batch_size=20))) == 20


def test_the_halves_of_a_batch_that_failed_are_submissions_of_their_own(bench: Bench) -> None:
    class Strict(Service):
        def submit(self, items: Any, *more: Any) -> Any:
            if any(item["id"] == 13 for item in items):
                raise NotAccepted("one of them is bad")
            return super().submit(items, *more)

    handler = Strict(bench.folder / "service", Knobs())
    with pytest.raises(JobFailed) as failed:
        bench.run({}, handler=handler, batch_size=20, failing=Failing(isolate=True))
    assert failed.value.result is not None
    assert [each.key for each in failed.value.result.failures] == [13]
    assert failed.value.result.completed == 19
    assert bench.paid() == once(20) - Counter([13])


@pytest.mark.parametrize("again", [True, False])
def test_a_refusal_of_the_second_request_says_nothing_of_the_first(
    bench: Bench, again: bool
) -> None:
    """Its answer was lost, and the same token was refused then: the work may be at work."""

    class Throttles(Service):
        def submit(self, *given: Any) -> Any:
            before = len(self.calls("submit"))
            if before == 1:
                self._call("submit", given[1])
                raise NotAccepted("too many requests", again=again)
            handle = super().submit(*given)
            if before == 0:
                raise ConnectionError("lost on the way back")
            return handle

    handler = Throttles(bench.folder / "service", Knobs(has=(), idempotent_for=60.0))
    with nullcontext() if again else pytest.raises(Interrupted, match="attach"):
        bench.run({}, 10, handler=handler)
    assert len(values(bench.run({}, 10, handler=handler))) == 10
    assert bench.paid() == once(10)


def test_one_that_cannot_go_on_does_not_end_the_wait_for_the_others(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not after an hour either, though they take a day."""
    monkeypatch.setattr(runner, "_REST_SECONDS", 0.1)
    with pytest.raises(Interrupted, match="attach") as ended:
        bench.run({"has": (), "lose_each": 2, "takes": 1.5}, concurrency=2)
    assert ended.value.result is not None
    assert ended.value.result.completed == 10


def test_a_run_that_does_not_wait(bench: Bench) -> None:
    with pytest.raises(Interrupted, match="look again"):
        bench.run({"takes": 1.0}, wait=False)
    begun = len(bench.service().all())
    assert 1 <= begun <= 2
    assert len(values(bench.run({"takes": 0.1}))) == 20
    assert bench.paid() == once(20)


@pytest.mark.parametrize("key", [99, "no such"])
def test_undone_of_an_item_that_it_was_not_given(bench: Bench, key: Any) -> None:
    class Odd(Service):
        def collect(self, handle: Any) -> Any:
            return [*super().collect(handle).results, Undone(key)]

    with pytest.raises(BadResult, match=str(key)):
        bench.run({}, handler=Odd(bench.folder / "service", Knobs()))
    assert len(values(bench.run({}))) == 20
    assert bench.paid() == once(20)


def test_items_that_do_not_come_any_more_are_collected_all_the_same(bench: Bench) -> None:
    with pytest.raises(KeyError):
        bench.run({"bug": 1})
    sent = bench.paid()  # the second batch too, if it went out before the error came
    result = bench.run({}, [{"id": 100}])
    assert len(values(result)) == len(sent) + 1
    assert bench.paid() == sent + Counter([100])
    assert {*sent.values()} == {1}


def test_composite_keys(bench: Bench) -> None:
    class Pairs(Service):
        def rows(self, item: dict[str, Any]) -> list[dict[str, Any]]:
            undone = item["id"] == 3 and len(self.all()) == 1
            rows = [row | {"part": item["part"]} for row in super().rows(item)]
            return [Undone((3, "a"))] if undone else rows  # type: ignore[list-item]

    items = [{"id": key, "part": "a"} for key in range(20)]
    handler = Pairs(bench.folder / "service", Knobs(lose_each=2))
    result = bench.run({}, items, handler=handler, key=("id", "part"), concurrency=1)
    assert len(values(result)) == 20
    assert len(bench.service().all()) == 3
