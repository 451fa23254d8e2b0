"""Connections that break: what is known to be committed, and what is not."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa

from resumable_tasks import SqlCheckpoint, resumable_task
from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.sql import planning
from resumable_tasks.checkpoint.sql.absence import Absence, Patience
from resumable_tasks.checkpoint.sql.claims import Claims
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.runs import RunRow
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.items.plan import Planning
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]


@pytest.fixture
def url(postgres_url: str) -> str:
    return postgres_url


@resumable_task(name="label", batch_size=20, concurrency=1)
def label(rows: Rows) -> Rows:
    return [{"id": row["id"], "label": row["text"].upper()} for row in rows]


def test_a_connection_lost_before_a_commit(db: Db, prepared: Callable[..., SqlCheckpoint]) -> None:
    """The server ends all connections while the handler works: that costs no call."""
    checkpoint = prepared(100)
    calls: list[int] = []

    @resumable_task(name="label", batch_size=20, concurrency=1)
    def cut(rows: Rows) -> Rows:
        calls.append(len(rows))
        if len(calls) == 2:
            while db.one("SELECT count(processed_at) FROM lessons") < 20:
                time.sleep(0.01)  # cut in the midst of its COMMIT, the state would be unknown
            db.do(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        return label.fn(rows)

    assert cut.run(checkpoint=checkpoint).completed == 100
    assert calls == [20] * 5
    assert db.one("SELECT count(*) FROM lessons WHERE label = upper(text)") == 100
    assert db.one("SELECT count(processed_at) FROM lessons") == 100


_END_ALL = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND state = 'idle'"
)


def test_idle_connections_of_a_given_engine_may_be_closed_by_the_server(
    db: Db, prepared: Callable[..., SqlCheckpoint], caplog: pytest.LogCaptureFixture
) -> None:
    """By its idle_session_timeout, or by a firewall; the engine asks for no pool_pre_ping."""
    prepared(100)
    engine = sa.create_engine(db.url)
    checkpoint = SqlCheckpoint(
        engine, table="lessons", key="id", columns=["label"], claim_seconds=8.0
    )
    ended: list[int] = []

    @resumable_task(name="label", batch_size=20, concurrency=1)
    def cut(rows: Rows) -> Rows:
        time.sleep(0.3)  # the batch before is committed meanwhile
        ended.append(len(db.rows(_END_ALL)))
        time.sleep(0.4)  # a sign of life is given in one of these, by a connection that is gone
        return label.fn(rows)

    try:
        assert cut.run(checkpoint=checkpoint).completed == 100
    finally:
        engine.dispose()
    assert sum(ended) > 3
    said = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert not said, [each.getMessage() for each in said]


def test_rows_that_others_have_locked_are_waited_for(
    db: Db, prepared: Callable[..., SqlCheckpoint]
) -> None:
    checkpoint = prepared(100)
    with db.engine.connect() as other:
        other.exec_driver_sql("SELECT id FROM lessons WHERE id BETWEEN 40 AND 50 FOR UPDATE")
        letting_go = threading.Timer(1.5, other.rollback)
        letting_go.start()
        run = label.run(checkpoint=checkpoint)
        letting_go.join()
    assert run.completed == 100


def test_two_drivers_whose_last_batches_fail_do_not_wait_for_each_other(
    db: Db, prepared: Callable[..., SqlCheckpoint]
) -> None:
    """Each has claimed rows that it holds back, to find out why they fail."""
    checkpoint = prepared(120)
    results: list[Any] = []
    both = threading.Barrier(2, timeout=20)
    met: set[int] = set()

    def work(rows: Rows) -> Rows:
        if threading.get_ident() not in met:  # the first call of each of them
            met.add(threading.get_ident())
            both.wait()
        if any(row["id"] % 20 == 0 for row in rows):
            raise ValueError("bad")
        return label.fn(rows)

    job = resumable_task(work, name="label", batch_size=20, concurrency=1, tolerated_failures=9)
    threads = [
        threading.Thread(target=lambda: results.append(job.run(checkpoint=checkpoint)), daemon=True)
        for _ in range(2)
    ]
    with pytest.MonkeyPatch.context() as patch:
        # A page of one batch, of which each claims three: one at work, one out, one to follow.
        patch.setattr(planning, "_MOST_ROWS", 20)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert sum(run.completed for run in results) == 114
    assert sum(run.failed for run in results) == 6
    assert min(run.failed for run in results) > 0, "one of them had nothing to hold back"
    assert db.one("SELECT count(processed_at) FROM lessons") == 114


def test_rows_that_another_has_claimed_are_not_committed(
    db: Db, prepared: Callable[..., SqlCheckpoint]
) -> None:
    """A run whose claims were taken drops the batch, even if the other has not got to it yet."""
    checkpoint = prepared(40)
    taken: list[int] = []
    copied = "job, version, host, pid, began"

    def work(rows: Rows) -> Rows:
        if taken:
            return [{"id": row["id"], "label": "later"} for row in rows]
        taken.extend(row["id"] for row in rows)
        these = ", ".join(map(str, taken))
        db.do(
            f"INSERT INTO lessons_processed_at_runs (run, {copied}, alive_until, identity) "
            f"SELECT 'other', {copied}, extract(epoch from clock_timestamp()) + 2, identity "
            "FROM lessons_processed_at_runs",
            f"UPDATE lessons_processed_at_claims SET run = 'other' WHERE id IN ({these})",
        )
        return [{"id": row["id"], "label": "taken"} for row in rows]

    run = resumable_task(work, name="label", batch_size=20, concurrency=1).run(
        checkpoint=checkpoint
    )
    # The other's sign of life ends, and then they are handled once more.
    assert run.completed == 40
    assert db.rows("SELECT label, count(*) FROM lessons GROUP BY label") == [("later", 40)]


def test_a_row_that_was_claimed_in_between_is_left_to_the_run_that_has_it(
    db: Db, prepared: Callable[..., SqlCheckpoint]
) -> None:
    """A query that began before another's claim can still come by that row, and lock it."""
    checkpoint = prepared(10)
    with contextlib.closing(Database(db.url)) as database:
        tables = Tables(database, checkpoint)
        options = Job("label", "1", "one", Planning())
        claims = []
        for run in ("one", "two"):
            RunRow(database, tables, run, options).take(takeover=False, identity=None)
            patience = Patience(Absence(tables.url, 60.0))
            claims.append(Claims(database, tables, run, 10, 10, [], patience=patience, shared=True))
        rows = next(claims[0].pages())
        with database.writing() as connection:
            assert claims[1]._take(connection, rows) == set()
        db.do("UPDATE lessons_processed_at_runs SET alive_until = 0 WHERE run = 'one'")
        with database.writing() as connection:
            assert claims[1]._take(connection, rows) == set(range(1, 11))
