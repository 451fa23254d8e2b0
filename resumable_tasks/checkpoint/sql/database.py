"""The database connection: SQLAlchemy's engine, transactions, the clock, and error conversion."""

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
# A host that vanishes, such as in a failover, sends nothing. By the system's defaults that is
# noticed after minutes or hours. In seconds, the last one in milliseconds.
_LIBPQ = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}
# The longest time that a COMMIT may take, for example to wait for a replica, and the polling
# interval.
_OVER_SECONDS, _LOOK_SECONDS = 900.0, 0.1


class Database:
    """One database: PostgreSQL, or an SQLite file. Raises `UsageError` for any other.

    ``create``: create a missing SQLite file instead of raising, as for a typing error.
    """

    def __init__(self, given: Any, *, create: bool = False) -> None:
        if not isinstance(given, (str, sa.URL, sa.Engine)):
            raise UsageError(
                f"SqlCheckpoint: {type(given).__name__} is neither a URL nor a SQLAlchemy engine "
                "(instead of an async engine give its URL, as postgresql:// or sqlite:///)",
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
                    f"SqlCheckpoint supports PostgreSQL and SQLite, not {kind}",
                    remedy="Use one of these, or a checkpoint in a directory",
                )
            if url.get_dialect().is_async:
                raise UsageError(
                    f"SqlCheckpoint uses its database from threads, but {url.drivername} is for "
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
        # A given engine is disposed of by its owner.
        engine: sa.Engine | None = given if isinstance(given, sa.Engine) else None
        self._owned = self.sqlite or engine is None
        try:
            self._engine = (
                self._sqlite(url, engine, create) if self.sqlite else self._postgresql(url, engine)
            )
        except ImportError as error:
            install = INSTALL
            if error.name != "psycopg":
                install = f"write postgresql://, which uses psycopg 3, or install {error.name}"
            raise UsageError(
                f"{self.url} needs {error.name}, which is not installed",
                remedy=install,
            ) from None

    def _sqlite(self, url: sa.URL, given: sa.Engine | None, create: bool) -> sa.Engine:
        if url.database in (None, "", ":memory:") or "mode=memory" in str(url):
            raise UsageError("an in-memory database cannot be resumed; give SQLite a file")
        assert url.database is not None
        # SQLite would create an empty file. Its own URIs (file:…) are not checked.
        if not (create or url.database.startswith("file:") or os.path.exists(url.database)):
            raise UsageError(
                f"{self.url}: there is no such file",
                remedy="Fix the path, which is relative after three slashes: sqlite:///school.db",
            )
        # Our own engine, because transactions must begin as writers: SQLite refuses one that
        # becomes a writer later, instead of letting it wait, if another has written meanwhile.
        if given is None:
            engine: sa.Engine = sa.create_engine(url)
        elif isinstance(given.pool, (sa.QueuePool, sa.NullPool)):
            # Keeps the listeners of the given engine, such as for PRAGMA foreign_keys=ON.
            engine = sa.create_engine(url, pool=given.pool.recreate())
        else:
            raise self._one_connection(given)
        sa.event.listen(engine, "connect", _leave_transactions_to_us)
        sa.event.listen(engine, "begin", _begin)
        return engine

    def _one_connection(self, given: sa.Engine) -> UsageError:
        return UsageError(
            f"{self.url}: a run needs several connections, but the engine's "
            f"{type(given.pool).__name__} has one; create the engine without poolclass="
        )

    def _postgresql(self, url: sa.URL, given: sa.Engine | None) -> sa.Engine:
        if given is None:
            if url.drivername == "postgresql":
                url = url.set(drivername="postgresql+psycopg")
            given = sa.create_engine(url, pool_pre_ping=True, connect_args=_limits(url))
        elif isinstance(given.pool, (sa.StaticPool, sa.AssertionPool)):
            raise self._one_connection(given)
        # Ping ourselves if the engine's owner has not enabled it; new connections need none.
        self._ping = not isinstance(given.pool, sa.NullPool) and not given.pool._pre_ping
        # Claims depend on this level: after a wait for a row, the row is read again.
        return given.execution_options(isolation_level="READ COMMITTED")

    @property
    def now(self) -> Any:
        """The current time by the database's clock, in seconds since 1970."""
        if self.sqlite:
            return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0")
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    @property
    def plain(self) -> sa.Dialect:
        """The dialect for SQL that people read and `run` executes.

        The engine's own dialect doubles every percent sign, as its driver expects.
        """
        kind: Any = type(self._engine.dialect)
        plain: sa.Dialect = kind(paramstyle="named")
        return plain

    def run(self, many: Sequence[str], *, patience: int | None = None) -> None:
        """Run these statements in one transaction, all or none.

        ``patience``: the seconds that PostgreSQL waits for a lock. Short, since other users of the
        table must queue behind whoever waits for it.
        """
        with self.writing() as connection:
            if patience is not None and not self.sqlite:
                connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{patience:d}s'")
            connection = connection.execution_options(no_parameters=True)
            for each in many:
                connection.exec_driver_sql(each)

    def run_alone(self, statement: str) -> None:
        """Run this statement outside a transaction, as PostgreSQL demands for some."""
        with self.errors(), self._live() as connection:
            connection.execution_options(
                isolation_level="AUTOCOMMIT", no_parameters=True
            ).exec_driver_sql(statement)

    def connect(self) -> sa.Connection:
        """A live connection for transactions that write."""
        return self._live().execution_options(**{_WRITES: True})

    def _live(self) -> sa.Connection:
        """A connection that the server has not closed while idle."""
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
            # SQLAlchemy now knows of it, and takes no connection as old as this from the pool.
            connection = self._engine.connect()
        except BaseException:
            connection.close()
            raise
        return connection

    def in_transaction(self, connection: sa.Connection) -> bool:
        """False if a trigger or a constraint of SQLite has ended the whole transaction."""
        if not self.sqlite:
            return True
        driver: Any = connection.connection.dbapi_connection
        return bool(driver.in_transaction)

    def end_if_silent(self, connection: sa.Connection, seconds: float) -> int:
        """Let PostgreSQL end this transaction after this long without a statement.

        Otherwise a process that is suspended in the middle would block its rows for all others.
        Returns the transaction's number, for `has_landed`.
        """
        milliseconds = max(1, int(seconds * 1_000))
        found = connection.exec_driver_sql(
            f"SELECT set_config('idle_in_transaction_session_timeout', '{milliseconds}', true), "
            "txid_current()"
        )
        return int(found.one()[1])

    def ping(self) -> None:
        """Raise `StoreError` or `UsageError` if the database does not answer."""
        with self.reading() as connection:
            connection.exec_driver_sql("SELECT 1")

    def has_landed(self, number: int) -> bool | None:
        """Whether this transaction, whose connection was lost, was committed; None if unknown.

        On return the transaction has ended and released its locks: if it still waits for our next
        statement, this ends it.
        """
        # Does not end one that is committing. The view shows only the lower half of the number.
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
                return False  # lost in a crash of the server, so it was not committed durably
            time.sleep(_LOOK_SECONDS)
        return None

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction, committed at the end. Raises `StoreError` or `UsageError`."""
        with self.errors(), self.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads. Raises `StoreError` or `UsageError`."""
        with self.errors(), self._live() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn an error of the database into one of ours; nothing was committed.

        Raises `UsageError` if the error remains until somebody acts, else `StoreError`, with
        SQLAlchemy's error as ``__cause__``.
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
                    f"{self.url}: {first_line(error)}: a session holds the table; see "
                    "pg_stat_activity. This attempt committed nothing. Run the same command again"
                ) from error
            raise StoreError(
                f"{self.url}: {first_line(error)}. This attempt committed nothing; earlier commits "
                "are safe. Run the same command again"
            ) from error

    def close(self) -> None:
        if self._owned:
            self._engine.dispose()


def _limits(url: sa.URL) -> dict[str, int]:
    """Driver arguments, besides the URL, that make it notice a vanished host."""
    if url.get_driver_name() not in ("psycopg", "psycopg2"):
        return {}
    return {name: value for name, value in _LIBPQ.items() if name not in url.query}


def all_rows(connection: sa.Connection, query: sa.Select[Any]) -> list[dict[str, Any]]:
    """All rows of a query. Closes a query that fails midway, even if its error is kept.

    SQLite holds the lock of an open query, even after a rollback.
    """
    with connection.execute(query) as found:
        return [dict(row) for row in found.mappings()]


def first_line(error: BaseException) -> str:
    """The database's own message, without the statement and its parameters."""
    text = str(getattr(error, "orig", None) or error).strip()
    return without_secrets(text.splitlines()[0]) if text else type(error).__name__


def shown_url(url: sa.URL) -> str:
    """The URL without secrets, for display. Keeps the user name, which commands need."""
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
