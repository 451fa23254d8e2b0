"""A checkpoint in a database that this process drives: what the engine asks of any checkpoint."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.form import CheckpointForm
from resumable_tasks.checkpoint.sql.claims import Claims, Heartbeat
from resumable_tasks.checkpoint.sql.database import Database, first_line, require, sqlstate
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.planning import TablePlanner, page_size
from resumable_tasks.checkpoint.sql.results import LOCKED, Results, chunks, is_about_values
from resumable_tasks.checkpoint.sql.runs import Tenure
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import CommitStateUnknown, ResultConflict, StoreError, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planner
from resumable_tasks.runners.outcome import Failure, Outcome
from resumable_tasks.task.options import JobOptions

if TYPE_CHECKING:
    import pyarrow as pa
    import sqlalchemy as sa


class SqlForm(CheckpointForm):
    """Completes rows of a table, each in one transaction with its results.

    Of a row that another has taken meanwhile nothing is written: its batch is dropped, and what
    is still ours of it is given back.
    """

    def __init__(
        self,
        database: Database,
        tables: Tables,
        options: JobOptions,
        *,
        takeover: bool,
        identity: Mapping[str, str] | None,
    ) -> None:
        self.job = options.name
        self.run = secrets.token_hex(6)
        self.url = tables.url
        self.state = State()
        self.source = tables.spec
        self._database = database
        self._tables = tables
        self._options = options
        self._results = Results(database, tables)
        self._results.check()
        self._tenure = Tenure(database, tables, self.run, options)
        began = self._tenure.take(takeover=takeover, identity=identity)
        self._failures = FailuresTable(database, tables, self.run, began, options)
        self._heartbeat = Heartbeat(self._tenure.beat, tables.spec.claim_seconds)
        self._connection: sa.Connection | None = None
        self._transaction: sa.RootTransaction | None = None
        self._dropped = 0
        # Whether the committer's thread is in the middle of something.
        self._busy = False
        self._commits = 0
        self._rows = 0
        self._claims: Claims | None = None
        self._how = "error"
        try:
            self._counts = self._results.count_items()
            self._failed_before = self._failures.count()
        except BaseException:
            self.close()
            raise

    @property
    def found(self) -> int:
        return self._counts[1]

    @property
    def failed_before(self) -> int:
        return self._failed_before

    @property
    def expected(self) -> int:
        return self._counts[0]

    @property
    def json_columns(self) -> frozenset[str]:
        return self._results.json_columns

    @property
    def failures_listed(self) -> str:
        return f"table {self._tables.failures.fullname}"

    @property
    def quarantine_hint(self) -> str:
        return (
            f"{self.failures_listed} lists them; those whose attempts are set to 0 there are "
            "tried again"
        )

    def planner(self, scheme: KeyScheme, options: JobOptions) -> Planner:
        shared = not self._database.sqlite
        self._claims = Claims(
            self._database,
            self._tables,
            self.run,
            options.batch_size,
            page_size(options),
            self._failures.to_try(),
            shared=shared,
        )
        self._claims.before_waiting = self._tenure.end_gone
        return TablePlanner(scheme, options, self._claims, self.found)

    def set_aside(self, planner: Planner) -> list[Failure]:
        found = self._failures.set_aside()
        planner.total += len(found)  # which never came by
        return found

    def stop_when(self, stop: Callable[[], bool]) -> None:
        assert self._claims is not None
        self._claims.stop = stop

    def accept(
        self, outcome: Outcome, schema: pa.Schema | None, pending: Sequence[Outcome]
    ) -> tuple[Outcome, pa.Schema | None]:
        """Write the outcome's rows into the transaction that `commit` commits.

        What is gone meanwhile, or another's, is left out of it. Raises `ResultConflict` where the
        database refuses the rows; none of them is in the transaction then.
        """
        self._busy = True
        try:
            if not pending:
                self._roll_back()
            if outcome.completed or outcome.failures:
                outcome = self._written_at_last(outcome)
        except (ArithmeticError, TypeError, ValueError) as error:
            raise self._refused(outcome, error, pending) from error
        except (StoreError, UsageError) as error:
            if is_about_values(error):
                raise self._refused(outcome, error.__cause__ or error, pending) from error
            raise
        finally:
            self._busy = False
        return outcome, None

    def _written_at_last(self, outcome: Outcome) -> Outcome:
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

    def _written(self, outcome: Outcome) -> Outcome:
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

    def _refused(
        self, outcome: Outcome, error: BaseException, pending: Sequence[Outcome]
    ) -> ResultConflict:
        if not pending:
            self._roll_back()  # there may be no commit soon to end the transaction
        spec = self._tables.spec
        return ResultConflict(
            f"the database has refused results of batch {outcome.batch.id} for table "
            f"{spec.results_table or spec.table}: {first_line(error)}"
        )

    def _take_back(
        self, connection: sa.Connection, outcome: Outcome, these: Sequence[Any]
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
        said = []
        if gone:
            said.append(f"{gone:,} were deleted, or set done, by others meanwhile")
        if taken:
            said.append(
                f"{taken:,} were taken by another run, since this one gave no sign of life for "
                f"{self._tables.spec.claim_seconds:g} s"
            )
        log.warning(
            "batch %d: %s of its %s rows are dropped, nothing of them is written: %s (such as %s)",
            outcome.batch.number,
            f"{gone + taken:,}",
            f"{len(these):,}",
            "; ".join(said),
            keys.shorten(next(key for key in these if key not in ours)),
        )
        self._dropped += gone + taken
        return ours

    def _give_back(self, connection: sa.Connection, these: Sequence[Any]) -> set[Any]:
        """End our claims of these rows; those of which there was one."""
        sa = require()
        claims, tables = self._tables.claims, self._tables
        found: set[Any] = set()
        for some in chunks(these):
            mine = sa.delete(claims).where(claims.c.run == self.run, tables.is_in(claims, some))
            gone = connection.execute(mine.returning(*tables.columns_of(claims)))
            found.update(tables.key_of(row) for row in gone)
        return found

    def commit(
        self, outcomes: Sequence[Outcome], schema: pa.Schema | None, prints: Mapping[bytes, int]
    ) -> Commit:
        self._busy = True
        try:
            connection = self._begun()
            failed: list[Failure] = []
            with self._database.errors():
                for outcome in outcomes:
                    failed += self._failures.record(connection, outcome.failures)
            fault_point("sql.written")
            self._commit_transaction()
            fault_point("sql.committed")
        finally:
            self._busy = False
        self._commits += 1
        rows, self._rows = self._rows, 0
        completed = sum(outcome.completed for outcome in outcomes)
        size = self._claims.row_bytes if self._claims is not None else 0.0
        return Commit(
            kind="commit",
            epoch=self.state.epoch,
            run=self.run,
            number=self._commits,
            key_count=completed,
            failures=tuple(failed),
            info={"rows": rows, "read": int(size * completed)},
        )

    def _begun(self) -> sa.Connection:
        """The connection with the transaction that is open, or a new one. Raises `Fenced`."""
        if self._connection is None:
            with self._database.errors():
                self._connection = self._database.connect()
                self._transaction = self._connection.begin()
                self._tenure.check(self._connection)
        return self._connection

    def _commit_transaction(self) -> None:
        sa = require()
        assert self._connection is not None
        assert self._transaction is not None
        try:
            self._transaction.commit()
        except sa.exc.DBAPIError as error:
            # Where the server has answered, it has not committed, nor has SQLite that waits for a
            # reader. Where the connection is lost it may have, and to write once more could write
            # twice.
            answered = getattr(error.orig, "sqlstate", None) and not error.connection_invalidated
            if answered or getattr(error.orig, "sqlite_errorname", None) == "SQLITE_BUSY":
                raise StoreError(
                    f"{self.url}: {first_line(error)}. Nothing was committed"
                ) from error
            raise CommitStateUnknown(
                f"{self.url}: the connection was lost during a commit: {first_line(error)}. "
                "Whether it has landed, the next run finds out. Run the same command again"
            ) from error
        self._forget_connection()

    def _roll_back(self) -> None:
        """End a transaction of which nothing was committed."""
        if self._transaction is not None:
            try:
                with self._database.errors():
                    self._transaction.rollback()
            finally:
                self._forget_connection()
        self._rows = 0

    def _forget_connection(self) -> None:
        connection, self._connection, self._transaction = self._connection, None, None
        if connection is not None:
            connection.close()

    def end(self, counts: dict[str, Any], adopted: bytes = b"", prints: bytes = b"") -> None:
        self._how = str(counts["how"])
        if self._dropped:
            log.warning("%s rows were dropped in this run; see above why", f"{self._dropped:,}")

    def close(self) -> None:
        self._heartbeat.stop()
        if self._busy:
            # The committer waits for the database, with its connection and with our claims. Once
            # this process is gone, or silent for long enough, they are free.
            log.warning("the database still does not answer; the rows that are left are not freed")
            return
        try:
            self._roll_back()
            self._tenure.leave(self._how)
        except (StoreError, UsageError) as error:
            # Advisory: without it the claims expire by themselves.
            log.warning("the rows that are left could not be given back: %s", error)
        finally:
            self._database.close()
