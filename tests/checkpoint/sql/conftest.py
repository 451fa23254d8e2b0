from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("sqlalchemy")
import sqlalchemy as sa

from resumable_tasks import SqlCheckpoint
from resumable_tasks.checkpoint.sql import init
from resumable_tasks.checkpoint.sql.database import Database
from tests.checkpoint.sql import postgres


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    if postgres.programs() is None:
        pytest.skip(postgres.GET_IT)
    with postgres.server() as found:
        yield found.url


@pytest.fixture
def postgres_url(postgres_server: str) -> Iterator[str]:
    """A database of its own on the server."""
    with own_database(postgres_server) as found:
        yield found


@contextlib.contextmanager
def own_database(server: str) -> Iterator[str]:
    """A new database on the server, as long as this lasts; its URL."""
    name = f"test_{secrets.token_hex(4)}"
    maker = sa.create_engine(
        server + "postgres", isolation_level="AUTOCOMMIT", poolclass=sa.NullPool
    )
    with maker.connect() as connection:
        # Half the time, where the server knows it.
        copied = (connection.dialect.server_version_info or (0,)) >= (15,)
        how = "STRATEGY FILE_COPY" if copied else ""
        connection.exec_driver_sql(f"CREATE DATABASE {name} {how}")
    yield server + name
    with maker.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'test.db'}"
    found: str = request.getfixturevalue("postgres_url")
    return found


class Db:
    """The tests' own look at the database, by plain SQL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine = sa.create_engine(url, poolclass=sa.NullPool)

    def do(self, *statements: str) -> None:
        with self.engine.begin() as connection:
            for each in statements:
                connection.exec_driver_sql(each)

    def rows(self, query: str) -> list[Any]:
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.exec_driver_sql(query)]

    @contextlib.contextmanager
    def at_one_moment(self) -> Iterator[Callable[[str], list[Any]]]:
        """Several queries that see the database as it is now, whatever others do meanwhile."""
        level = "REPEATABLE READ" if self.engine.dialect.name == "postgresql" else "SERIALIZABLE"
        with self.engine.connect().execution_options(isolation_level=level) as connection:
            if self.engine.dialect.name == "sqlite":
                connection.exec_driver_sql("BEGIN")
            yield lambda query: [tuple(row) for row in connection.exec_driver_sql(query)]

    def one(self, query: str) -> Any:
        ((value,),) = self.rows(query)
        return value

    def make(self, count: int, *, columns: str = "label TEXT") -> None:
        """A table of lessons, numbered from 1."""
        self.do("CREATE TABLE lessons (id INTEGER PRIMARY KEY, text VARCHAR(40) NOT NULL)")
        if count:
            self.do(
                "INSERT INTO lessons (id, text) WITH RECURSIVE n(i) AS "
                f"(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
                "SELECT i, 'text ' || i FROM n"
            )
        if columns:
            self.do(f"ALTER TABLE lessons ADD COLUMN {columns}")

    def prepare(self, checkpoint: SqlCheckpoint) -> None:
        database = Database(checkpoint.database)
        try:
            init.apply(database, init.statements(database, checkpoint, {}))
        finally:
            database.close()


@pytest.fixture
def db(url: str) -> Db:
    return Db(url)


@pytest.fixture
def prepared(db: Db) -> Callable[..., SqlCheckpoint]:
    """A table of so many rows, and a checkpoint that is prepared for it."""

    def make(count: int, **named: Any) -> SqlCheckpoint:
        db.make(count)
        named = {"table": "lessons", "key": "id", **named}
        if not {"columns", "results_table", "shards"} & set(named):
            named["columns"] = ["label"]
        checkpoint = SqlCheckpoint(db.url, **named)
        db.prepare(checkpoint)
        return checkpoint

    return make
