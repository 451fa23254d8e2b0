"""A server that goes away in the middle of a run, and connections that are lost: nothing is paid
for twice, and no result that was there is thrown away."""

from __future__ import annotations

import contextlib
import logging
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from resumable_tasks import CommitStateUnknown, SqlCheckpoint, StoreError, resumable_task
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.sql import absence
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.runs import RunRow
from tests.checkpoint.sql import oracle, postgres
from tests.checkpoint.sql.child import Child, Spec, until
from tests.checkpoint.sql.conftest import Db, own_database
from tests.checkpoint.sql.proxy import Proxy, When
from tests.checkpoint.sql.test_kills import Start, start

__all__ = ["start"]

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def _server() -> Iterator[postgres.Server]:
    """One that no other test has connections to."""
    if postgres.programs() is None:
        pytest.skip(postgres.GET_IT)
    with postgres.server() as found:
        yield found


@pytest.fixture
def server(_server: postgres.Server) -> Iterator[postgres.Server]:
    yield _server
    _server.stop()
    _server.start()


@pytest.fixture
def url(_server: postgres.Server) -> Iterator[str]:
    with own_database(_server.url) as found:
        yield found


@pytest.fixture
def spec(db: Db, tmp_path: Path) -> Spec:
    """A table of 200 rows that is prepared and watched, with results in another."""
    spec = Spec(db.url, str(tmp_path / "handled"), place="results", claim_seconds=60.0)
    db.make(200)
    db.prepare(spec.checkpoint)
    oracle.watch(db)
    return spec


class Job:
    """A job that counts its calls by item. ``before`` is called in each, with its number."""

    def __init__(
        self, before: Callable[[int], object] = lambda number: None, batch_size: int = 10
    ) -> None:
        self.calls: Counter[int] = Counter()
        self.number = 0
        self._before = before
        self._lock = threading.Lock()
        self.task = resumable_task(self._label, name="label", batch_size=batch_size, concurrency=2)

    def _label(self, rows: Rows) -> Rows:
        with self._lock:
            self.number += 1
            number = self.number
            self.calls.update(row["id"] for row in rows)
        self._before(number)
        return [{"id": row["id"], "label": row["text"].upper()} for row in rows]

    def run(self, checkpoint: Any) -> Any:
        return self.task.run(checkpoint=checkpoint)

    def once_each(self, items: int) -> None:
        assert len(self.calls) == items
        assert set(self.calls.values()) == {1}, self.calls.most_common(20)


def away(server: postgres.Server, seconds: float, how: int = signal.SIGINT) -> None:
    server.stop(how)
    time.sleep(seconds)
    server.start()


@pytest.mark.parametrize(
    "how",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long, id="in order"),
        pytest.param(signal.SIGQUIT, id="crash"),
    ],
)
def test_a_server_that_is_started_again_in_the_middle_of_a_run(
    db: Db, server: postgres.Server, spec: Spec, how: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Commits, pages of rows and signs of life: all are made up for, and it is said once."""
    caplog.set_level(logging.INFO, logger="resumable_tasks")
    restart = threading.Thread(target=away, args=(server, 5.0, how))

    def work(number: int) -> None:
        if number == 6:
            restart.start()
        time.sleep(0.05)

    job = Job(work)
    result = job.run(spec.checkpoint)
    restart.join()
    assert (result.completed, result.failed, result.parked) == (200, 0, 0)
    job.once_each(200)
    oracle.complete(db, spec, 200)
    assert sum("does not respond" in text for text in caplog.messages) == 1
    assert sum("responds again" in text for text in caplog.messages) == 1
    assert not any("heartbeat" in text for text in caplog.messages)


@pytest.mark.long
def test_rows_in_shards_and_a_server_that_is_started_again(
    db: Db, server: postgres.Server, tmp_path: Path
) -> None:
    spec = Spec(db.url, "", place="shards", shards=str(tmp_path / "shards"))
    db.make(200, columns="")
    db.prepare(spec.checkpoint)
    restart = threading.Thread(target=away, args=(server, 2.0))

    def work(number: int) -> None:
        if number == 6:
            restart.start()
        time.sleep(0.05)

    job = Job(work)
    assert job.run(spec.checkpoint).completed == 200
    restart.join()
    job.once_each(200)
    assert db.one("SELECT count(processed_at) FROM lessons") == 200


def test_two_drivers_keep_their_claims_through_an_outage_that_is_longer(
    db: Db, server: postgres.Server, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No run could tell that it was alive meanwhile: none takes what the other is handling."""
    beat = RunRow.beat

    def late(row: RunRow) -> bool:
        time.sleep(1.0)  # each is slower than the claims of the other
        return beat(row)

    monkeypatch.setattr(absence, "_LONGEST_PAUSE", 0.1)
    checkpoint = SqlCheckpoint(
        db.url, table="lessons", key="id", results_table="labels", claim_seconds=4.0
    )

    def restart() -> None:
        away(server, 6.0)

    monkeypatch.setattr(RunRow, "beat", late)
    begun = threading.Barrier(4, restart, timeout=60)
    met: set[int] = set()

    def work(number: int) -> None:
        me = threading.get_ident()
        if me not in met:  # all four calls of both are at work while the server is away
            met.add(me)
            begun.wait()
            # One of them goes on at once, and looks for more; the others are still at it.
            time.sleep(0.0 if number == 4 else 4.0)

    job = Job(work)
    results: list[Any] = []
    threads = [
        threading.Thread(target=lambda: results.append(job.run(checkpoint)), daemon=True)
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert sum(result.completed for result in results) == 200
    job.once_each(200)
    oracle.complete(db, spec, 200)


def end_all(db: Db) -> None:
    """End all sessions but this one, and wait until they are gone."""
    others = (
        "FROM pg_stat_activity WHERE datname = current_database() "
        "AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
    )
    db.rows(f"SELECT pg_terminate_backend(pid, 10000) {others}")


class Cuts:
    """Ends all sessions before the ``nth`` statement of a commit, or its COMMIT."""

    def __init__(self, db: Db, nth: int) -> None:
        self.engine = sa.create_engine(db.url)
        self.seen: list[str] = []
        self._db, self._nth = db, nth
        sa.event.listen(self.engine, "before_cursor_execute", self._statement)
        sa.event.listen(self.engine, "commit", lambda connection: self._count("COMMIT"))

    def _statement(self, connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        self._count(statement)

    def _count(self, statement: str) -> None:
        if threading.current_thread().name == "resumable-commit":
            self.seen.append(statement)
            if len(self.seen) == self._nth:
                end_all(self._db)


def test_all_sessions_are_ended_at_each_statement_of_a_commit(
    db: Db, spec: Spec, caplog: pytest.LogCaptureFixture
) -> None:
    cut = ""
    for nth in range(1, 100):
        db.do(
            "UPDATE lessons SET processed_at = CASE WHEN id > 40 THEN now() END",
            "TRUNCATE labels, completions",
        )
        cuts = Cuts(db, nth)
        checkpoint = SqlCheckpoint(cuts.engine, table="lessons", key="id", results_table="labels")
        job = Job()
        result = job.run(checkpoint)
        cuts.engine.dispose()
        assert (result.completed, result.failed, result.parked) == (40, 0, 0)
        job.once_each(40)
        rows = db.rows("SELECT id, label FROM labels ORDER BY id")
        assert rows == [(id, f"TEXT {id}") for id in range(1, 41)]
        assert len(db.rows("SELECT DISTINCT id FROM completions")) == 40
        assert db.one("SELECT count(*) FROM completions") == 40
        assert "dropped" not in caplog.text
        cut = cuts.seen[nth - 1]
        if cut == "COMMIT":
            break
    assert cut == "COMMIT"
    assert nth > 8


@pytest.mark.long
def test_a_transaction_that_the_server_has_ended_is_written_again(db: Db, spec: Spec) -> None:
    """A process that is held up in the middle of it for longer than a claim is valid."""
    checkpoint = SqlCheckpoint(
        db.url, table="lessons", key="id", results_table="labels", claim_seconds=3.0
    )
    idle = "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in transaction'"
    stalled: list[str] = []

    def stall(point: str) -> None:
        if point == "sql.written" and not stalled:
            stalled.append(point)
            until("the server ends the transaction", lambda: not db.one(idle))

    job = Job()
    faults.arm(stall)
    try:
        assert job.run(checkpoint).completed == 200
    finally:
        faults.arm(None)
    assert stalled
    job.once_each(200)
    oracle.complete(db, spec, 200)


def through(db: Db, proxy: Proxy, **named: Any) -> SqlCheckpoint:
    url = db.url.replace(f":{sa.make_url(db.url).port}/", f":{proxy.port}/")
    return SqlCheckpoint(url, table="lessons", key="id", results_table="labels", **named)


@pytest.fixture
def proxied(db: Db) -> Iterator[Callable[..., Proxy]]:
    made: list[Proxy] = []

    def make(word: bytes, when: When, *, again: bool = True, nth: int = 2) -> Proxy:
        port = sa.make_url(db.url).port
        assert port is not None
        made.append(Proxy(port, word, nth, when, again=again))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    "word", [b"UPDATE lessons SET", b"INSERT INTO lessons_processed_at_claims"]
)
@pytest.mark.parametrize("when", ["before", "after", pytest.param("half", marks=pytest.mark.long)])
def test_a_commit_whose_answer_is_lost_is_asked_for(
    db: Db, spec: Spec, proxied: Callable[..., Proxy], when: When, word: bytes
) -> None:
    """Whether it has landed, the server tells. One that it never saw keeps no locks."""
    proxy = proxied(word, when)
    job = Job()
    # A claim is valid for longer than this test may take.
    result = job.run(through(db, proxy, claim_seconds=600.0))
    assert proxy.cut.is_set()
    assert (result.completed, result.failed, result.parked) == (200, 0, 0)
    job.once_each(200)
    oracle.complete(db, spec, 200)


@pytest.mark.parametrize("when", [pytest.param("before", marks=pytest.mark.long), "after"])
def test_a_commit_that_nobody_can_ask_for_is_unknown(
    db: Db,
    spec: Spec,
    proxied: Callable[..., Proxy],
    when: When,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is tried again: it may have landed. The next run finds out."""
    monkeypatch.setattr(absence, "PATIENCE_SECONDS", 2.0)
    proxy = proxied(b"UPDATE lessons SET", when, again=False, nth=1)
    # One batch, which comes back once no more rows are asked for.
    job = Job(lambda number: time.sleep(3.0), batch_size=200)
    with pytest.raises(CommitStateUnknown, match="connection was lost during a commit"):
        job.run(through(db, proxy, claim_seconds=2.0))  # which it cannot give back
    assert proxy.cut.is_set()
    # The server may be at it still.
    with db.engine.connect() as connection:
        connection.exec_driver_sql("LOCK TABLE lessons IN EXCLUSIVE MODE")
    before = oracle.consistent(db, spec)
    assert before == (200 if when == "after" else 0)
    run = Job().run(spec.checkpoint)
    assert (run.completed, run.skipped) == (200 - before, before)
    assert db.one("SELECT count(*) FROM labels") == 200


def test_a_transaction_that_a_crash_of_the_server_has_taken_has_not_landed(db: Db) -> None:
    """Its number was never durable, and the server gives it to another one later."""
    last = int(db.one("SELECT txid_current()"))
    with contextlib.closing(Database(db.url)) as database:
        assert database.has_landed(last + 1_000) is False


def test_a_server_that_stays_away_ends_the_run_and_what_is_committed_stands(
    db: Db, server: postgres.Server, spec: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(absence, "PATIENCE_SECONDS", 3.0)
    stopped: list[float] = []

    def work(number: int) -> None:
        if number == 6:
            server.stop()
            stopped.append(time.monotonic())

    with pytest.raises(StoreError, match="Run the same command again"):
        # Its claims, which it cannot give back, run out soon.
        Job(work).run(replace(spec, claim_seconds=3.0).checkpoint)
    assert time.monotonic() - stopped[0] < 60
    server.start()
    before = oracle.consistent(db, spec)
    run = Job().run(spec.checkpoint)
    assert (run.completed, run.skipped) == (200 - before, before)


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("word", ["INSERT INTO lessons_processed_at_claims", "RELEASE SAVEPOINT"])
def test_a_statement_that_ends_its_connection_each_time_is_not_tried_for_ever(
    db: Db, spec: Spec, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    """Though the server answers in between: such as one that crashes at it."""
    monkeypatch.setattr(absence, "PATIENCE_SECONDS", 3.0)
    engine = sa.create_engine(db.url)
    tries: list[float] = []

    def cut(connection: Any, cursor: Any, statement: str, *_: Any) -> None:
        if word in statement:
            tries.append(time.monotonic())
            assert len(tries) < 20
            end_all(db)

    sa.event.listen(engine, "before_cursor_execute", cut)
    checkpoint = SqlCheckpoint(engine, table="lessons", key="id", results_table="labels")
    with pytest.raises(StoreError, match="This attempt committed nothing"):
        Job().run(checkpoint)
    engine.dispose()
    assert len(tries) > 1
    assert oracle.consistent(db, spec) == 0


@pytest.mark.parametrize(
    "silent",
    [
        pytest.param(False, id="refuses"),
        pytest.param(True, marks=pytest.mark.long, id="is silent"),
    ],
)
def test_a_run_that_is_asked_to_stop_does_not_wait_for_a_server(
    server: postgres.Server, spec: Spec, start: Start, db: Db, silent: bool
) -> None:
    # Signs of life are tried, too, each second.
    child: Child = start(replace(spec, seconds=0.2, claim_seconds=4.0))
    until("some are done", lambda: db.one("SELECT count(processed_at) FROM lessons"))
    server.stop()
    with contextlib.ExitStack() as there:
        if silent:  # it takes connections, and answers nothing
            address = "127.0.0.1", sa.make_url(db.url).port or 0
            there.enter_context(socket.create_server(address))
        until("it is waited for", lambda: "does not respond" in child.says())
        child.send(signal.SIGTERM)
        time.sleep(1.0)
        asked = time.monotonic()
        child.send(signal.SIGTERM)  # at once
        assert child.wait(90) == 75, child.says()
        assert time.monotonic() - asked < 45, child.says()
    server.start()
    before = oracle.consistent(db, spec)
    again = start(spec)
    assert again.wait() == 0, again.says()
    assert f"skipped {before} " in again.says()
    assert oracle.consistent(db, spec) == 200


def test_a_host_that_is_gone_without_a_word_is_noticed_soon(url: str) -> None:
    """Unless the URL says otherwise; the system itself takes hours."""
    found = []
    for each in (url, f"{url}?tcp_user_timeout=5000"):
        with contextlib.closing(Database(each)) as database, database.connect() as connection:
            driver: Any = connection.connection.dbapi_connection
            with socket.fromfd(driver.fileno(), socket.AF_INET, socket.SOCK_STREAM) as same:
                idle = same.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE)
                found.append((idle, same.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)))
    assert found == [(30, 60_000), (30, 5_000)]
