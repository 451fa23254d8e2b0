"""A checkpoint in a database that this process drives."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.checkpoint.form import Checkpoint, Found, Job, Opening, Unit
from resumable_tasks.checkpoint.sql.absence import Absence, Patience
from resumable_tasks.checkpoint.sql.claims import Claims, Heartbeat
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.failures import FailuresTable
from resumable_tasks.checkpoint.sql.planning import TablePlanner, page_size
from resumable_tasks.checkpoint.sql.results import Results
from resumable_tasks.checkpoint.sql.runs import RunRow
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.checkpoint.sql.unit import TableUnit
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.runners.outcome import Failure


class TableCheckpoint(Checkpoint):
    """Completes rows of a table, each in one transaction with its results.

    Writes nothing of a row that another run has taken meanwhile: drops the row's batch, and gives
    back the rows of the batch that are still ours.
    """

    planner: TablePlanner

    def __init__(self, database: Database, tables: Tables, job: Job, opening: Opening) -> None:
        self.job = job.name
        self.run = secrets.token_hex(6)
        self.url = tables.url
        self._database = database
        self._tables = tables
        self._results = Results(database, tables)
        self._results.check()
        self.expected, completed = self._results.count_items()
        # JSON text for text columns, if the job declares it; JSON columns are the database's task.
        json = job.columns.json - self._results.json_columns
        self.columns = replace(job.columns, json=json, as_rows=True)
        self._run_row = RunRow(database, tables, self.run, job)
        began = self._run_row.take(
            takeover=opening.takeover, identity=opening.identity, completed=completed
        )
        self._failures = FailuresTable(database, tables, self.run, began, job)
        seconds = tables.spec.claim_seconds
        self._heartbeat = Heartbeat(self._run_row.beat, seconds, Absence(tables.url, seconds))
        self._unit: TableUnit | None = None
        self._how = "error"
        try:
            failed, parked = self._failures.count()
            edited, moved = self._run_row.handlers.edited, self._run_row.handlers.moved
            self.found = Found(completed, failed, parked=parked, edited=edited, handlers=moved)
            self.planner = TablePlanner(
                job.planning, self._claims(job), completed, suspects=self._failures.suspects
            )
        except BaseException:
            self.close()
            raise

    def _claims(self, job: Job) -> Claims:
        claims = Claims(
            self._database,
            self._tables,
            self.run,
            job.planning.batch_size,
            page_size(job),
            self._failures.to_try(),
            patience=Patience(self._heartbeat.absence),
            shared=not self._database.sqlite,
        )
        claims.before_waiting = self._run_row.end_gone
        return claims

    @property
    def failures_listed(self) -> str:
        return f"table {self._tables.failures.fullname}"

    @property
    def quarantine_hint(self) -> str:
        return (
            f"{self.failures_listed} lists them; those whose attempts are set to 0 there are "
            "tried again"
        )

    def left_alone(self) -> list[Failure]:
        found = self.planner.through(self._failures.set_aside)
        self.planner.total += len(found)  # the planner never sees these rows
        return found

    def parked(self) -> list[Failure]:
        found = self._failures.parked()
        # A run takes over only the rows that it can claim.
        ours = self.planner.claim([failure.key for failure in found])
        return [failure for failure in found if failure.key in ours]

    def stop_when(self, stop: Callable[[], bool]) -> None:
        self.planner.stop_when(stop)

    def begin(self) -> Unit:
        self._unit = TableUnit(
            self._database,
            self._tables,
            self._results,
            self._failures,
            self._run_row,
            self._unit,
            self.planner,
            self._heartbeat.absence,
        )
        return self._unit

    def end(self, how: str, counts: Mapping[str, Any]) -> None:
        self._how = how
        if self._unit is not None and self._unit.dropped:
            log.warning(
                "this run dropped %s rows; the warnings above say why",
                f"{self._unit.dropped:,}",
            )

    def close(self) -> None:
        self._heartbeat.stop()
        if self._unit is not None and self._unit.busy:
            # The committer still waits for the database. The claims become free when this process
            # has ended, or after its last heartbeat has expired.
            log.warning(
                "the database still does not respond; the claims of this run are not released"
            )
            return
        try:
            self._run_row.leave(self._how)
        except (StoreError, UsageError) as error:
            # The release only saves time: the claims expire by themselves.
            log.warning("the claims of this run could not be released: %s", error)
        finally:
            self._database.close()
