"""The connection: SQLAlchemy's engine, transactions, the database's clock, and errors as ours."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from resumable_tasks.base.text import without_secrets
from resumable_tasks.checkpoint.sql.refusals import sqlstate
from resumable_tasks.checkpoint.sql.remedies import remedy
from resumable_tasks.checkpoint.sql.spec import INSTALL
from resumable_tasks.errors import StoreError, UsageError

_BUSY_SECONDS = 30
_IN_THE_FUTURE = "22023"
_LOCK_NOT_AVAILABLE = "55P03"
_WRITES = "resumable_tasks_writes"
# A host that is gone without a word, such as after a failover, answers nothing: left to the system
# that is noticed after minutes, or hours. In seconds, the last one in milliseconds.
_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# How long a COMMIT may take, such as one that waits for a replica, and how often it is looked at.
_OVER_SECONDS, _LOOK_SECONDS = 900.0, 0.1


class Database:
    """One database: PostgreSQL, or a file of SQLite. Raises `UsageError` for any other.

    ``create``: a file of SQLite that is not there is made, and not taken for a typing error.
    """

    def __init__(self, given: Any, *, create: bool = False) -> None:
        if not isinstance(given, (str, sa.URL, sa.Engine)):
            raise UsageError(
                f"SqlCheckpoint: {type(given).__name__} is neither a URL nor an engine of "
                "SQLAlchemy (instead of an async engine give its URL, as postgresql:// or "
                "sqlite:///)",
                remedy="Give a URL such as sqlite:///school.db or postgresql://host/database",
            )
        try:
            url = given.url if isinstance(given, sa.Engine) else sa.make_url(given)
            kind = url.get_backend_name()
            if kind == "postgres":
                url = url.set(drivername="postgresql")
                kind = "postgresql"
            if kind not in ("postgresql", "sqlite"):
                raise UsageError(
                    f"SqlCheckpoint knows PostgreSQL and SQLite, not {kind}",
                    remedy="Use one of these, or a checkpoint in a directory",
                )
            if url.get_dialect().is_async:
                raise UsageError(
                    f"SqlCheckpoint asks its database from threads, and {url.drivername} is for "
                    f"asyncio: write {kind}:// instead of {url.drivername}://"
                )
        except sa.exc.ArgumentError as error:
            raise UsageError(
                f"SqlCheckpoint: {without_secrets(str(error))}",
                remedy="Give a URL such as sqlite:///school.db or postgresql://host/database",
            ) from None
        self.sqlite = kind == "sqlite"
        self._ping = False
        self.url = shown_url(url)
        # An engine that was given is its owner's to dispose of.
        engine: sa.Engine | None = given if isinstance(given, sa.Engine) else None
        self._owned = self.sqlite or engine is None
        try:
            self._engine = (
                self._sqlite(url, engine, create) if self.sqlite else self._postgresql(url, engine)
            )
        except ImportError as error:
            install = INSTALL
            if error.name != "psycopg":
                install = f"write postgresql://, which takes psycopg 3, or install {error.name}"
            raise UsageError(
                f"{self.url} needs {error.name}, which is not installed",
                remedy=install,
            ) from None

    def _sqlite(self, url: sa.URL, given: sa.Engine | None, create: bool) -> sa.Engine:
        if url.database in (None, "", ":memory:") or "mode=memory" in str(url):
            raise UsageError("a database in memory cannot be resumed; give SQLite a file")
        assert url.database is not None
        # SQLite would make an empty one. The names of its URIs (file:…) are its own affair.
        if not (create or url.database.startswith("file:") or os.path.exists(url.database)):
            raise UsageError(
                f"{self.url}: there is no such file",
                remedy="Correct the path, which is relative after three slashes: sqlite:///school.db",
            )
        # Of our own, since its transactions have to begin as writers: one that becomes a
        # writer later is refused, and not made to wait, if another has written meanwhile.
        if given is None:
            engine: sa.Engine = sa.create_engine(url)
        elif isinstance(given.pool, (sa.QueuePool, sa.NullPool)):
            # With the listeners of the given one, such as for PRAGMA foreign_keys=ON.
            engine = sa.create_engine(url, pool=given.pool.recreate())
        else:
            raise self._one_connection(given)
        sa.event.listen(engine, "connect", _leave_transactions_to_us)
        sa.event.listen(engine, "begin", _begin)
        return engine

    def _one_connection(self, given: sa.Engine) -> UsageError:
        return UsageError(
            f"{self.url}: a run takes several connections, and the engine's "
            f"{type(given.pool).__name__} has one; make it without poolclass="
        )

    def _postgresql(self, url: sa.URL, given: sa.Engine | None) -> sa.Engine:
        if given is None:
            if url.drivername == "postgresql":
                url = url.set(drivername="postgresql+psycopg")
            given = sa.create_engine(url, pool_pre_ping=True, connect_args=_limits(url))
        elif isinstance(given.pool, (sa.StaticPool, sa.AssertionPool)):
            raise self._one_connection(given)
        # The engine's owner may not have asked for it; a connection that is new needs none.
        self._ping = not isinstance(given.pool, sa.NullPool) and not given.pool._pre_ping
        # Where a row that was waited for is looked at again: claims depend on it.
        return given.execution_options(isolation_level="READ COMMITTED")

    @property
    def now(self) -> Any:
        """Seconds since 1970 by the database's clock, as it runs."""
        if self.sqlite:
            return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0")
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    @property
    def plain(self) -> sa.Dialect:
        """The dialect for SQL as people read it, and `run` takes it.

        The engine's own doubles every percent sign, for its driver to take one away again.
        """
        kind: Any = type(self._engine.dialect)
        plain: sa.Dialect = kind(paramstyle="named")
        return plain

    def run(self, many: Sequence[str], *, patience: int | None = None) -> None:
        """Run these statements in one transaction, all or none.

        ``patience``: the seconds in which PostgreSQL is to get a lock. Others who want the table
        have to wait behind whoever waits for it.
        """
        with self.writing() as connection:
            if patience is not None and not self.sqlite:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{patience:d}s'")
            connection = connection.execution_options(no_parameters=True)
            for each in many:
                connection.exec_driver_sql(each)

    def run_alone(self, statement: str) -> None:
        """Run this statement in no transaction: PostgreSQL has some that are in none."""
        with self.errors(), self._live() as connection:
            connection.execution_options(
                isolation_level="AUTOCOMMIT", no_parameters=True
            ).exec_driver_sql(statement)

    def connect(self) -> sa.Connection:
        """A connection that is alive, whose transactions write."""
        return self._live().execution_options(**{_WRITES: True})

    def _live(self) -> sa.Connection:
        """A connection that the server has not closed while it was idle."""
        connection = self._engine.connect()
        if not self._ping:
            return connection
        try:
            connection.exec_driver_sql("SELECT 1")
            connection.rollback()
        except sa.exc.DBAPIError as error:
            connection.close()
            if not error.connection_invalidated:
                raise
            # SQLAlchemy has seen it, and takes none from the pool that is as old.
            connection = self._engine.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def in_transaction(self, connection: sa.Connection) -> bool:
        """False where a trigger or a constraint of SQLite has ended the whole transaction."""
        if not self.sqlite:
            return True
        driver: Any = connection.connection.dbapi_connection
        return bool(driver.in_transaction)

    def end_if_silent(self, connection: sa.Connection, seconds: float) -> int:
        """Have PostgreSQL end this transaction if we say nothing in it for so long.

        A process that is stopped in the middle would keep all others from its rows. Returns the
        transaction's number, by which `has_landed` knows it.
        """
        milliseconds = max(1, int(seconds * 1_000))
        found = connection.exec_driver_sql(
            f"SELECT set_config('idle_in_transaction_session_timeout', '{milliseconds}', true), "
            "txid_current()"
        )
        return int(found.one()[1])

    def ping(self) -> None:
        """Raises `StoreError` or `UsageError` if the database does not answer."""
        with self.reading() as connection:
            connection.exec_driver_sql("SELECT 1")

    def has_landed(self, number: int) -> bool | None:
        """Whether this transaction, whose connection was lost, was committed; None if not known.

        It is over on return, with all its locks: where it waits for us, who are gone, it is ended.
        """
        # Not one that is committing. Of the number the server shows the lower half there.
        waits = sa.text(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE "
            "backend_xid = CAST(CAST(:half AS text) AS xid) AND state LIKE 'idle in transaction%'"
        ).bindparams(half=str(number & 0xFFFFFFFF))
        until = time.monotonic() + _OVER_SECONDS
        while time.monotonic() < until:
            try:
                with self.reading() as connection:
                    found = connection.exec_driver_sql(f"SELECT txid_status({number})").scalar_one()
                    if found != "in progress":
                        return {"committed": True, "aborted": False}.get(found)
                    connection.execute(waits)
            except StoreError as error:
                cause = error.__cause__
                if not isinstance(cause, sa.exc.DBAPIError) or sqlstate(cause) != _IN_THE_FUTURE:
                    raise
                return False  # a crash of the server has taken it: no commit was durable
            time.sleep(_LOOK_SECONDS)
        return None

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end. Raises `StoreError` or `UsageError`."""
        with self.errors(), self.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads. Raises `StoreError` or `UsageError`."""
        with self.errors(), self._live() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """An error of the database becomes one of ours: nothing was committed.

        A `UsageError` where it stays until somebody has done something, else a `StoreError`.
        SQLAlchemy's is its ``__cause__``.
        """
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            said = getattr(error, "orig", None)
            what = remedy(said, sqlite=self.sqlite)
            if what is not None:
                raise UsageError(f"{self.url}: {first_line(error)}", remedy=what) from error
            if getattr(said, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise StoreError(
                    f"{self.url}: {first_line(error)}: a session holds the table, see "
                    "pg_stat_activity. Nothing was committed by this. Run the same command again"
                ) from error
            raise StoreError(
                f"{self.url}: {first_line(error)}. Nothing was committed by this; what was "
                "committed before stands. Run the same command again"
            ) from error

    def close(self) -> None:
        if self._owned:
            self._engine.dispose()


def _limits(url: sa.URL) -> dict[str, int]:
    """What is to be said to the driver besides the URL, so that a host that is gone is noticed."""
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    return {name: value for name, value in _LIBPQ.items() if name not in url.query}


def all_rows(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """Return all rows of a query. One that fails midway is closed, even if its error is kept.

    SQLite keeps the lock of a query that is open, also after a rollback.
    """
    with connection.execute(query) as found:
        return [dict(row) for row in found.mappings()]


def first_line(error: BaseException) -> str:
    """The database's own words, without the statement and its parameters."""
    text = str(getattr(error, "orig", None) or error).strip()
    return without_secrets(text.splitlines()[0]) if text else type(error).__name__


def shown_url(url: sa.URL) -> str:
    """The URL as it may be shown. The name of the user stays: commands need it."""
    user, url = url.username, url.set(username=None, password=None)
    shown = without_secrets(url.render_as_string())
    return shown.replace("://", f"://{user}@", 1) if user else shown


def _leave_transactions_to_us(connection: Any, _: object) -> None:
    connection.isolation_level = None
    cursor = connection.cursor()
    (milliseconds,) = cursor.execute("PRAGMA busy_timeout").fetchone()
    cursor.execute(f"PRAGMA busy_timeout = {max(milliseconds, _BUSY_SECONDS * 1_000)}")
    cursor.close()


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
