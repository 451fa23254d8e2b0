"""One transaction: the rows of some batches, their results, and their failures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.form import Receipt, Unit
from resumable_tasks.checkpoint.sql.database import Database, first_line, sqlstate
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.planning import TablePlanner
from resumable_tasks.checkpoint.sql.results import LOCKED, Results, chunks, is_about_values
from resumable_tasks.checkpoint.sql.runs import RunRow
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import CommitStateUnknown, ResultConflict, StoreError, UsageError
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Done, Failure


class TableUnit(Unit):
    """Writes each outcome into one transaction, by a savepoint of its own.

    ``busy``: whether a thread is in the middle of something. ``number`` counts the commits of a
    run, ``dropped`` the rows that were not its own any more; ``before`` is the run's last unit.
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
        self._connection: sa.Connection | None = None
        self._transaction: sa.RootTransaction | None = None
        self._added: list[Done] = []
        self._rows = 0

    def __exit__(self, *_: object) -> None:
        """End a transaction of which nothing was committed."""
        if self._transaction is None:
            return
        with self._working():
            try:
                with self._database.errors():
                    self._transaction.rollback()
            finally:
                self._close()

    def add(self, outcome: Done) -> Done:
        """Write the outcome's rows. What is gone meanwhile, or another's, is left out of it.

        Raises `ResultConflict` where the database refuses the rows; none of them is in the
        transaction then.
        """
        # No table here has a place for rows that it does not take: their items have failed.
        failed = tuple(replace(failure, rows=None) for failure in outcome.failures)
        outcome = replace(outcome, failures=failed)
        with self._working():
            try:
                if outcome.completed or outcome.failures:
                    outcome = self._written_at_last(outcome)
            except (ArithmeticError, TypeError, ValueError) as error:
                raise self._refused(outcome, error) from error
            except (StoreError, UsageError) as error:
                if is_about_values(error):
                    raise self._refused(outcome, error.__cause__ or error) from error
                raise
        self._added.append(outcome)
        return outcome

    def commit(self) -> Receipt:
        with self._working():
            connection = self._begun()
            failed: list[Failure] = []
            with self._database.errors():
                for outcome in self._added:
                    failed += self._failures.record(connection, outcome.failures)
            fault_point("sql.written")
            self._commit_transaction()
            fault_point("sql.committed")
        self.number += 1
        completed = sum(outcome.completed for outcome in self._added)
        size = int(self._planner.row_bytes * completed)
        return Receipt(self.number, completed, self._rows, 0, size, tuple(failed))

    @contextmanager
    def _working(self) -> Iterator[None]:
        self.busy = True
        try:
            yield
        finally:
            self.busy = False

    def _written_at_last(self, outcome: Done) -> Done:
        while True:
            try:
                return self._written(outcome)
            except StoreError as error:
                if sqlstate(error) not in LOCKED:
                    raise
                log.warning(
                    "rows of %s are locked by another session of the database (%s); waiting for "
                    "it, pg_blocking_pids() says which it is",
                    self._tables.spec.table,
                    first_line(error.__cause__ or error),
                )

    def _written(self, outcome: Done) -> Done:
        connection = self._begun()
        rows = outcome.table.to_pylist() if outcome.table is not None else []
        done = keys.parse_lines(outcome.done)
        failed = outcome.failures
        with self._database.errors(), connection.begin_nested():
            ours = self._take_back(connection, outcome, [*done, *(each.key for each in failed)])
            if ours is not None:
                done = [key for key in done if key in ours]
                failed = tuple(failure for failure in failed if failure.key in ours)
                rows = [row for row in rows if self._key_in(row) in ours]
            if done:
                self._results.write(connection, rows, done)
                self._failures.forget(connection, done)
        self._rows += len(rows)
        if ours is None:
            return replace(outcome, table=None)
        lines = keys.join(map(keys.canonical, done))
        return replace(outcome, table=None, done=lines, completed=len(done), failures=failed)

    def _key_in(self, row: Mapping[str, Any]) -> Any:
        names = self._tables.spec.keys
        return self._tables.key_of([row[name] for name in names])

    def _refused(self, outcome: Done, error: BaseException) -> ResultConflict:
        spec = self._tables.spec
        return ResultConflict(
            f"the database has refused results of batch {outcome.batch.id} for table "
            f"{spec.results_table or spec.table}: {first_line(error)}"
        )

    def _take_back(
        self, connection: sa.Connection, outcome: Done, these: Sequence[Any]
    ) -> set[Any] | None:
        """Lock these rows and end our claims of them.

        Those that are left to do, and ours; None if all of them are.
        """
        locked = self._results.lock(connection, these)
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
            reasons.append(f"{gone:,} were deleted, or set done, by others meanwhile")
        if taken:
            reasons.append(
                f"{taken:,} were taken by another run, since this one gave no sign of life for "
                f"{self._tables.spec.claim_seconds:g} s"
            )
        log.warning(
            "batch %d: %s of its %s rows are dropped, nothing of them is written: %s (such as %s)",
            outcome.batch.number,
            f"{gone + taken:,}",
            f"{len(these):,}",
            "; ".join(reasons),
            keys.shorten(next(key for key in these if key not in ours)),
        )
        self.dropped += gone + taken
        return ours

    def _give_back(self, connection: sa.Connection, these: Sequence[Any]) -> set[Any]:
        """End our claims of these rows; those of which there was one."""
        claims, tables = self._tables.claims, self._tables
        found: set[Any] = set()
        for some in chunks(these):
            ours = claims.c.run == self._run_row.run
            mine = sa.delete(claims).where(ours, tables.is_in(claims, some))
            gone = connection.execute(mine.returning(*tables.columns_of(claims)))
            found.update(tables.key_of(row) for row in gone)
        return found

    def _begun(self) -> sa.Connection:
        """The connection with the transaction that is open, or a new one. Raises `Fenced`."""
        if self._connection is None:
            with self._database.errors():
                self._connection = self._database.connect()
                self._transaction = self._connection.begin()
                self._run_row.check(self._connection)
        return self._connection

    def _commit_transaction(self) -> None:
        assert self._transaction is not None
        try:
            self._transaction.commit()
        except sa.exc.DBAPIError as error:
            # Where the server has answered, it has not committed, nor has SQLite that waits for a
            # reader. Where the connection is lost it may have, and to write once more could write
            # twice.
            answered = getattr(error.orig, "sqlstate", None) and not error.connection_invalidated
            url = self._tables.url
            if answered or getattr(error.orig, "sqlite_errorname", None) == "SQLITE_BUSY":
                raise StoreError(f"{url}: {first_line(error)}. Nothing was committed") from error
            raise CommitStateUnknown(
                f"{url}: the connection was lost during a commit: {first_line(error)}. "
                "Whether it has landed, the next run finds out. Run the same command again"
            ) from error
        self._close()

    def _close(self) -> None:
        connection, self._connection, self._transaction = self._connection, None, None
        if connection is not None:
            connection.close()
