"""What `Database` takes, and what it says of what never fixes itself."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import create_async_engine

from resumable_tasks import SqlCheckpoint, StoreError, UsageError, resumable_task
from resumable_tasks.checkpoint.sql.database import Database
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]


@resumable_task(name="label", batch_size=20)
def label(rows: Rows) -> Rows:
    return [{"id": row["id"], "label": row["text"].upper()} for row in rows]


def ask(given: Any, statement: str = "SELECT 1", *, write: bool = False) -> Any:
    database = Database(given)
    try:
        with database.writing() if write else database.reading() as connection:
            result = connection.exec_driver_sql(statement)
            return result.scalar() if result.returns_rows else None
    finally:
        database.close()


@pytest.mark.parametrize(
    "name", ["postgresql+asyncpg", "postgresql+psycopg_async", "sqlite+aiosqlite"]
)
def test_urls_for_asyncio_are_refused_with_what_to_write(name: str) -> None:
    plain = name.partition("+")[0]
    url = f"{name}:////tmp/shop.db" if plain == "sqlite" else f"{name}://localhost/shop"
    for given in (url, create_async_engine(url).sync_engine):
        with pytest.raises(UsageError, match=f"write {plain}:// instead of"):
            Database(given)
    with pytest.raises(UsageError, match="instead of an async engine give its URL"):
        Database(create_async_engine(url))


def test_a_driver_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "psycopg2", None)
    with pytest.raises(UsageError, match=r"write postgresql://, .* or install psycopg2"):
        Database("postgresql+psycopg2://localhost/shop")
    with pytest.raises(UsageError, match="supports PostgreSQL and SQLite, not mysql"):
        Database("mysql://localhost/shop")
    with pytest.raises(UsageError, match=r"postgresql\.nothing"):
        Database("postgresql+nothing://localhost/shop")


@pytest.mark.parametrize(
    ("change", "statement", "what"),
    [
        ({"database": "nothing"}, "SELECT 1", "There is no such database"),
        ({"username": "nobody"}, "SELECT 1", "Fix the user or the password"),
        ({}, "SELECT nothing FROM pg_class", "Fix what the message names"),
        ({}, "SELECT * FROM nothing", "Fix what the message names"),
        ({}, "SET TRANSACTION READ ONLY; CREATE TABLE t ()", "The database is read-only here"),
        ({"username": "guest"}, "SELECT * FROM lessons", "GRANT this user"),
        ({"username": "guest"}, "CREATE TABLE nothing.t ()", "There is no such schema"),
    ],
)
def test_what_never_mends_itself_on_postgresql(
    postgres_url: str, change: dict[str, str], statement: str, what: str
) -> None:
    db = Db(postgres_url)
    db.make(1)
    db.do("DO 'BEGIN CREATE ROLE guest LOGIN; EXCEPTION WHEN duplicate_object THEN END'")
    with pytest.raises(UsageError, match=what) as error:
        ask(sa.make_url(postgres_url).set(**change), statement, write=True)
    assert "Run the same command again" not in str(error.value)
    assert isinstance(error.value.__cause__, sa.exc.DBAPIError)


def test_a_password_that_is_wrong() -> None:
    """As psycopg says it, which has no SQLSTATE for a connection that did not come about."""
    database = Database("postgresql://localhost/shop")
    said = (
        'connection failed: connection to server at "127.0.0.1", port 5432 failed: '
        'FATAL:  password authentication failed for user "shop"'
    )
    with pytest.raises(UsageError, match="Fix the user or the password"), database.errors():
        raise sa.exc.OperationalError(None, None, Exception(said))
    with pytest.raises(StoreError, match="Run the same command again"), database.errors():
        raise sa.exc.OperationalError(None, None, Exception("connection failed: refused"))


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("SELECT nothing FROM lessons", "Fix what the message names"),
        ("SELECT * FROM nothing", "Fix what the message names"),
        ("SELECT * FROM lessons WHERE", "Fix what the message names"),
        ("UPDATE lessons SET id = 1", "The database is read-only here"),
    ],
)
def test_what_never_mends_itself_on_sqlite(tmp_path: Path, statement: str, what: str) -> None:
    path = tmp_path / "test.db"
    db = Db(f"sqlite:///{path}")
    db.make(1)
    url = f"sqlite:///file:{path}?mode=ro&uri=true" if "UPDATE" in statement else db.url
    with pytest.raises(UsageError, match=what):
        ask(url, statement)


def test_a_file_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "thesis.txt"
    path.write_text("all of it" * 100)
    with pytest.raises(UsageError, match="names another kind of file"):
        ask(f"sqlite:///{path}", "SELECT * FROM sqlite_schema")


def test_what_may_mend_itself_is_to_be_run_again(
    db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db.make(1)
    statement = "SELECT pg_terminate_backend(pg_backend_pid())"
    if db.url.startswith("sqlite"):
        monkeypatch.setattr("resumable_tasks.checkpoint.sql.database._BUSY_SECONDS", 0)
        other = sqlite3.connect(tmp_path / "test.db")
        other.execute("BEGIN EXCLUSIVE")
        statement = "SELECT 1"
    engine = sa.create_engine(
        db.url, connect_args={"timeout": 0} if db.url.startswith("sqlite") else {}
    )
    with pytest.raises(StoreError, match="Run the same command again"):
        ask(engine, statement, write=True)
    if db.url.startswith("sqlite"):
        other.close()


def test_listeners_of_a_given_engine_of_sqlite_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    db = Db(f"sqlite:///{tmp_path / 'test.db'}")
    db.make(40)
    db.do("CREATE TABLE notes (id INTEGER REFERENCES lessons (id), note TEXT)")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="notes")
    db.prepare(checkpoint)
    engine = sa.create_engine(db.url)

    @sa.event.listens_for(engine, "connect")
    def strict(connection: Any, _: Any) -> None:
        connection.execute("PRAGMA foreign_keys = ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN")  # as SQLAlchemy's documentation has it

    assert ask(engine, "PRAGMA foreign_keys") == 1
    assert ask(engine, "PRAGMA busy_timeout") == 30_000
    assert ask(db.url, "PRAGMA foreign_keys") == 0
    given = SqlCheckpoint(engine, table="lessons", key="id", results_table="notes")

    @resumable_task(batch_size=20, results="many", tolerated_failures=1.0)
    def note(rows: Rows) -> Rows:
        return [{"id": row["id"], "note": "x"} for row in rows]

    assert note.run(checkpoint=given).completed == 40
    # Ours has a pool of its own, and the given one goes on as it was.
    with engine.begin() as connection:
        assert connection.exec_driver_sql("PRAGMA busy_timeout").scalar() == 5_000
    engine.dispose()


def test_an_engine_of_one_connection_is_refused(tmp_path: Path) -> None:
    Db(f"sqlite:///{tmp_path / 'test.db'}").make(1)
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'test.db'}", poolclass=sa.StaticPool)
    with pytest.raises(UsageError, match="create the engine without poolclass="):
        Database(engine)
    memory = sa.create_engine("sqlite://", creator=lambda: sqlite3.connect(":memory:"))
    with pytest.raises(UsageError, match="in-memory database cannot be resumed"):
        Database(memory)


def test_keys_that_are_domains(postgres_url: str) -> None:
    db = Db(postgres_url)
    db.do(
        "CREATE DOMAIN word AS VARCHAR(40) CHECK (VALUE <> '')",
        "CREATE DOMAIN short_word AS word",
        "CREATE DOMAIN mark AS UUID",
        "CREATE TABLE lessons (id short_word, mark mark, text TEXT, label TEXT, "
        "PRIMARY KEY (id, mark))",
        "INSERT INTO lessons SELECT 'l' || n, gen_random_uuid(), 'text' "
        "FROM generate_series(1, 60) n",
        "CREATE DOMAIN day AS DATE",
        "CREATE TABLE days (day day NOT NULL PRIMARY KEY)",
        "CREATE TYPE colour AS ENUM ('red')",
        "CREATE TABLE colours (name colour NOT NULL PRIMARY KEY)",
    )
    checkpoint = SqlCheckpoint(db.url, table="lessons", key=("id", "mark"), columns=["label"])
    db.prepare(checkpoint)

    def work(rows: Rows) -> Rows:
        return [{"id": row["id"], "mark": row["mark"], "label": "x"} for row in rows]

    assert resumable_task(work, batch_size=20).run(checkpoint=checkpoint).completed == 60
    with pytest.raises(UsageError, match="a key must be text, an integer or a UUID"):
        db.prepare(SqlCheckpoint(db.url, table="days", key="day"))
    with pytest.raises(UsageError, match="of type ENUM; a key must be text"):
        db.prepare(SqlCheckpoint(db.url, table="colours", key="name"))
