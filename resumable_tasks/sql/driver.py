"""A checkpoint in a database that this process drives: what the engine asks of any checkpoint."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resumable_tasks import keys, log
from resumable_tasks.budget import Estimate
from resumable_tasks.errors import CommitStateUnknown, ResultConflict, StoreError, UsageError
from resumable_tasks.faults import fault_point
from resumable_tasks.form import CheckpointForm
from resumable_tasks.keys import KeyScheme
from resumable_tasks.model import Commit, Failure, Outcome
from resumable_tasks.options import JobOptions
from resumable_tasks.plan import Planner
from resumable_tasks.result import RunResult
from resumable_tasks.sql.claims import Claims, Heartbeat
from resumable_tasks.sql.database import Database, first_line, require
from resumable_tasks.sql.failing import FailuresTable
from resumable_tasks.sql.planning import TablePlanner, page_size
from resumable_tasks.sql.spec import SqlCheckpoint
from resumable_tasks.sql.tables import Tables
from resumable_tasks.sql.tenure import Tenure
from resumable_tasks.sql.writing import MOST_KEYS, Results, look
from resumable_tasks.state import State

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
        self._tenure = Tenure(database, tables, self.run, options)
        began = self._tenure.take(takeover=takeover, identity=identity)
        self._failures = FailuresTable(database, tables, self.run, began, options)
        self._heartbeat = Heartbeat(self._tenure.beat, tables.spec.claim_seconds)
        self._connection: sa.Connection | None = None
        self._transaction: sa.RootTransaction | None = None
        self._lost: set[int] = set()
        self._commits = 0
        self._rows = 0
        self._claims: Claims | None = None
        self._how = "error"
        try:
            self._counts = self._results.count_items()
            self._failed_before = self._results.count_failures()
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
    ) -> pa.Schema | None:
        """Write the outcome's rows into the transaction that `commit` commits.

        Raises `ResultConflict` where the database refuses them; they are not in it then.
        """
        if not pending:
            self._roll_back()
        if not outcome.completed:
            return None
        connection = self._begun()
        sa = require()
        done = keys.parse_lines(outcome.done)
        failed = [failure.key for failure in outcome.failures]
        ours = False
        try:
            with self._database.errors(), connection.begin_nested() as savepoint:
                ours = self._take_back(connection, [*done, *failed])
                if ours:
                    self._rows += self._results.write(connection, outcome, done)
                    self._failures.forget(connection, done)
                else:
                    savepoint.rollback()
        except StoreError as error:
            refused = (sa.exc.DataError, sa.exc.IntegrityError, sa.exc.ProgrammingError)
            cause = error.__cause__
            statement_only = isinstance(cause, sa.exc.StatementError) and not isinstance(
                cause, sa.exc.DBAPIError
            )
            if not isinstance(cause, refused) and not statement_only:
                raise
            raise self._refused(outcome, cause, pending) from cause
        except (OverflowError, TypeError, ValueError) as error:
            raise self._refused(outcome, error, pending) from error
        if not ours:
            self._drop(connection, outcome)
        return None

    def _refused(
        self, outcome: Outcome, error: BaseException | None, pending: Sequence[Outcome]
    ) -> ResultConflict:
        assert error is not None
        if not pending:
            self._roll_back()  # there may be no commit soon to end the transaction
        spec = self._tables.spec
        return ResultConflict(
            f"the database has refused results of batch {outcome.batch.id} for table "
            f"{spec.results_table or spec.table}: {first_line(error)}"
        )

    def _take_back(self, connection: sa.Connection, these: Sequence[Any]) -> bool:
        """Lock these rows and end our claims; False unless all are left to do and ours."""
        locked = self._results.lock(connection, these)
        if len(locked) != len(these):
            return False
        return self._database.sqlite or self._give_back(connection, these) == len(these)

    def _give_back(self, connection: sa.Connection, these: Sequence[Any]) -> int:
        sa = require()
        claims = self._tables.claims
        gone = connection.execute(
            sa.delete(claims).where(claims.c.run == self.run, self._tables.is_in(claims, these))
        )
        return int(gone.rowcount)

    def _drop(self, connection: sa.Connection, outcome: Outcome) -> None:
        self._lost.add(outcome.batch.number)
        with self._database.errors():
            self._give_back(connection, outcome.batch.keys)
        log.warning(
            "batch %d is dropped: another run has taken rows of it, since this one gave no sign "
            "of life for %g s, or they were completed by others; nothing of it is written",
            outcome.batch.number,
            self._tables.spec.claim_seconds,
        )

    def commit(
        self, outcomes: Sequence[Outcome], schema: pa.Schema | None, prints: Mapping[bytes, int]
    ) -> Commit:
        connection = self._begun()
        kept = [outcome for outcome in outcomes if outcome.batch.number not in self._lost]
        failed: list[Failure] = []
        with self._database.errors():
            for outcome in kept:
                ours = self._still_ours(connection, outcome)
                failed += self._failures.record(connection, ours)
            recorded = tuple(failed)
        fault_point("sql.written")
        self._commit_transaction()
        fault_point("sql.committed")
        self._commits += 1
        rows, self._rows = self._rows, 0
        return Commit(
            kind="commit",
            epoch=self.state.epoch,
            run=self.run,
            number=self._commits,
            key_count=sum(outcome.completed for outcome in kept),
            failures=recorded,
            info={"rows": rows},
        )

    def _still_ours(self, connection: sa.Connection, outcome: Outcome) -> Sequence[Failure]:
        """The failures of an outcome, but for rows that another has taken."""
        # With completed rows among them `accept` has seen to it.
        if outcome.completed or self._database.sqlite or not outcome.failures:
            return outcome.failures
        sa = require()
        claims, tables = self._tables.claims, self._tables
        ours = sa.delete(claims).where(
            claims.c.run == self.run,
            tables.is_in(claims, [failure.key for failure in outcome.failures]),
        )
        found = connection.execute(ours.returning(*tables.columns_of(claims)))
        there = {tables.key_of(row) for row in found}
        return [failure for failure in outcome.failures if failure.key in there]

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
            # Where the server has answered, it has not committed. Where the connection is lost it
            # may have, and to write once more could write twice.
            if getattr(error.orig, "sqlstate", None) and not error.connection_invalidated:
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
        if self._lost:
            log.warning(
                "%d batches of this run were dropped, since others have taken their rows",
                len(self._lost),
            )

    def close(self) -> None:
        self._heartbeat.stop()
        try:
            self._roll_back()
            self._tenure.leave(self._how)
        except StoreError as error:
            # Advisory: without it the claims expire by themselves.
            log.warning("the rows that are left could not be given back: %s", error)
        finally:
            self._database.close()


def check(spec: SqlCheckpoint, options: JobOptions, items: Any, arguments: Any) -> JobOptions:
    """The options for a run on this table. Raises `UsageError` where they do not fit."""
    name = options.name
    if items is not None:
        raise UsageError(
            f"{name}: the items are the rows of table {spec.table}; leave items out, and choose "
            "rows by SqlCheckpoint(where=…)"
        )
    if arguments.partition is not None:
        raise UsageError(f"{name}: partition= is a folder's name; choose rows by where=")
    if options.key is not None and options.key != spec.key:
        raise UsageError(f"{name}: key={options.key!r}, and the checkpoint's is {spec.key!r}")
    if spec.columns:
        fits: tuple[str, ...] = ("one",)
    elif spec.results_table:
        fits = ("one", "many")
    else:
        fits = ("none",) if spec.shards is None else ("one", "many", "none")
    if options.results not in fits:
        raise UsageError(
            f'{name}: results="{options.results}" and a SqlCheckpoint with '
            f"{'columns=' if spec.columns else 'results_table=' if spec.results_table else 'no'} "
            f"place for them do not fit: say results= one of {', '.join(fits)}, or give "
            "columns=, results_table= or shards="
        )
    if options.fingerprint is not None:
        raise UsageError(
            f"{name}: fingerprint= is for checkpoints in a directory: let whatever changes a row "
            f"set {spec.done} to NULL"
        )
    if options.on_version_change == "restart":
        raise UsageError(
            f'{name}: on_version_change="restart" cannot archive a table: set {spec.done} to NULL '
            'yourself in the rows that are to be done again, and say "reuse"'
        )
    if options.batch_size > MOST_KEYS:
        raise UsageError(f"{name}: a SqlCheckpoint takes batches of {MOST_KEYS:,} items at most")
    return replace(options, key=spec.key)


def dry_run(spec: SqlCheckpoint, options: JobOptions) -> RunResult:
    """Count the rows, and say what a run would handle of them. Writes nothing."""
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        rows, done, left, set_aside = look(database, tables, options)
    finally:
        database.close()
    log.info(
        "%s: a run would handle %s of %s rows; %s are done, %s would not be tried again",
        options.name,
        f"{left:,}",
        f"{rows:,}",
        f"{done:,}",
        f"{set_aside:,}",
    )
    return RunResult(
        job=options.name,
        checkpoint=tables.url,
        run="",
        total=rows,
        completed=0,
        skipped=done,
        failed=0 if options.retry_failed else set_aside,
        duplicates=0,
        seconds=0.0,
        quarantined=set_aside if options.retry_failed else 0,
        remaining=Estimate(left, None, None),
    )


def open_form(
    spec: SqlCheckpoint,
    options: JobOptions,
    *,
    takeover: bool = False,
    identity: Mapping[str, str] | None = None,
) -> CheckpointForm:
    """Open for writing. Raises `UsageError`, `CheckpointHeld`, `CheckpointMismatch` …"""
    database = Database(spec.database)
    try:
        tables = Tables(database, spec)
        tables.check()
        if spec.shards is not None:
            from resumable_tasks.sql.behind import open_behind

            return open_behind(database, tables, options, takeover=takeover, identity=identity)
        return SqlForm(database, tables, options, takeover=takeover, identity=identity)
    except BaseException:
        database.close()
        raise
