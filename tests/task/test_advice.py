"""What is advised, and that a run says where it is not heeded."""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import Changes, UsageError, advise, resumable_task
from resumable_tasks.cli import main
from resumable_tasks.engine import watch, window
from resumable_tasks.engine.events import Committed, Event
from resumable_tasks.engine.watch import LongBatches
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.outcome import Done, Times
from resumable_tasks.task import advice
from resumable_tasks.task.advice import Advice, Loss


@pytest.mark.parametrize(
    ("items", "seconds", "options", "wanted"),
    [
        (20, 5, {}, True),
        (19, 5, {}, False),
        (20, 4.9, {}, False),
        (600, 1, {}, True),
        (599, 1, {}, False),
        (1, 600, {}, True),
        (5, 1, {"external_api": True}, True),
        (5, 1, {"cost_per_item": 0.001}, True),
        (5, 1, {"idempotent": False}, True),
        (0, 1, {"external_api": True, "idempotent": False}, False),
    ],
)
def test_when_a_checkpoint_is_worth_it(
    items: int, seconds: float, options: dict[str, Any], wanted: bool
) -> None:
    found = advise(items, seconds, **options)
    assert found.checkpoint is wanted
    assert ("keep a checkpoint" in str(found)) is wanted
    assert found.reasons


@pytest.mark.parametrize(
    ("options", "form", "says"),
    [
        ({}, "journal", "append-only journal"),
        ({"in_table": True}, "column", "in the same transaction"),
        ({"structure": True}, "snapshot", "a Snapshot"),
    ],
)
def test_which_form(options: dict[str, Any], form: str, says: str) -> None:
    found = advise(681, 6, **options)
    assert found.form == form
    assert says in str(found)


@pytest.mark.parametrize("seconds", [0.0001, 0.003, 0.1, 6.0, 100.0])
@pytest.mark.parametrize("concurrency", [1, 4, 32])
@pytest.mark.parametrize("structure", [False, True])
def test_the_overhead_is_under_a_hundredth_and_no_smaller_batch_keeps_it_so(
    seconds: float, concurrency: int, structure: bool
) -> None:
    found = advise(10_000_000, seconds, concurrency=concurrency, structure=structure)
    at_once = 1 if structure else concurrency

    def overhead(size: int) -> float:
        return advice.COMMIT_SECONDS * at_once / (size * seconds)

    assert found.overhead == pytest.approx(overhead(found.batch_size))
    assert found.overhead < 0.01
    assert found.batch_size == 1 or overhead(found.batch_size - 1) >= 0.01 - 1e-12
    assert found.commit_seconds == pytest.approx(found.batch_size * seconds / at_once)


def test_what_a_crash_costs() -> None:
    found = advise(1_000, 0.05, concurrency=4, cost_per_item=2.0)
    assert found.batch_size == 25
    assert found.without == (Loss(1000, 50.0, 2000.0), Loss(500, 25.0, 1000.0))
    worst, average = found.with_checkpoint
    assert worst.items == 2 * 4 * 25, "as many batches as a run has out"
    assert average.items == 4 * 25 / 2
    assert worst.cost == worst.items * 2
    few = advise(10, 0.05)
    assert few.with_checkpoint[0].items <= 10


def test_the_loss_stays_under_what_is_allowed() -> None:
    for allowed in (800.0, 100.0, 16.0):
        found = advise(100_000, 0.01, cost_per_item=1.0, max_loss=allowed)
        assert found.with_checkpoint[0].cost <= allowed
        assert found.batch_size == int(allowed / 8)
        assert "requires smaller batches" in str(found)
        assert "commits take more than 1 %" in str(found)
    assert advise(100_000, 0.01, cost_per_item=1.0, max_loss=968.0).notes == ()
    assert "lower the concurrency" in str(advise(100, 60, max_loss=100))
    alone = str(advise(100, 60, max_loss=100, concurrency=1))
    assert "lower the concurrency" not in alone, "there is no lower one"
    assert "make the items themselves smaller" in alone
    assert advise(100, 60, max_loss=480).notes == ()
    assert advise(100_000, 0.01, max_loss=1.0).with_checkpoint[0].seconds <= 1.0


def test_what_calls_the_outside_is_told_of_keys() -> None:
    assert "idempotency keys" in str(advise(681, 6, external_api=True))
    assert "idempotency keys" in str(advise(681, 6, idempotent=False))
    assert "idempotency keys" not in str(advise(681, 6))


@pytest.mark.parametrize("seconds", [0.0, 1e-320, 1e-6, 1e-4, 0.002, 0.1])
@pytest.mark.parametrize("concurrency", [1, 4, 500])
def test_the_loss_counts_all_that_a_run_may_have_out(seconds: float, concurrency: int) -> None:
    for allowed in (None, 300.0, 5_000.0, 100_000.0):
        found = advise(
            10_000_000, seconds, cost_per_item=1.0, concurrency=concurrency, max_loss=allowed
        )
        quick = concurrency * window.OUT_SECONDS / max(found.batch_size * seconds, 1e-9)
        out = max(2 * concurrency, int(min(window.MOST_BATCHES_OUT, quick)))
        lost = min(10_000_000, out * found.batch_size)
        assert lost <= found.with_checkpoint[0].items
        if allowed is not None and "even batches of one item" not in str(found):
            assert found.with_checkpoint[0].cost <= allowed * (1 + 1e-9)


def test_what_cannot_be_is_said() -> None:
    tiny = advise(10, 0.0001)
    assert tiny.overhead > 1
    assert "commits take more than 1 %" in str(tiny)
    one = advise(1, 3_600, concurrency=8)
    assert one.commit_seconds == 3_600
    assert "one item cannot be divided" in str(one)
    assert "  1 item, 1 h of work; 0.5 items, 30 min of work" in str(one)
    assert "a commit about every 1 h" in str(one)
    assert "one item cannot be divided" not in str(advise(1, 3_600, structure=True))
    few = advise(3, 60, concurrency=8, max_loss=360)
    assert (few.commit_seconds, few.notes) == (20.0, ())
    assert "if one call can take several items" in str(advise(681, 6, external_api=True))
    assert "if one call can take several items" not in str(advise(681, 6))
    assert not advise(0, 5, external_api=True, idempotent=False).checkpoint


@pytest.mark.parametrize("name", ["items", "seconds_per_item", "cost_per_item", "max_loss"])
@pytest.mark.parametrize("power", [-320, 18, 400, 5_000])
def test_numbers_of_any_size_are_answered(name: str, power: int) -> None:
    value: Any = 10**power if power > 0 else 1e-320
    given = {"items": 10, "seconds_per_item": 1.0, "max_loss": 3, name: value}
    if power > 18 or (name == "items" and power < 0):
        with pytest.raises(UsageError, match=name):
            advise(**given)
    else:
        assert str(advise(**given))


@pytest.mark.parametrize(
    "wrong",
    [
        {"items": -1},
        {"items": 1.5},
        {"seconds_per_item": -1},
        {"seconds_per_item": math.nan},
        {"cost_per_item": math.inf},
        {"concurrency": 0},
        {"max_loss": 0},
        {"in_table": True, "structure": True},
    ],
)
def test_numbers_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        advise(**{"items": 10, "seconds_per_item": 1.0, **wrong})


def test_items_that_take_no_time_are_one_batch_each_worker() -> None:
    assert advise(100, 0).batch_size == 25
    assert str(advise(0, 0))


def test_the_command_says_the_same() -> None:
    given = ["advise", "--items", "681", "--seconds-per-item", "6", "--external-api"]
    text = CliRunner().invoke(main, given, catch_exceptions=False)
    assert (text.exit_code, text.stdout) == (0, f"{advise(681, 6, external_api=True)}\n")
    others = ["--not-idempotent", "--structure", "--cost-per-item", "2", "--max-loss", "50"]
    found = CliRunner().invoke(main, [*given, *others, "--concurrency", "2", "--json"])
    wanted = advise(
        681,
        6,
        external_api=True,
        idempotent=False,
        structure=True,
        cost_per_item=2.0,
        max_loss=50,
        concurrency=2,
    )
    assert isinstance(wanted, Advice)
    document = json.loads(found.stdout)
    assert document["reasons"] == list(wanted.reasons)
    assert document["batch_size"] == wanted.batch_size
    assert document["without"][0] == {"items": 681, "seconds": 4086.0, "cost": 1362.0}
    refused = CliRunner().invoke(main, [*given, "--in-table", "--structure"])
    assert refused.exit_code == 2


def outcome(items: int, seconds: float) -> Done:
    batch = Batch(3, list(range(items)), b"", list(range(items)))
    return Done(batch, times=Times(10 * seconds, 1_000.0, 1_000.0 + seconds, 1))


def test_a_batch_of_hours_is_warned_of_once_with_what_would_fit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watch = LongBatches()
    watch.look([outcome(50, 1_800), outcome(1, 1_000_000)])
    assert caplog.text == ""
    watch.look([outcome(50, 3_000), outcome(50, 3_000)])
    watch.look([outcome(50, 3_000)])
    (record,) = caplog.records
    assert "batch 3 took 50 min for 50 items" in record.getMessage()
    assert "batch_size=5 would" in record.getMessage()


def test_a_run_warns_of_a_batch_that_took_too_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(watch, "LONG_BATCH_SECONDS", 1e-9)
    monkeypatch.setattr(watch, "GOOD_BATCH_SECONDS", 0.0)
    task = resumable_task(lambda items: None, name="job", results="none", batch_size=5)
    task.run(range(20), checkpoint=tmp_path / "c")
    assert caplog.text.count("batch_size=1 would") == 1


@pytest.mark.parametrize(("batch_size", "items", "said"), [(5, 5, 1), (1, 5, 0), (50, 1, 0)])
def test_a_run_warns_while_its_first_batches_take_too_long(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    batch_size: int,
    items: int,
    said: int,
) -> None:
    """But not where there is nothing to divide."""
    monkeypatch.setattr(watch, "LONG_BATCH_SECONDS", 0.05)

    def job(items: list[int]) -> None:
        end = time.monotonic() + (60 if said else 0.3)
        while time.monotonic() < end and "no batch has finished" not in caplog.text:
            time.sleep(0.01)

    task = resumable_task(job, name="job", results="none", batch_size=batch_size)
    task.run(range(items), checkpoint=tmp_path / "c")
    assert caplog.text.count("no batch has finished for") == said


def test_a_source_that_is_slow_is_no_batch_that_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By a clock that goes on in the source alone."""
    monkeypatch.setattr(watch, "LONG_BATCH_SECONDS", 0.01)
    now = [0.0]
    monkeypatch.setattr(watch, "time", SimpleNamespace(monotonic=lambda: now[0]))
    committed = threading.Semaphore(0)

    def listen(event: Event) -> None:
        if isinstance(event, Committed):
            committed.release()

    def items() -> Any:
        for number in range(0, 8, 2):
            yield from (number, number + 1)
            assert committed.acquire(timeout=60)
            now[0] += 1.0

    def job(items: list[int]) -> None:
        time.sleep(0.1)  # the run looks some times meanwhile

    task = resumable_task(job, name="job", results="none", batch_size=2)
    assert task.run(items(), checkpoint=tmp_path / "c", listeners=[listen]).completed == 8
    assert "no batch has finished" not in caplog.text


def rerun(place: Path, before: Any, after: Any) -> None:
    task = resumable_task(lambda items: None, name="job", results="none", batch_size=10)
    task.run(before, checkpoint=place)
    task.run(after, checkpoint=place)


@pytest.mark.parametrize(
    ("before", "after", "warned"),
    [
        (range(50), range(1_000, 1_200), 1),
        (range(50), range(1_000, 1_050), 1),
        (range(49), range(1_000, 1_200), 0),
        (range(50), range(1_000, 1_049), 0),
        (range(50), [49, *range(1_000, 1_200)], 0),
        (range(50), range(50), 0),
        ([], range(200), 0),
    ],
)
def test_a_rerun_whose_keys_are_all_unknown_is_warned_of_once(
    tmp_path: Path, before: Any, after: Any, warned: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        rerun(tmp_path / "c", before, after)
    assert caplog.text.count("their keys change between runs") == warned


def test_items_that_have_all_changed_are_known(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = resumable_task(
        lambda items: None, name="job", key="id", results="none", changes=Changes("n", then="redo")
    )
    for number in (1, 2):
        run = task.run([{"id": i, "n": number} for i in range(60)], checkpoint=tmp_path / "c")
    assert run.completed == 60
    assert "their keys change between runs" not in caplog.text
