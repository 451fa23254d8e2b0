"""Two writers who want each other's locks: both go on, and nothing is lost or called for twice."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from resumable_tasks import Failing, JobFailed, SqlCheckpoint, resumable_task
from resumable_tasks.checkpoint.sql import runs
from tests.checkpoint.sql.child import until
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]
Prepared = Callable[..., SqlCheckpoint]


@pytest.fixture
def url(postgres_url: str) -> str:
    """SQLite has one lock for all."""
    return postgres_url


@pytest.mark.parametrize("rows", [200, pytest.param(600, marks=pytest.mark.long)])
def test_two_drivers_whose_results_collide_both_come_to_an_end(db: Db, rows: int) -> None:
    """Two rows each have one result, and its column is unique: one of the two is stored."""
    db.make(rows)
    db.do("CREATE TABLE labels (id INTEGER, code INTEGER UNIQUE)")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="labels")
    db.prepare(checkpoint)
    handled: Counter[int] = Counter()
    both = threading.Barrier(2, timeout=60)
    parked: list[int] = []

    def code(items: Rows) -> Rows:
        handled.update(row["id"] for row in items)
        # Each driver meets the values of the other's in the other order.
        return [{"id": r["id"], "code": min(r["id"], rows + 1 - r["id"])} for r in items]

    task = resumable_task(code, batch_size=20, concurrency=4, failing=Failing(pause_after=None))

    def drive() -> None:
        both.wait()
        try:
            result: Any = task.run(checkpoint=checkpoint)  # it met none of the other's values
        except JobFailed as error:
            result = error.result
        parked.append(result.parked)

    threads = [threading.Thread(target=drive, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
        assert not thread.is_alive()
    assert db.one("SELECT count(*) FROM labels") == rows // 2
    assert db.one("SELECT count(*) FROM lessons WHERE processed_at IS NULL") == rows // 2
    assert db.one("SELECT count(*) FROM lessons_processed_at_failures") == rows // 2 == sum(parked)
    assert len(handled) == rows
    assert set(handled.values()) == {1}


class Others:
    """A job whose batches are all handled, and come back once others have taken their locks."""

    def __init__(self, db: Db, checkpoint: SqlCheckpoint) -> None:
        self.handled: Counter[int] = Counter()
        self._gates = {first: threading.Event() for first in (1, 11, 21)}
        self._db, self._checkpoint = db, checkpoint
        self.result: Any = None
        self._thread = threading.Thread(target=self._drive, daemon=True)

    def _drive(self) -> None:
        task = resumable_task(
            self._label, name="label", batch_size=10, concurrency=3, tolerated_failures=30
        )
        self.result = task.run(checkpoint=self._checkpoint)

    def _label(self, rows: Rows) -> Rows:
        self.handled.update(row["id"] for row in rows)
        self._gates[rows[0]["id"]].wait(60)
        return [{"id": row["id"], "label": "x"} for row in rows]

    def start(self) -> None:
        self._thread.start()
        until("all are handled", lambda: len(self.handled) == 30)

    def come_back(self, *firsts: int) -> None:
        """The batches that begin with these rows come back, one after the other."""
        for first in firsts:
            self._gates[first].set()
            time.sleep(0.3)

    def done(self) -> int:
        count: int = self._db.one(
            "SELECT count(*) FROM lessons WHERE processed_at IS NOT NULL AND label = 'x'"
        )
        return count

    def end(self) -> Any:
        self._thread.join(60)
        assert not self._thread.is_alive()
        assert set(self.handled.values()) == {1}
        return self.result


@pytest.fixture
def others(db: Db, prepared: Prepared) -> Others:
    return Others(db, prepared(30))


def test_a_session_that_takes_two_rows_in_the_other_order_goes_on(db: Db, others: Others) -> None:
    with db.engine.connect() as first, db.engine.connect() as session:
        session.exec_driver_sql("SET lock_timeout = '20s'")
        others.start()
        # The first batch waits, so that the other two are committed in one transaction.
        first.exec_driver_sql("SELECT id FROM lessons WHERE id = 5 FOR UPDATE")
        session.exec_driver_sql("UPDATE lessons SET text = 'new' WHERE id = 25")
        others.come_back(1)
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        until("the first batch waits", lambda: db.one(waiting))
        others.come_back(11, 21)
        first.rollback()
        until("the first batch is committed", lambda: others.done() >= 10)
        session.exec_driver_sql("UPDATE lessons SET text = 'new' WHERE id IN (3, 15)")
        session.commit()
    assert others.end().completed == 30
    assert (others.done(), db.one("SELECT count(*) FROM lessons WHERE text = 'new'")) == (30, 3)


def test_a_row_that_is_locked_for_long_holds_up_nothing_else(
    db: Db, others: Others, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "LOCK_SECONDS", 1)
    with db.engine.connect() as session:
        others.start()
        session.exec_driver_sql("SELECT id FROM lessons WHERE id = 5 FOR UPDATE")
        others.come_back(1, 11, 21)
        until("the other batches are committed", lambda: others.done() == 20)
        result = others.end()  # while the session goes on
    assert (result.completed, result.parked, result.failed) == (20, 10, 0)
    assert db.one("SELECT count(*) FROM lessons_processed_at_claims") == 0
    task = resumable_task(lambda rows: pytest.fail("called again"), name="label")
    again = task.run(checkpoint=others._checkpoint)
    assert (again.skipped, again.parked, others.done()) == (30, 0, 30)
