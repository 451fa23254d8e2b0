"""One transaction: the rows of some batches, their results, and their failures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import sqlalchemy as sa

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.form import ConnectionLost, GaveWay, Receipt, Unit
from resumable_tasks.checkpoint.sql.absence import Absence, Patience
from resumable_tasks.checkpoint.sql.database import Database, first_line
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.planning import TablePlanner
from resumable_tasks.checkpoint.sql.refusals import (
    is_about_a_lock,
    is_about_a_row,
    is_about_the_connection,
    is_locked,
    is_lost,
    sqlstate,
)
from resumable_tasks.checkpoint.sql.results import Results, chunks
from resumable_tasks.checkpoint.sql.runs import RunRow
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import (
    CommitStateUnknown,
    ResultConflict,
    ResumableTasksError,
    StoreError,
)
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Done, Failure


class TableUnit(Unit):
    """Writes outcomes into one transaction, each in a savepoint of its own.

    ``busy``: whether a thread is working in it. ``number`` counts the run's commits, ``dropped``
    the rows that were no longer the run's own. ``before`` is the run's previous unit.
    """

    def __init__(
        self,
        database: Database,
        tables: Tables,
        results: Results,
        failures: FailuresTable,
        run_row: RunRow,
        before: TableUnit | None,
        planner: TablePlanner,
        absence: Absence,
    ) -> None:
        self.busy = False
        self.number: int = before.number if before is not None else 0
        self.dropped: int = before.dropped if before is not None else 0
        self._database = database
        self._tables = tables
        self._results = results
        self._failures = failures
        self._run_row = run_row
        self._planner = planner
        self._patience: Patience = before._patience if before is not None else Patience(absence)
        self._connection: sa.Connection | None = None
        self._transaction: int | None = None
        self._given: list[Done] = []
        self._added: list[Done] = []
        self._rows = 0

    def __exit__(self, *_: object) -> None:
        """Roll back an uncommitted transaction."""
        self._give_up()

    def _give_up(self) -> None:
        connection = self._connection
        if connection is None:
            return
        with self._working(), self._database.errors():
            try:
                connection.rollback()
            except sa.exc.DBAPIError as error:
                if not is_about_the_connection(error):
                    raise
                connection.invalidate()  # then the server rolls back
            finally:
                self._close()

    def add(self, outcome: Done) -> Done:
        """Write the outcome's rows, without items that are gone or another run's by now.

        Raises `ResultConflict` if the database refuses the rows; then none of them is in the
        transaction. Raises `GaveWay` if another session has a lock that they need, and
        `ConnectionLost`.
        """
        with self._working():
            given = outcome
            if outcome.completed or outcome.failures:
                outcome = self._written(outcome)
            self._given.append(given)
            self._added.append(outcome)
        return outcome

    def commit(self) -> Receipt:
        with self._working():
            failed: list[Failure] = []
            with self._giving_way():
                connection = self._begun()
                for outcome in self._added:
                    failed += self._failures.record(connection, outcome.failures)
            fault_point("sql.written")
            with self._giving_way():
                self._commit_transaction(connection)
            fault_point("sql.committed")
            self._patience.over()
        self.number += 1
        completed = sum(outcome.completed for outcome in self._added)
        size = int(self._planner.row_bytes * completed)
        return Receipt(self.number, completed, self._rows, 0, size, tuple(failed))

    @contextmanager
    def _working(self) -> Iterator[None]:
        before, self.busy = self.busy, True
        try:
            yield
        finally:
            self.busy = before

    def _written(self, outcome: Done) -> Done:
        done = keys.parse_lines(outcome.done)
        failed = outcome.failures
        rows = 0
        with self._savepoint() as connection:
            these = [*done, *(each.key for each in failed)]
            ours = self._take_back(connection, outcome, these, set(done))
            if ours is not None:
                done = [key for key in done if key in ours]
                failed = tuple(failure for failure in failed if failure.key in ours)
            if done:
                with self._refusing(outcome):
                    rows = self._write(connection, outcome, done)
                self._failures.forget(connection, done)
        self._rows += rows
        if ours is None:
            return replace(outcome, unwritten=None, rows=None)
        lines = keys.join(map(keys.canonical, done))
        return replace(
            outcome, unwritten=None, rows=None, done=lines, completed=len(done), failures=failed
        )

    def _once_more(self) -> None:
        """Write the contents of the lost transaction in a new one."""
        before, self._given, self._added, self._rows = self._given, [], [], 0
        try:
            for outcome in before:
                self.add(outcome)
        except ResultConflict:
            raise GaveWay from None  # other runs have written meanwhile

    def _write(self, connection: sa.Connection, outcome: Done, done: list[Any]) -> int:
        ours = set(done)
        every = self._results.rows_of(outcome)
        rows = [row for row in every if self._key_in(row) in ours]
        self._results.write(connection, rows, done)
        return len(rows)

    @contextmanager
    def _savepoint(self) -> Iterator[sa.Connection]:
        """A part of the transaction that takes effect as a whole or not at all."""
        with self._giving_way():
            connection = self._begun()
            savepoint = connection.begin_nested()
        try:
            with self._giving_way():
                yield connection
                savepoint.commit()
        except (GaveWay, ConnectionLost):
            raise
        except BaseException:
            if not self._database.in_transaction(connection):  # a trigger ended the transaction
                self._give_up()
                self._once_more()
            elif not connection.invalidated:
                with self._database.errors():
                    savepoint.rollback()
            raise

    @contextmanager
    def _giving_way(self) -> Iterator[None]:
        """Give up the whole transaction if another session has a lock that it needs.

        Then that session can continue. Also gives up if the connection is lost before a COMMIT.
        """
        try:
            with self._database.errors():
                yield
        except CommitStateUnknown:
            raise
        except StoreError as error:
            if is_lost(error):
                raise self._lost(error) from error
            if not is_locked(error):
                raise
            self._give_up()
            raise GaveWay(partial(self._wait, first_line(error.__cause__ or error))) from error

    def _lost(self, error: StoreError) -> ConnectionLost:
        """Give up the transaction. The server may not have noticed yet that we are gone."""
        number = self._transaction
        self._give_up()

        def wait(stop: Callable[[], bool]) -> None:
            self._patience.wait(error, stop)
            if number is not None:  # wait for its end, else its locks would block the next unit
                self._asked(number, stop)

        return ConnectionLost(wait)

    def _asked(self, number: int, stop: Callable[[], bool]) -> bool | None:
        """Whether this transaction was committed, once the database can tell."""
        while True:
            try:
                return self._database.has_landed(number)
            except StoreError as error:
                self._patience.wait(error, stop)

    def _wait(self, why: str, key: Any = None) -> None:
        """Log the reason for waiting. If it is one row, wait for that, holding no lock."""
        with self._working():
            if key is not None:
                try:
                    with self._database.writing() as connection:
                        self._run_row.set_limits(connection)
                        self._results.wait_for(connection, key)
                    return
                except StoreError as error:
                    if is_lost(error):
                        return  # the next try meets the same error, and waits
                    if not is_locked(error):
                        raise
            log.warning(
                "rows of %s are locked by another database session (%s); waiting for it%s",
                self._tables.spec.table,
                why,
                "" if self._database.sqlite else "; pg_blocking_pids() shows which one",
            )

    @contextmanager
    def _refusing(self, outcome: Done) -> Iterator[None]:
        """Turn a refusal of the rows by the database or its driver into `ResultConflict`."""
        try:
            yield
        except (ResumableTasksError, MemoryError):
            raise
        except sa.exc.SQLAlchemyError as error:
            if not is_about_a_row(error):
                raise
            raise self._refused(outcome, getattr(error, "orig", None) or error) from error
        except Exception as error:  # users' objects can raise anything while they are converted
            raise self._refused(outcome, error) from error

    def _key_in(self, row: Mapping[str, Any]) -> Any:
        names = self._tables.spec.keys
        return self._tables.key_of([row[name] for name in names])

    def _refused(self, outcome: Done, error: BaseException) -> ResultConflict:
        spec = self._tables.spec
        return ResultConflict(
            f"the database refused results of batch {outcome.batch.id} for table "
            f"{spec.results_table or spec.table}: {first_line(error)}"
        )

    def _take_back(
        self, connection: sa.Connection, outcome: Done, these: Sequence[Any], done: Set[Any]
    ) -> set[Any] | None:
        """Lock these rows and end our claims on them.

        Returns the keys that are left to do and still ours; None if all are. Raises `GaveWay` if
        another session holds a row that is to be marked as done.
        """
        locked, held = self._results.lock(connection, these)
        if wanted := [key for key in held if key in done]:
            self._give_up()
            raise GaveWay(partial(self._wait, f"such as {keys.shown(wanted[0])}", wanted[0]))
        locked += held  # a failed row itself is not written, so its lock is not needed
        if self._database.sqlite:
            ours = set(locked)
        else:
            ours = self._give_back(connection, these).intersection(locked)
        if len(ours) == len(these):
            return None
        gone = len(these) - len(locked)
        taken = len(these) - len(ours) - gone
        reasons = []
        if gone:
            reasons.append(f"{gone:,} were meanwhile deleted or marked done by others")
        if taken:
            reasons.append(
                f"{taken:,} were taken by another run, because this one gave no sign of life for "
                f"{self._tables.spec.claim_seconds:g} s"
            )
        log.warning(
            "batch %d: dropping %s of its %s rows, without writing anything of them: %s (such as "
            "%s)",
            outcome.batch.number,
            f"{gone + taken:,}",
            f"{len(these):,}",
            "; ".join(reasons),
            keys.shown(next(key for key in these if key not in ours)),
        )
        self.dropped += gone + taken
        return ours

    def _give_back(self, connection: sa.Connection, these: Sequence[Any]) -> set[Any]:
        """End our claims on these rows. Returns the keys that had a claim."""
        claims, tables = self._tables.claims, self._tables
        found: set[Any] = set()
        for some in chunks(these):
            ours = claims.c.run == self._run_row.run
            mine = sa.delete(claims).where(ours, tables.is_in(claims, some))
            gone = connection.execute(mine.returning(*tables.columns_of(claims)))
            found.update(tables.key_of(row) for row in gone)
        return found

    def _begun(self) -> sa.Connection:
        """The connection with the open transaction; begins one if needed. Raises `Fenced`."""
        if self._connection is None:
            with self._database.errors():
                self._connection = self._database.connect()
                self._connection.begin()
                self._transaction = self._run_row.check(self._connection)
        return self._connection

    def _commit_transaction(self, connection: sa.Connection) -> None:
        try:
            connection.commit()
        except sa.exc.DBAPIError as error:
            if is_about_a_lock(error):
                raise
            if not is_about_the_connection(error):
                raise self._refused_commit(error) from error
            self._find_out(error)
        self._close()

    def _refused_commit(self, error: sa.exc.DBAPIError) -> StoreError:
        if not sqlstate(error):
            return self._unknown(error)
        # The server has answered with an error, so it has not committed.
        return StoreError(
            f"{self._tables.url}: {first_line(error)}. Nothing was committed",
            remedy="Run the same command again",
        )

    def _find_out(self, error: sa.exc.DBAPIError) -> None:
        """Find out whether an unanswered COMMIT took effect; return if it did.

        Raises the database's error if it did not, so that writing again is safe, and
        `CommitStateUnknown` if it cannot be found out.
        """
        number = self._transaction
        assert number is not None
        self._give_up()
        try:
            landed = self._asked(number, lambda: False)
        except StoreError as still:
            raise self._unknown(error) from still
        if landed is None:
            raise self._unknown(error) from error
        if not landed:
            raise error

    def _unknown(self, error: sa.exc.DBAPIError) -> CommitStateUnknown:
        return CommitStateUnknown(
            f"{self._tables.url}: the connection was lost during a commit: {first_line(error)}. "
            "The next run finds out whether the commit succeeded. Run the same command again"
        )

    def _close(self) -> None:
        connection, self._connection, self._transaction = self._connection, None, None
        if connection is not None:
            connection.close()
