"""Whole jobs on a batch API that makes trouble: each row once, each text paid once."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    Budget,
    BudgetUsedUp,
    Interrupted,
    JobFailed,
    ResumableTask,
    resumable_task,
)
from resumable_tasks.runners.submitted import life
from tests.batch_apis.conftest import texts
from tests.batch_apis.driver import service
from tests.batch_apis.server import HIDDEN, BatchServer

ANTHROPIC = pytest.mark.xdist_group("anthropic")
BOTH = pytest.mark.parametrize("provider", ["openai", pytest.param("anthropic", marks=ANTHROPIC)])
# Where what is told apart is the same for both; what each provider says is in its own tests.
ONE = pytest.mark.parametrize(
    "provider",
    ["openai", pytest.param("anthropic", marks=[ANTHROPIC, pytest.mark.long])],
)


@pytest.fixture(autouse=True)
def in_a_hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait for what the server does, not for what a provider may do."""
    monkeypatch.setattr(life, "_FIRST_PAUSE", 0.05)
    monkeypatch.setattr(life, "_LAST_PAUSE", 0.1)
    monkeypatch.setattr(life, "_LONGEST_LOOK", 0.1)
    return


def job(provider: str, server: BatchServer, *, prices: Any = None, **options: Any) -> ResumableTask:
    handler = service(provider, server.url, prices=prices)
    handler.patience = 0.3
    return resumable_task(handler, **{"name": "labels", "key": "id", "batch_size": 10} | options)


def once(server: BatchServer, items: int) -> None:
    paid = server.paid()
    assert {text: n for text, n in paid.items() if n > 1} == {}
    assert len(paid) == items


def attempts(error: JobFailed) -> dict[Any, int]:
    assert error.result is not None
    return {failure.key: failure.attempts for failure in error.result.failures}


@ONE
@pytest.mark.parametrize(
    "fates",
    [
        [{"fate": "expired", "done": 0.3}, None, {"fate": "expired", "done": 0.5}],
        [{"fate": "cancelled", "done": 0.1}],
        [{"fate": "lines_missing", "done": 0.5}],
        [{"fate": "unauthorized", "done": 0.5}],
    ],
    ids=lambda fates: fates[0]["fate"],
)
def test_the_rest_goes_out_again_alone(
    provider: str, server: BatchServer, tmp_path: Path, fates: list[Any]
) -> None:
    server.script(next=fates)
    assert job(provider, server).run(texts(30), checkpoint=tmp_path).completed == 30
    once(server, 30)
    sizes = [len(batch["texts"]) for batch in server.batches()]
    rests = [round(10 - 10 * fate["done"]) for fate in fates if fate]
    assert sorted(sizes) == sorted([10, 10, 10, *rests])


@BOTH
def test_kinds_of_failures(provider: str, server: BatchServer, tmp_path: Path) -> None:
    """Bad answers are asked for again, refused items are not; neither spoils the others."""
    items = texts(30, _3="REFUSED", _5="NONSENSE")
    with pytest.raises(JobFailed) as caught:
        job(provider, server, retries=1).run(items, checkpoint=tmp_path)
    assert attempts(caught.value) == {3: 1, 5: 2}
    assert server.paid()["NONSENSE"] == 2
    assert {n for text, n in server.paid().items() if text != "NONSENSE"} == {1}


def test_a_line_that_is_named_fails_alone(server: BatchServer, tmp_path: Path) -> None:
    told = {"code": "invalid_json_line", "message": "no", "line": 4}
    server.script(next=[{"fate": "failed", "errors": [told]}])
    with pytest.raises(JobFailed) as caught:
        job("openai", server, concurrency=1).run(texts(30), checkpoint=tmp_path)
    assert attempts(caught.value) == {3: 1}
    once(server, 29)


@BOTH
def test_no_funds_end_the_run_and_no_item_has_failed(
    provider: str, server: BatchServer, tmp_path: Path
) -> None:
    server.script(funds=13)
    task = job(provider, server, concurrency=1)
    with pytest.raises(Interrupted) as caught:
        task.run(texts(60), checkpoint=tmp_path)
    assert caught.value.exit_code == 75
    assert len(server.batches()) <= 5
    server.script(funds=None)
    run = task.run(texts(60), checkpoint=tmp_path)
    assert (run.skipped, run.completed, run.failed) == (13, 47, 0)
    once(server, 60)


@BOTH
def test_the_queue_of_the_account_is_small(
    provider: str, server: BatchServer, tmp_path: Path
) -> None:
    """It takes two of our batches: the others wait for the ends of these."""
    server.script(queue=25, takes=0.2)
    assert job(provider, server).run(texts(60), checkpoint=tmp_path).completed == 60
    once(server, 60)


@BOTH
def test_a_batch_is_larger_than_the_queue(
    provider: str, server: BatchServer, tmp_path: Path
) -> None:
    server.script(queue=6)
    assert job(provider, server).run(texts(20), checkpoint=tmp_path).completed == 20
    once(server, 20)
    assert {b["paid"] for b in server.batches()} <= {0, 5, 2, 3}


@ONE
def test_the_service_fails_now_and_then(provider: str, server: BatchServer, tmp_path: Path) -> None:
    for operation in ("retrieve", "content", "upload", "list"):
        server.trouble(operation, "refuse", every=3, status=500)
        server.trouble(operation, "drop", every=5)
    server.trouble("create", "refuse", times=2, status=429, headers={"Retry-After": "0.1"})
    server.trouble("create", "lose", every=3, skip=2)
    server.trouble("create", "refuse_late", every=4, skip=2, status=503)
    assert job(provider, server).run(texts(60), checkpoint=tmp_path).completed == 60
    once(server, 60)
    assert len(server.batches()) == 6


@ONE
def test_what_was_lost_is_listed_late(provider: str, server: BatchServer, tmp_path: Path) -> None:
    server.script(listing_lag=1.0)
    server.trouble("create", "lose", times=1)
    task = job(provider, server)
    task.fn.patience = 5.0
    assert task.run(texts(20), checkpoint=tmp_path).completed == 20
    once(server, 20)
    assert len(server.batches()) == 2


@ONE
def test_a_listing_that_lags_longer_than_the_patience_pays_twice(
    provider: str, server: BatchServer, tmp_path: Path
) -> None:
    """The window that stays, and what shows that the look before matters."""
    server.script(listing_lag=HIDDEN)
    server.trouble("create", "lose", times=1)
    assert job(provider, server, concurrency=1).run(texts(20), checkpoint=tmp_path).completed == 20
    assert sorted(server.paid().values()) == [1] * 10 + [2] * 10


@BOTH
def test_unknown_and_without_results_at_first(
    provider: str, server: BatchServer, tmp_path: Path
) -> None:
    server.script(unknown_for=0.3, results_lag=0.3)
    assert job(provider, server).run(texts(20), checkpoint=tmp_path).completed == 20
    once(server, 20)


@ONE
def test_paid_results_that_are_never_served_are_not_paid_again(
    provider: str, server: BatchServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(life, "_NOT_READY_SECONDS", 0.3)
    server.script(next=[{"fate": "no_files"}])
    task = job(provider, server)
    for _ in range(2):
        with pytest.raises(Interrupted) as caught:
            task.run(texts(20), checkpoint=tmp_path)
        assert caught.value.exit_code == 75
        assert re.search(r"submissions \S+ withdraw|submissions … withdraw", str(caught.value))
    once(server, 20)
    assert len(server.batches()) == 2


@ONE
def test_other_batches_while_some_are_out(
    provider: str, server: BatchServer, tmp_path: Path
) -> None:
    """Runs after another, with other sizes and another order."""
    server.script(takes=None)
    with pytest.raises(Interrupted):
        job(provider, server, budget=Budget(seconds=1.0)).run(texts(60), checkpoint=tmp_path)
    out = len(server.batches())
    assert out
    server.script(takes=0.1)
    server.finish()
    run = job(provider, server, batch_size=7).run(texts(60)[::-1], checkpoint=tmp_path)
    assert run.skipped + run.completed == 60
    once(server, 60)


@ONE
def test_a_budget_of_money(provider: str, server: BatchServer, tmp_path: Path) -> None:
    prices = (1_000_000.0, 1_000_000.0)  # a token costs 1, at half 0.5: a text 6
    task = job(provider, server, prices=prices, concurrency=1)
    with pytest.raises(BudgetUsedUp) as caught:
        task.run(texts(60), checkpoint=tmp_path, budget=Budget(cost=6 * 35))
    assert caught.value.result is not None
    completed = caught.value.result.completed
    assert caught.value.result.cost == 6 * completed
    assert completed <= 35
    assert task.run(texts(60), checkpoint=tmp_path).completed == 60 - completed
    once(server, 60)


@ONE
def test_at_full_price(provider: str, server: BatchServer, tmp_path: Path) -> None:
    """The same job, continued outside of batches."""
    task = job(provider, server)
    task.run(texts(10), checkpoint=tmp_path)
    now = task.with_options(runner="local", batch_size=1)
    run = now.run(texts(20), checkpoint=tmp_path)
    assert (run.skipped, run.completed) == (10, 10)
    once(server, 10)
    assert server.full_price() == {f"text {n}": 1 for n in range(10, 20)}


@ONE
def test_a_bug_in_row_costs_nothing(provider: str, server: BatchServer, tmp_path: Path) -> None:
    task = job(provider, server)
    good = task.fn._row

    def broken(key: Any, answer: Any) -> Any:
        raise KeyError("labels")

    task.fn._row = broken
    with pytest.raises(KeyError, match="labels"):
        task.run(texts(20), checkpoint=tmp_path)
    task.fn._row = good
    run = task.run(texts(20), checkpoint=tmp_path)
    assert (run.skipped, run.completed, run.failed) == (0, 20, 0)
    once(server, 20)
