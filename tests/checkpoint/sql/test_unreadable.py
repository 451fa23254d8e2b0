"""Rows that cannot be read, or be taken, however long one waits: the run ends and names them."""

from __future__ import annotations

import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from resumable_tasks import SqlCheckpoint, UsageError, resumable_task
from resumable_tasks.checkpoint.sql import claims
from resumable_tasks.checkpoint.sql.database import Database
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]
Prepared = Callable[..., SqlCheckpoint]


@resumable_task(name="label", batch_size=10, concurrency=1)
def label(rows: Rows) -> Rows:
    return [{"id": row["id"], "label": "x"} for row in rows]


@pytest.mark.sample(one_in=2)
@pytest.mark.parametrize("kind", ["DATE", "TIMESTAMP WITH TIME ZONE"])
def test_a_date_that_python_has_not(postgres_url: str, kind: str) -> None:
    db = Db(postgres_url)
    db.make(40, columns="label TEXT")
    db.do(f"ALTER TABLE lessons ADD until {kind}")
    db.do("UPDATE lessons SET until = 'infinity' WHERE id = 25")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    with pytest.raises(UsageError, match="row 25 of table lessons cannot be read") as caught:
        label.run(checkpoint=checkpoint)
    assert "column 'until'" in str(caught.value)
    without = SqlCheckpoint(
        db.url, table="lessons", key="id", columns=["label"], where="until IS NULL"
    )
    label.run(checkpoint=without)
    assert db.one("SELECT count(*) FROM lessons WHERE label = 'x'") == 39


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("DATETIME", "'not a date'"),
        ("DATE", "1234567"),
        ("DECIMAL(10, 2)", "'abc'"),
        ("TEXT", "CAST(x'ff' AS TEXT)"),
    ],
)
@pytest.mark.parametrize("place", ["columns", "shards"])
def test_a_value_that_sqlite_did_not_check(
    tmp_path: Path, kind: str, value: str, place: str
) -> None:
    db = Db(f"sqlite:///{tmp_path / 'test.db'}")
    db.make(40, columns="label TEXT")
    db.do(f"ALTER TABLE lessons ADD odd {kind}", f"UPDATE lessons SET odd = {value} WHERE id = 25")
    more: dict[str, Any] = {place: ["label"] if place == "columns" else tmp_path / "shards"}
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", **more)
    db.prepare(checkpoint)
    with pytest.raises(UsageError, match=r"row 25 of table lessons cannot be read.*'odd'"):
        label.run(checkpoint=checkpoint)


@pytest.mark.parametrize("value", ["1234567", "CAST(x'ff' AS TEXT)"])
def test_a_row_that_cannot_be_read_keeps_no_lock(tmp_path: Path, value: str) -> None:
    """What was handled meanwhile could not be committed, and was lost after thirty seconds."""
    db = Db(f"sqlite:///{tmp_path / 'test.db'}")
    db.make(40, columns="label TEXT")
    db.do("ALTER TABLE lessons ADD odd DATE", f"UPDATE lessons SET odd = {value} WHERE id = 25")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    refused: list[str] = []

    @resumable_task(name="label", batch_size=10, concurrency=1)
    def slow(rows: Rows) -> Rows:
        if any(row["id"] == 1 for row in rows):
            time.sleep(1)  # until the page with the row has been read
            with closing(sqlite3.connect(tmp_path / "test.db", timeout=0)) as other:
                try:
                    other.execute("UPDATE lessons SET label = 'free' WHERE id = 40")
                    other.commit()
                except sqlite3.OperationalError as error:
                    refused.append(str(error))
        return [{"id": row["id"], "label": "x"} for row in rows]

    with pytest.raises(UsageError, match="row 25 of table lessons cannot be read"):
        slow.run(checkpoint=checkpoint)
    assert refused == []
    assert db.one("SELECT label FROM lessons WHERE id = 1") == "x"


@pytest.fixture
def other_user(postgres_url: str) -> Iterator[str]:
    """The URL for a user whom the policies of tables hold for."""
    db = Db(postgres_url)
    db.do("CREATE ROLE reader LOGIN")
    yield postgres_url.replace("tests@", "reader@")
    db.do("DROP OWNED BY reader", "DROP ROLE reader")


def test_rows_that_a_policy_shows_and_does_not_give(postgres_url: str, other_user: str) -> None:
    """They were waited for without an end."""
    db = Db(postgres_url)
    db.make(40)
    db.prepare(SqlCheckpoint(db.url, table="lessons", key="id"))
    db.do(
        "GRANT ALL ON ALL TABLES IN SCHEMA public TO reader",
        "ALTER TABLE lessons ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY all_seen ON lessons FOR SELECT USING (true)",
        "CREATE POLICY half_written ON lessons FOR UPDATE USING (mod(id, 2) = 0)",
    )
    given = SqlCheckpoint(other_user, table="lessons", key="id", columns=["label"])
    with pytest.raises(UsageError, match="row 1 of table lessons can be read but not locked"):
        label.run(checkpoint=given)
    half = SqlCheckpoint(
        other_user, table="lessons", key="id", columns=["label"], where="id % 2 = 0"
    )
    label.run(checkpoint=half)
    assert db.rows("SELECT DISTINCT mod(id, 2) FROM lessons WHERE label = 'x'") == [(0,)]


def test_it_is_said_whom_a_run_waits_for(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(claims, "_WARN_EVERY", 0.2)
    db = Db(postgres_url)
    db.make(40)
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    with db.engine.connect() as idle:
        idle.exec_driver_sql("SELECT 1 FROM lessons WHERE id = 7 FOR UPDATE")

        def let_go() -> None:
            deadline = time.monotonic() + 60
            while "(such as 7)" not in caplog.text and time.monotonic() < deadline:
                time.sleep(0.05)
            idle.rollback()

        release = threading.Thread(target=let_go)
        release.start()
        run = label.run(checkpoint=checkpoint)
        release.join()
    assert run.completed == 40
    assert "locked by another database session (such as 7)" in caplog.text


@pytest.mark.parametrize("pool", [sa.StaticPool, sa.AssertionPool])
def test_an_engine_of_one_connection_is_refused(postgres_url: str, pool: type[sa.Pool]) -> None:
    engine = sa.create_engine(postgres_url, poolclass=pool)
    with pytest.raises(UsageError, match="create the engine without poolclass="):
        Database(engine)


def test_a_strict_table_of_sqlite(tmp_path: Path) -> None:
    db = Db(f"sqlite:///{tmp_path / 'test.db'}")
    db.do(
        'CREATE TABLE "my lessons" (id INTEGER PRIMARY KEY) STRICT',
        'INSERT INTO "my lessons" VALUES (1), (2)',
    )
    checkpoint = SqlCheckpoint(db.url, table="my lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    assert label.run(checkpoint=checkpoint).completed == 2


def test_results_that_are_in_another_directory(
    prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A run says done, and its directory has none of what was done with another."""
    checkpoint = prepared(40, shards=tmp_path / "one")
    label.run(checkpoint=checkpoint)
    label.run(checkpoint=checkpoint)
    assert "are marked done, but" not in caplog.text
    other = SqlCheckpoint(checkpoint.database, table="lessons", key="id", shards=tmp_path / "two")
    label.run(checkpoint=other)
    assert "40 rows of" in caplog.text
    assert "two has only 0: the others have no results there" in caplog.text


def test_a_type_that_sqlalchemy_does_not_know(postgres_url: str) -> None:
    db = Db(postgres_url)
    db.make(2)
    db.do("ALTER TABLE lessons ADD place POINT")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    with warnings.catch_warnings():
        warnings.simplefilter("error", sa.exc.SAWarning)
        db.prepare(checkpoint)
        assert label.run(checkpoint=checkpoint).completed == 2
