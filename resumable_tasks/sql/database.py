"""The connection: SQLAlchemy's engine, transactions, the database's clock, and errors as ours."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from resumable_tasks.errors import StoreError, UsageError

if TYPE_CHECKING:
    import sqlalchemy as sa
    from sqlalchemy import Engine

INSTALL = 'pip install "resumable-tasks[sql]"'
_BUSY_SECONDS = 30
_WRITES = "resumable_tasks_writes"


def require() -> Any:
    """The module ``sqlalchemy``. Raises `UsageError` with what installs it."""
    try:
        import sqlalchemy
    except ImportError:
        raise UsageError(f"SqlCheckpoint needs SQLAlchemy: {INSTALL}") from None
    return sqlalchemy


class Database:
    """One database: PostgreSQL, or a file of SQLite. Raises `UsageError` for any other."""

    def __init__(self, given: Any) -> None:
        sa = require()
        if not isinstance(given, (str, sa.URL, sa.Engine)):
            raise UsageError(
                f"SqlCheckpoint: {type(given).__name__} is neither a URL nor an engine of "
                "SQLAlchemy (an async engine has one in its .sync_engine)"
            )
        try:
            url = given.url if isinstance(given, sa.Engine) else sa.make_url(given)
        except sa.exc.ArgumentError as error:
            raise UsageError(f"SqlCheckpoint: {error}") from None
        kind = url.get_backend_name()
        if kind == "postgres":
            url = url.set(drivername="postgresql+psycopg")
            kind = "postgresql"
        if kind not in ("postgresql", "sqlite"):
            raise UsageError(f"SqlCheckpoint knows PostgreSQL and SQLite, not {kind}")
        self.sqlite = kind == "sqlite"
        self.url = url.render_as_string(hide_password=True)
        # An engine that was given is its owner's to dispose of.
        self._owned = self.sqlite or not isinstance(given, sa.Engine)
        try:
            self._engine = self._make(url, given)
        except ImportError as error:
            raise UsageError(f"{self.url} needs {error.name}: {INSTALL}") from None

    def _make(self, url: Any, given: Any) -> sa.Engine:
        sa = require()
        if self.sqlite:
            if url.database in (None, "", ":memory:") or "mode=memory" in str(url):
                raise UsageError("a database in memory cannot be resumed; give SQLite a file")
            # Of our own, since its transactions have to begin as writers: one that becomes a
            # writer later is refused, and not made to wait, if another has written meanwhile.
            engine: Engine = sa.create_engine(url, connect_args={"timeout": _BUSY_SECONDS})
            sa.event.listen(engine, "connect", _leave_transactions_to_us)
            sa.event.listen(engine, "begin", _begin)
            return engine
        if self._owned:
            if url.drivername == "postgresql":
                url = url.set(drivername="postgresql+psycopg")
            given = sa.create_engine(url, pool_pre_ping=True)
        # Where a row that was waited for is looked at anew: claims depend on it.
        found: Engine = given.execution_options(isolation_level="READ COMMITTED")
        return found

    @property
    def now(self) -> Any:
        """Seconds since 1970 by the database's clock, as it runs."""
        sa = require()
        if self.sqlite:
            return sa.literal_column("(julianday('now') - 2440587.5) * 86400.0")
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    def connect(self) -> sa.Connection:
        """A connection whose transactions write."""
        connection: sa.Connection = self._engine.connect()
        return connection.execution_options(**{_WRITES: True})

    @contextmanager
    def writing(self) -> Iterator[sa.Connection]:
        """A transaction that is committed at the end. Raises `StoreError`."""
        with self.errors(), self.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def reading(self) -> Iterator[sa.Connection]:
        """A transaction that only reads. Raises `StoreError`."""
        with self.errors(), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def errors(self) -> Iterator[None]:
        """An error of the database becomes a `StoreError`: nothing was committed."""
        sa = require()
        try:
            yield
        except sa.exc.SQLAlchemyError as error:
            raise StoreError(
                f"{self.url}: {first_line(error)}. Nothing was committed by this; what was "
                "committed before stands. Run the same command again"
            ) from error

    def close(self) -> None:
        if self._owned:
            self._engine.dispose()


def first_line(error: BaseException) -> str:
    """What the database said, without the statement and its parameters."""
    text = str(getattr(error, "orig", None) or error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _leave_transactions_to_us(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
