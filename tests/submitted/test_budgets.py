"""A budget of money counts what a service has: by its expected cost, until the real one is known.

Limits are looked at where they matter: at each moment at which the service is given more.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - its import takes as long as a submission here
import pytest

from resumable_tasks import (
    Budget,
    BudgetUsedUp,
    Collected,
    Ended,
    Interrupted,
    Pending,
    RunResult,
    UsageError,
    resumable_task,
)
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.form import Found
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.engine.reserved import ReservedSpending
from resumable_tasks.errors import Waiting
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.outcome import Done, Dropped
from tests import warm
from tests.submitted.service import FileService, Row, items

EACH = 0.01


class Charging(FileService):
    """Expects ``EACH`` an item, and charges ``dearer`` times as much.

    ``tells``: what it has charged. ``rows``: it gives some.
    """

    dearer = 1.0
    tells = rows = True

    def price(self, items: list[Row]) -> float:
        return EACH * len(items)

    def submit(self, items: list[Row], token: str) -> Row:
        handle = super().submit(items, token)
        # Whoever looks later would not see what was out at this moment.
        with (self.home / "at-once.txt").open("a") as told:
            told.write(f"{self.charged + self.expected_out}\n")
        return handle

    def poll(self, handle: Row) -> Pending | Ended:
        state = super().poll(handle)
        return state if isinstance(state, Ended) else Pending(again_in=0.05)

    def collect(self, handle: Row) -> Any:
        rows = super().collect(handle)
        (self.home / f"{handle['number']:06d}.collected").touch()
        charged = sum(type(row) is dict for row in rows) * EACH * self.dearer
        return Collected(rows if self.rows else None, charged) if self.tells else rows

    def _cost(self, collected: bool) -> float:
        return EACH * sum(
            len(told["ids"]) - len(self._undone(told))
            for told in self.submissions
            if (self.home / f"{told['number']:06d}.collected").exists() == collected
        )

    @property
    def charged(self) -> float:
        return self._cost(True) * self.dearer

    @property
    def expected_out(self) -> float:
        return self._cost(False)

    @property
    def most(self) -> float:
        """The most that was charged or expected at any moment."""
        return max(map(float, (self.home / "at-once.txt").read_text().split()))


def job(service: FileService, **options: Any) -> Any:
    return resumable_task(
        service, **{"name": "job", "key": "id", "batch_size": 10, "concurrency": 3} | options
    )


def result_of(error: pytest.ExceptionInfo[Interrupted]) -> RunResult:
    assert error.value.result is not None
    return error.value.result


def test_without_a_price_a_budget_of_money_is_refused(place: Path, tmp_path: Path) -> None:
    service = FileService(tmp_path / "s")
    for budget in (Budget(cost=1.0), Budget(total=1.0)):
        with pytest.raises(UsageError, match=r"FileService does not provide it.*price\(items\)"):
            job(service, budget=budget).run(items(3), checkpoint=place)
    assert not service.submissions
    assert job(service, budget=Budget(items=9)).run(items(3), checkpoint=place).completed == 3


def test_the_last_batch_is_cut_to_what_fits_and_the_next_run_goes_on(
    place: Path, tmp_path: Path
) -> None:
    service = Charging(tmp_path / "s", takes=0.3)
    done = 0
    for budget, more in ((0.35, 35), (0.25, 25)):
        with pytest.raises(BudgetUsedUp, match=f"cost={budget}") as error:
            job(service).run(items(100), checkpoint=place, budget=Budget(cost=budget))
        done += more
        assert result_of(error).completed == more
        assert result_of(error).cost == pytest.approx(budget)
        assert sum(service.paid.values()) == len(service.paid) == done
    assert error.value.exit_code == 5
    last = job(service).run(items(100), checkpoint=place, budget=Budget(cost=9.0))
    assert (last.completed, last.cost) == (40, pytest.approx(0.4))


def test_what_is_out_counts_before_anybody_knows_its_real_cost(place: Path, tmp_path: Path) -> None:
    """Nothing has ended, so that nothing is known but expectations."""
    service = Charging(tmp_path / "s", takes=None)
    with pytest.raises(Waiting) as error:
        job(service, concurrency=9).run(
            items(100), checkpoint=place, budget=Budget(cost=0.35), wait=1.0
        )
    assert error.value.exit_code == 75
    assert service.most == pytest.approx(0.3)
    # Neither does another run begin what the first one's money is reserved for.
    with pytest.raises(Waiting):
        job(service, concurrency=9).run(
            items(100), checkpoint=place, budget=Budget(cost=0.35), wait=1.0
        )
    assert len(service.submissions) == 3


def test_the_real_cost_takes_the_place_of_the_expected_one(place: Path, tmp_path: Path) -> None:
    service = Charging(tmp_path / "s", takes=0.2)
    service.dearer = 0.5
    with pytest.raises(BudgetUsedUp) as error:
        job(service).run(items(100), checkpoint=place, budget=Budget(cost=0.3))
    assert 50 <= result_of(error).completed <= 60
    assert service.charged <= 0.3 + 1e-9
    assert service.most <= 0.3 + 1e-9


class Staggered(Charging):
    """The first submission ends once three are out, others so long after it was collected.

    Whatever the speed of the machine, three are begun before a real cost is known.
    """

    def poll(self, handle: Row) -> Pending | Ended:
        if handle["number"] == 1 and len(self.submissions) < 3:
            return Pending(again_in=0.05)
        return super().poll(handle)

    def _has_ended(self, told: Row) -> bool:
        if told["number"] == 1:
            return True
        first = self.home / "000001.collected"
        return first.exists() and super()._has_ended(told | {"at": first.stat().st_mtime})


@pytest.mark.parametrize(("undone", "dearer"), [(0, 4.0), (2, 2.0)])
def test_a_dearer_service_exceeds_the_budget_by_the_error_of_the_expectation(
    undone: int, dearer: float, place: Path, tmp_path: Path
) -> None:
    """What is out is not left behind when nothing more may begin: it is paid."""
    service = Staggered(tmp_path / "s", takes=2.0, undone=undone)
    service.dearer = dearer
    with pytest.raises(BudgetUsedUp) as error:
        job(service).run(items(100), checkpoint=place, budget=Budget(cost=0.3))
    assert len(service.submissions) == 3
    assert result_of(error).completed == len(service.paid)
    assert service.charged == pytest.approx(EACH * len(service.paid) * dearer)
    assert not read_checkpoint(open_store(place))[1].out


def test_a_run_whose_money_is_spent_comes_back_for_what_is_out(place: Path, tmp_path: Path) -> None:
    service = Staggered(tmp_path / "s", takes=None, undone=2)
    service.dearer = 2.0
    with pytest.raises(Waiting) as error:
        job(service).run(items(100), checkpoint=place, budget=Budget(total=0.3), wait=1.0)
    assert result_of(error).completed == 5
    service.end_all()
    with pytest.raises(BudgetUsedUp) as spent:
        job(service).run(items(100), checkpoint=place, budget=Budget(total=0.3), wait=1.0)
    assert result_of(spent).completed == 10


def spending(budget: Budget) -> ReservedSpending:
    return ReservedSpending(budget, Found(), lambda batch: EACH * len(batch))


def batch(number: int, count: int) -> Batch:
    ids = list(range(count))
    lines = b"\n".join(b"%d" % each for each in ids)
    return Batch(number, ids, lines, [{"id": each} for each in ids])


def test_money_that_is_spent_ends_no_waiting_and_time_that_is_up_does() -> None:
    """`over` would leave what is out behind; that nothing more begins is for `affords`."""
    used = spending(Budget(cost=0.3))
    assert used.affords(batch(1, 10), 0)
    used.begins(batch(1, 10))
    used.begins(batch(2, 10))
    used.add(Done(batch(1, 10), completed=10, cost=5.0))
    assert used.spent == 5.0
    assert used.over is None
    assert not used.affords(batch(3, 1), 0)
    assert used.affordable(batch(3, 10)) == 0
    late = spending(Budget(cost=0.3, seconds=1e-9))
    assert late.over == "seconds=1e-09"


def test_what_is_reserved_is_free_again_once_its_cost_is_known() -> None:
    used = spending(Budget(cost=0.3))
    used.begins(batch(1, 20))
    assert used.affordable(batch(2, 20)) == 10
    used.add(Dropped(batch(1, 20)))
    assert used.affordable(batch(2, 20)) == 10, "it is out still"
    used.add(Done(batch(1, 20), completed=20, cost=0.05))
    assert used.affordable(batch(2, 30)) == 25


def test_what_nobody_tells_has_cost_what_was_expected(place: Path, tmp_path: Path) -> None:
    service = Charging(tmp_path / "s", undone=5)
    service.tells = False
    with pytest.raises(BudgetUsedUp) as error:
        job(service).run(items(100), checkpoint=place, budget=Budget(cost=0.3))
    assert result_of(error).cost == pytest.approx(EACH * sum(service.paid.values()))
    assert 0.2 < service.charged <= 0.3 + 1e-9


def test_what_the_rows_tell_counts_and_not_the_expectation(place: Path, tmp_path: Path) -> None:
    service = Charging(tmp_path / "s")
    service.tells = False
    result = job(service, cost="v").run(items(3), checkpoint=place, budget=Budget(cost=99.0))
    assert result.cost == 0 + 2 + 4


def test_a_price_that_does_not_fall_with_the_items_leaves_the_batch(
    place: Path, tmp_path: Path
) -> None:
    service = Charging(tmp_path / "s")
    service.price = lambda items: 1.0  # type: ignore[method-assign]
    service.tells = False
    with pytest.raises(BudgetUsedUp) as error:
        job(service, concurrency=9).run(items(100), checkpoint=place, budget=Budget(cost=2.5))
    assert len(service.submissions) == 2
    assert result_of(error).cost == 2.0


def test_a_rest_that_does_not_fit_waits_for_another_run(place: Path, tmp_path: Path) -> None:
    service = Charging(tmp_path / "s", takes=0.2, undone=2)
    service.dearer = 1.9
    with pytest.raises(BudgetUsedUp) as error:
        job(service, concurrency=1).run(items(10), checkpoint=place, budget=Budget(cost=0.1))
    assert result_of(error).completed == 5
    assert len(service.submissions) == 1
    assert job(service).run(items(10), checkpoint=place).completed == 5
    assert set(service.paid.values()) == {1}


def test_a_budget_needs_no_rows_to_know_the_cost(place: Path, tmp_path: Path) -> None:
    service = Charging(tmp_path / "s")
    service.rows = False
    with pytest.raises(BudgetUsedUp):
        job(service, results="none").run(items(100), checkpoint=place, budget=Budget(cost=0.2))
    assert len(service.paid) == 20


@pytest.mark.parametrize("price", [-1.0, float("nan"), "0.1", None])
def test_a_price_that_is_no_cost_ends_the_run_before_anything_is_sent(
    price: Any, place: Path, tmp_path: Path
) -> None:
    service = Charging(tmp_path / "s")
    service.price = lambda items: price  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"price\(items\) returned.*a number from 0"):
        job(service).run(items(3), checkpoint=place, budget=Budget(cost=0.2))
    assert not service.submissions


def test_what_was_submitted_without_a_price_may_cost_whatever_it_likes(
    place: Path, tmp_path: Path
) -> None:
    with pytest.raises(Waiting):
        job(FileService(tmp_path / "s", takes=None)).run(items(10), checkpoint=place, wait=False)
    service = Charging(tmp_path / "s", takes=None)
    with pytest.raises(Waiting):
        job(service).run(items(30), checkpoint=place, wait=0.5, budget=Budget(cost=9.0))
    assert len(service.submissions) == 1
    service.end_all()
    service.takes = 0.0
    assert job(service).run(items(30), checkpoint=place, budget=Budget(cost=9.0)).completed == 30


def test_a_total_holds_over_runs_that_leave_and_come_back(place: Path, tmp_path: Path) -> None:
    service = Charging(tmp_path / "s", takes=None)
    for run in itertools.count():
        assert run < 30
        try:
            job(service, budget=Budget(total=0.57)).run(items(100), checkpoint=place, wait=False)
        except BudgetUsedUp:
            break
        except Waiting:
            service.end_all()
    assert sum(service.paid.values()) == len(service.paid) == 57
    assert service.most <= 0.57 + 1e-9
    assert not read_checkpoint(open_store(place))[1].out


JOB = """
import sys
from tests.submitted.service import items
from tests.submitted.test_budgets import Charging, job
from resumable_tasks import Budget
service = Charging(sys.argv[2], takes=0.1, undone=7)
service.dearer = 1.25
job(service, budget=Budget(total=1.0)).run(items(200), checkpoint=sys.argv[1])
"""


def test_a_total_holds_over_runs_that_are_killed(tmp_path: Path) -> None:
    place, home, script = tmp_path / "c", tmp_path / "s", tmp_path / "job.py"
    words = tmp_path / "words"
    script.write_text(JOB)
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    kills, code = 0, -1
    while code != 5:
        patience = random.uniform(0.1, 0.9) if kills < 6 else 60
        with (
            words.open("w") as stderr,
            warm.start([sys.executable, script, place, home], env=env, stderr=stderr) as run,
        ):
            try:
                code = run.wait(patience)
            except subprocess.TimeoutExpired:
                run.kill()
                kills, code = kills + 1, run.wait()
        assert code in (5, -signal.SIGKILL), words.read_text()
    service = Charging(home)
    service.dearer = 1.25
    assert set(service.paid.values()) == {1}
    # Three batches may be out when it turns out that each is dearer by a quarter.
    assert 0.8 < service.charged <= 1.0 + 3 * 10 * EACH * 0.25 + 1e-9
    state = read_checkpoint(open_store(place))[1]
    assert len(state.done) == len(service.paid)
    assert state.pace.cost == pytest.approx(service.charged)
