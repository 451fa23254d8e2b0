"""A user's first hours: what is wrong is told before anything is sent, or paid for twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Collected,
    Ended,
    Interrupted,
    ItemFailure,
    SqlCheckpoint,
    Undone,
    UsageError,
    resumable_task,
    submitted,
)
from resumable_tasks.errors import BadResult, InvalidItems, JobFailed, Waiting
from resumable_tasks.runners.submitted import life
from tests.submitted.service import FileService, items


class Mine(FileService):
    """Has what it was given at once."""


def run(service: Any, place: Path, **options: Any) -> Any:
    given = {name: options.pop(name) for name in ("wait", "budget") if name in options}
    job = resumable_task(service, **{"name": "job", "key": "id", "batch_size": 2} | options)
    return job.run(items(3), checkpoint=place, **given)


def mine(home: Path, **methods: Any) -> FileService:
    return type("Mine", (FileService,), methods)(home)


def costing(cost: Any) -> Any:
    return lambda self, handle: Collected(FileService.collect(self, handle), cost)


class OnlySubmits:
    def submit(self, items: Any, token: str) -> Any: ...

    def poll(self, handle: Any) -> Any: ...


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        (
            Mine,
            r"with submit, poll and collect, but Mine is a class\. Create an object: .*\(Mine\(…\)",
        ),
        (OnlySubmits(), r"OnlySubmits has submit but no collect.*Give it poll\(handle\)"),
    ],
)
def test_what_is_no_service_is_refused_where_the_job_is_made(handler: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resumable_task(handler, name="job", key="id")
    with pytest.raises(UsageError, match=message):
        resumable_task(name="job", key="id")(handler)


def test_a_service_has_no_name(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"a job made from Mine\(…\) has no default name.*Give name="
    ):
        resumable_task(Mine(tmp_path), key="id")


def test_functions_are_functions(tmp_path: Path) -> None:
    service = Mine(tmp_path)
    with pytest.raises(UsageError, match="collect=None, which is not a function"):
        submitted(service.submit, service.poll, None)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"no parameter 'finds'.*by name prepare, find"):
        submitted(service.submit, service.poll, service.collect, finds=service.find)


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        (
            {"submit": lambda self, items: 1},
            {},
            r"Mine\.submit\(items\) cannot be called with \(items, token\).*Write it as",
        ),
        ({"collect": lambda self: 1}, {}, r"Mine\.collect\(\) cannot be called with \(handle\)"),
        ({"find": lambda self: 1}, {}, r"Mine\.find\(\) cannot be called with \(token\)"),
        ({"price": lambda self: 1}, {}, r"Mine\.price\(\) cannot be called with \(items\)"),
        ({"max_items": 1}, {}, r"max_items=1 items.*batch_size is 2\. Give batch_size=1 or less"),
        ({"max_items": "1"}, {}, r"Mine\.max_items='1' is not a whole number"),
        ({"idempotent_for": "1h"}, {}, r"Mine\.idempotent_for='1h' is not a number of seconds"),
        (
            {"cancel": None},
            {"timeout": 5},
            r"timeout=5 needs to cancel.*Mine has no cancel\(handle\)",
        ),
        ({}, {"runner": "processes"}, "in the driver's own threads.*Leave runner= out"),
        ({}, {"concurrency": "adaptive"}, "fixed number.*give concurrency= a number"),
        ({}, {"runner": "local"}, r"Mine has no __call__\(items\).*Leave runner= out"),
        ({}, {"wait": "nonsense"}, 'neither True, False, "reschedule" nor a number of seconds'),
        ({}, {"wait": -1}, 'neither True, False, "reschedule" nor a number of seconds'),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_sent(
    methods: Any, options: Any, message: str, place: Path, tmp_path: Path
) -> None:
    service = mine(tmp_path / "s", **methods)
    with pytest.raises(UsageError, match=message):
        run(service, place, **options)
    assert not service.submissions
    assert not place.exists()


def test_a_table_keeps_no_submissions(tmp_path: Path) -> None:
    table = SqlCheckpoint(f"sqlite:///{tmp_path / 'x.db'}", table="items", key="id")
    job = resumable_task(Mine(tmp_path / "s"), name="job", key="id")
    with pytest.raises(UsageError, match=r"checkpoint that keeps track of the submissions\. Use"):
        job.run(checkpoint=table)


def test_another_handler_does_not_take_what_is_out(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Waiting):
        run(FileService(tmp_path / "s", takes=None), place, wait=False)
    with pytest.raises(UsageError, match=r"a service has 2 submissions.*resumable submissions"):
        run(lambda rows: rows, place)


@pytest.mark.parametrize(
    ("methods", "error", "message"),
    [
        ({"poll": lambda self, handle: None}, UsageError, "poll returned None, neither Pending"),
        ({"poll": lambda self, handle: "ok"}, UsageError, "poll returned 'ok', neither Pending"),
        ({"poll": lambda self, handle: Ended}, UsageError, r"neither Pending\(\) nor Ended\(\)"),
        (
            {"collect": lambda self, handle: [{"v": 1}] * len(self._told(handle)["ids"])},
            BadResult,
            "rows that collect returned have no key column 'id'",
        ),
        ({"collect": lambda self, handle: None}, BadResult, "returned None"),
        ({"collect": lambda self, handle: [{"id": 9}]}, BadResult, "key 9, which is not in"),
        (
            {"collect": lambda self, h: [*FileService.collect(self, h)[1:], {"id": 9, "v": 1}]},
            BadResult,
            r"key 9, which is not in.*stay with the service\. Fix collect and run again",
        ),
        (
            {"collect": lambda self, h: FileService.collect(self, h) * 2},
            BadResult,
            "rows 0 and . of .* have the same key",
        ),
        (
            {"collect": lambda self, h: [ItemFailure(0, "no"), *FileService.collect(self, h)]},
            BadResult,
            "a row and an ItemFailure for key 0",
        ),
        ({"collect": lambda self, handle: Ended()}, BadResult, "returned Ended"),
        ({"collect": costing(-1)}, UsageError, r"Collected\(…, cost=-1\).*a number from 0"),
        ({"collect": costing(float("nan"))}, UsageError, r"cost=nan\), which is not a cost"),
        ({"collect": costing("0.1")}, UsageError, r"cost='0.1'\), which is not a cost"),
        (
            {"submit": lambda self, items, token: None},
            UsageError,
            "the value that submit returned is None",
        ),
        ({"submit": lambda self, items, token: {1}}, UsageError, "is not JSON"),
    ],
)
def test_a_mistake_is_mended_and_what_was_paid_is_collected(
    methods: Any, error: type[Exception], message: str, place: Path, tmp_path: Path
) -> None:
    """Nothing is guessed and nothing is thrown away, so the next run pays nothing twice."""
    if "submit" in methods:
        returned = methods["submit"](None, None, None)
        methods = {"submit": lambda self, i, t: (FileService.submit(self, i, t), returned)[1]}
    with pytest.raises(error, match=message):
        run(mine(tmp_path / "s", **methods), place, concurrency=1)
    mended = Mine(tmp_path / "s")
    assert run(mended, place).table().num_rows == 3
    assert mended.paid == {0: 1, 1: 1, 2: 1}


@pytest.mark.parametrize("some_are_done", [False, True])
def test_keys_of_another_type_are_not_submitted_again(
    some_are_done: bool, place: Path, tmp_path: Path
) -> None:
    """Read as JSON and then as CSV, all are new to the library, and not to the service."""
    service = FileService(tmp_path / "s", takes=0.0 if some_are_done else None)
    if some_are_done:
        run(service, place)
        service.takes = None
    job = resumable_task(service, name="job", key="id", batch_size=2)
    with pytest.raises(Waiting):
        job.run(items(9), checkpoint=place, wait=False)
    before = service.paid
    with pytest.raises(
        InvalidItems,
        match=r'changed their type: an item now has key "\d", but .* is (with a|completed)',
    ):
        job.run([{"id": str(n)} for n in range(9)], checkpoint=place, wait=False)
    assert service.paid == before
    with pytest.raises(Waiting):  # others are welcome
        job.run([{"id": "new"}, *items(9)], checkpoint=place, wait=False)


def test_a_collect_that_returns_nothing_at_all_throws_nothing_away(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "_NOT_READY_SECONDS", 0.0)
    with pytest.raises(Interrupted, match=r"collect returned nothing at all for 2 items.*withdraw"):
        run(mine(tmp_path / "s", collect=lambda self, handle: []), place, concurrency=1)
    mended = Mine(tmp_path / "s")
    assert run(mended, place).table().num_rows == 3
    assert mended.paid == {0: 1, 1: 1, 2: 1}


def test_a_row_counts_more_than_that_it_was_not_done(place: Path, tmp_path: Path) -> None:
    def collect(self: Any, handle: Any) -> Any:
        return [Undone(0), Undone(1), *FileService.collect(self, handle)]

    service = mine(tmp_path / "s", collect=collect)
    assert run(service, place, batch_size=3).completed == 3
    assert service.paid == {0: 1, 1: 1, 2: 1}


def test_one_item_with_two_rows_is_kept_apart(place: Path, tmp_path: Path) -> None:
    def collect(self: Any, handle: Any) -> Any:
        rows = FileService.collect(self, handle)
        return [*rows, rows[0]]

    service = mine(tmp_path / "s", collect=collect)
    with pytest.raises(JobFailed) as failed:
        run(service, place, batch_size=3)
    assert failed.value.result is not None
    assert failed.value.result.completed == 2
    assert service.paid == {0: 1, 1: 1, 2: 1}
