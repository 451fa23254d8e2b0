"""Claims: a run takes rows for itself page by page, and keeps them by its heartbeat.

A claim is a row of the claims table that names a run. It is valid while that run is alive, by the
database's clock. A commit deletes its claims in the same transaction; if a claim is gone, another
run has taken the row, and nothing of that row is committed.

Every driver locks item rows before claims, so that two drivers cannot wait for each other.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.outage import Outage
from resumable_tasks.checkpoint.sql.absence import Absence, Patience, sleep
from resumable_tasks.checkpoint.sql.database import Database, all_rows, first_line
from resumable_tasks.checkpoint.sql.refusals import is_locked, is_lost
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.checkpoint.sql.unreadable import is_of_the_driver, unreadable
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.items.keys import shown

Row = dict[str, Any]
T = TypeVar("T")

_LONGEST_POLL = 1.0
_WARN_EVERY = 10.0
# Seconds between heartbeats while the database is away: see `Absence.seconds_for_others`.
_AGAIN_SECONDS = 1.0
# The approximate limit of a page, which has at least one batch.
_PAGE_BYTES = 4_000_000


class Claims:
    """The rows that are left for this run, in pages. Waits for a database that is away.

    A page has a multiple of ``batch_size`` rows, at most ``most``. ``set_aside`` are the conditions
    under which a row is not set aside. ``shared``: other runs may be active, so rows are claimed.
    """

    def __init__(
        self,
        database: Database,
        tables: Tables,
        run: str,
        batch_size: int,
        most: int,
        set_aside: list[Any],
        *,
        patience: Patience,
        shared: bool,
    ) -> None:
        self._database = database
        self._tables = tables
        self.spec = tables.spec
        self._run = run
        self._batch_size, self._most = batch_size, most
        # One batch, until the size of rows is known.
        self._page = batch_size
        self.row_bytes = 0.0
        self._patience = patience
        self._shared = shared
        self._poll = min(_LONGEST_POLL, tables.spec.claim_seconds / 4)
        self._left = [tables.undone, *tables.considered, *set_aside]
        self.stop: Callable[[], bool] = lambda: False
        self.before_waiting: Callable[[], None] = lambda: None
        self.cut_short = False
        """Whether the pages ended because of ``stop``, although rows are left."""

    def pages(self) -> Iterator[list[Row]]:
        """Yield pages of rows in the key's order, claimed for this run if it is `shared`.

        Yields an empty page after each look that finds all remaining rows claimed by others. Ends
        when only rows that this run has had are left.
        """
        try:
            yield from self._pages()
        except StoreError as error:
            if not (is_lost(error) and self.stop()):
                raise
            self.cut_short = True  # rows may be left; the database does not tell

    def through(self, work: Callable[[], T]) -> T:
        """Call ``work``, which only reads, once the database answers, and return its result."""
        return self._patience.through(work, self.stop)

    def _once_back(self, work: Callable[[], T]) -> T:
        """As `through`, for a step of larger work: its success does not restart the patience."""
        return Patience(self._patience.absence).through(work, self.stop)

    def _pages(self) -> Iterator[list[Row]]:
        after: Any = None
        waiting = False
        warn_at = 0.0
        while True:
            if self.stop():
                if self._shared:
                    self.cut_short = self.through(self._others_have_some)
                else:
                    self.cut_short = bool(self._next(after)[0])
                return
            rows, last = self._next(after)
            if rows:
                self._measure(rows)
                after, waiting = last, False
                yield rows
            elif last is not None:
                after = last  # others have claimed this page first
            elif not self._shared:
                return
            elif after is not None:
                after = None  # from the beginning again, for rows that were given back meanwhile
            elif not self.through(self._others_have_some):
                return
            else:
                self.through(self.before_waiting)
                if not waiting:
                    log.info(
                        "the remaining rows are claimed by other runs or locked by another "
                        "database session; waiting for them"
                    )
                    waiting = True
                    warn_at = time.monotonic() + _WARN_EVERY
                yield []
                locked = self.through(self._locked)
                if locked is not None and time.monotonic() >= warn_at:
                    log.warning(
                        "rows of %s are locked by another database session (such as %r); waiting "
                        "for it. pg_stat_activity shows which sessions are active or idle in a "
                        "transaction",
                        self._tables.spec.table,
                        locked,
                    )
                    warn_at = time.monotonic() + _WARN_EVERY
                time.sleep(self._poll)

    def _next(self, after: Any) -> tuple[list[Row], Any]:
        """The next page, and the last key that was looked at, which is None at the end."""
        tables = self._tables
        query = sa.select(tables.items).where(*self._left)
        if after is not None:
            query = query.where(tables.after(after))
        query = query.order_by(*tables.key).limit(self._page)
        try:
            return self._unlocked(query)
        except (ArithmeticError, TypeError, ValueError, StoreError) as error:
            if isinstance(error, StoreError) and not is_of_the_driver(error):
                raise
            found = unreadable(self._database, tables, query)
            if found is None:
                raise
            raise found from error

    def _unlocked(self, query: sa.Select[Any]) -> tuple[list[Row], Any]:
        """`_fetched`, repeated after a deadlock with another driver and after a lost connection."""
        while True:
            try:
                return self._fetched(query)
            except StoreError as error:
                if is_lost(error):
                    self._patience.wait(error, self.stop)
                    self._once_back(self._database.ping)
                    continue
                if not self._shared or not is_locked(error) or self.stop():
                    raise
                said = first_line(error.__cause__ or error)
                log.warning("no rows could be claimed (%s); trying again", said)

    def _fetched(self, query: sa.Select[Any]) -> tuple[list[Row], Any]:
        tables = self._tables
        if not self._shared:
            with self._database.reading() as connection:
                rows = all_rows(connection, query)
            return rows, self._key(rows[-1]) if rows else None
        query = query.where(~self._claimed(tables.items)).with_for_update(
            skip_locked=True, of=tables.items
        )
        sleep(self._patience.absence.seconds_for_others, self.stop)
        number: int | None = None
        try:
            with self._database.writing() as connection:
                number = self._database.end_if_silent(connection, tables.spec.claim_seconds)
                rows = all_rows(connection, query)
                last = self._key(rows[-1]) if rows else None
                tables.refuse_twice([self._key(row) for row in rows])
                taken = self._take(connection, rows) if rows else set()
        except StoreError as error:
            # If the claims were committed, this run would skip their rows as rows it has had.
            if not (is_lost(error) and number is not None and self._have_landed(number, error)):
                raise
        self._patience.over()
        fault_point("sql.claimed")
        return [row for row in rows if self._key(row) in taken], last

    def _have_landed(self, number: int, error: StoreError) -> bool:
        """True if this transaction, whose connection was lost by this error, was committed."""
        landed = self._once_back(partial(self._database.has_landed, number))
        if landed is None:
            raise StoreError(
                f"{self._tables.url} no longer knows which rows this run has claimed: "
                f"{first_line(error.__cause__ or error)}. Earlier commits are safe",
                remedy="Run the same command again",
            ) from None
        return landed

    def _measure(self, rows: list[Row]) -> None:
        """Choose the size of the next pages from these rows."""
        found = sum(
            len(value) for row in rows for value in row.values() if isinstance(value, (str, bytes))
        )
        self.row_bytes = found / len(rows)
        fit = int(min(self._most, _PAGE_BYTES / max(self.row_bytes, 1.0)))
        self._page = self._batch_size * max(1, fit // self._batch_size)

    def take(self, these: Sequence[Any]) -> set[Any]:
        """Claim these rows, in any order of keys. Returns the keys that are ours now."""
        ours: set[Any] = set(these)
        if self._shared:
            with self._database.writing() as connection:
                rows = [self._tables.named(key) for key in these]
                ours = self._take(connection, rows) if rows else set()
        return ours

    def _key(self, row: Row) -> Any:
        return self._tables.key_of([row[name] for name in self._tables.spec.keys])

    def _take(self, connection: sa.Connection, rows: list[Row]) -> set[Any]:
        """Claim these rows. Returns the keys that are ours now; another run may get some first."""
        claims, runs, names = self._tables.claims, self._tables.runs, self._tables.spec.keys
        alive = (
            sa.select(runs.c.run)
            .where(runs.c.ended.is_(None), runs.c.alive_until > self._database.now)
            .cte("alive")  # inside the clause itself SQLAlchemy would omit the schema
        )
        # As arrays, because parsing that many single values takes longer than storing them.
        columns = self._tables.columns_of(claims)
        keys = [self._tables.array([row[c.name] for row in rows], c.type) for c in columns]
        these = sa.select(*map(sa.func.unnest, keys), sa.literal(self._run))
        statement = insert(claims).from_select([*names, "run"], these).add_cte(alive)
        # The query before saw the table as of its beginning. This statement sees the current
        # rows, and the primary key lets exactly one run win.
        statement = statement.on_conflict_do_update(
            index_elements=list(names),
            set_={"run": statement.excluded.run},
            where=claims.c.run.not_in(sa.select(alive.c.run)),
        )
        taken = connection.execute(statement.returning(*columns))
        return {self._tables.key_of(row) for row in taken}

    def _claimed(self, items: sa.Table) -> Any:
        """The condition that a live run has claimed a row."""
        claims = self._tables.claims
        runs = self._tables.runs
        return sa.exists(
            sa.select(claims.c.run)
            .join(runs, runs.c.run == claims.c.run)
            .where(
                self._tables.same(claims),
                runs.c.ended.is_(None),
                runs.c.alive_until > self._database.now,
            )
            .correlate(items)
        )

    def _locked(self) -> Any:
        """The key of a row that no run has claimed but another session has locked, if there is one.

        Raises `UsageError` for a row that is visible and can never be locked: waiting for it would
        never end.
        """
        tables = self._tables
        theirs = self._not_had()
        query = sa.select(*tables.key).where(*self._left, theirs, ~self._claimed(tables.items))
        with self._database.reading() as connection:
            found = connection.execute(query.limit(1)).first()
        if found is None:
            return None
        key = tables.key_of(found)
        this = sa.select(*tables.key).where(tables.is_in(tables.items, [key]), tables.undone)
        try:
            with self._database.writing() as connection:
                taken = connection.execute(this.with_for_update(of=tables.items, nowait=True))
                if taken.first() is not None:
                    return None  # it was just given back
        except StoreError as error:
            if not is_locked(error):
                raise
            return key
        with self._database.reading() as connection:
            if connection.execute(this).first() is None:
                return None  # completed or deleted meanwhile
        raise UsageError(
            f"row {shown(key)} of table {tables.spec.table} can be read but not locked: a "
            "row-level policy allows this user SELECT but not UPDATE. Add a policy FOR UPDATE, or "
            "exclude such rows with where="
        )

    def _others_have_some(self) -> bool:
        """True if rows are left that this run has not had: others have claimed or locked them."""
        query = sa.select(*self._tables.key).where(*self._left, self._not_had()).limit(1)
        with self._database.reading() as connection:
            return connection.execute(query).first() is not None

    def _not_had(self) -> Any:
        """The condition that a row has not been claimed by this run."""
        claims = self._tables.claims
        # A subquery by key for each row. For a join, a database that does not yet know the number
        # of claims may compare all rows with all claims.
        whose = (
            sa.select(claims.c.run)
            .where(self._tables.same(claims))
            .correlate(self._tables.items)
            .scalar_subquery()
        )
        return whose.is_distinct_from(self._run)


class Heartbeat:
    """Keeps a run alive in the database until `stop`."""

    def __init__(self, beat: Callable[[], bool], seconds: float, absence: Absence) -> None:
        self._beat = beat
        self._seconds = seconds
        self.absence = absence
        self._outage = Outage("the heartbeat")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._go_on, name="resumable-alive", daemon=True)
        self._thread.start()

    def _go_on(self) -> None:
        pause = self._seconds / 4
        while not self._over.wait(pause):
            pause = self._seconds / 4
            try:
                if not self._beat():
                    return  # another run has taken over; the next commit reports it
            except (StoreError, UsageError) as error:
                if is_lost(error) and isinstance(error, StoreError):
                    self.absence.begin(error)
                    pause = min(pause, _AGAIN_SECONDS)  # be back before others count it as dead
                else:
                    self._outage.failed(error)
            else:
                self.absence.end()
                self._outage.succeeded()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()
