"""Results in shards; the table's ``done`` column mirrors which rows are completed there.

The journal decides. If a run dies between its commit and setting the column, some completed rows
are not marked. The next run marks them before it begins, and handles none of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.estimate import Estimate
from resumable_tasks.checkpoint.form import Checkpoint, Job, Opening, Receipt, Unit
from resumable_tasks.checkpoint.sql.absence import Absence, Patience
from resumable_tasks.checkpoint.sql.claims import Claims
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.planning import TablePlanner, page_size
from resumable_tasks.checkpoint.sql.results import Results
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Done, Failure, Shard

if TYPE_CHECKING:
    import pyarrow as pa

_PAGE = 5_000


class MirroredColumn(Checkpoint):
    """A checkpoint in a directory, and the table column that mirrors it."""

    planner: TablePlanner

    def __init__(
        self, inner: DirectoryCheckpoint, database: Database, tables: Tables, job: Job
    ) -> None:
        self.inner = inner
        self.job, self.url, self.run = inner.job, inner.url, inner.run
        self._database = database
        self._tables = tables
        self._batch_size = job.planning.batch_size
        self._results = Results(database, tables)
        self._absence = Absence(tables.url, tables.spec.claim_seconds)
        self._patience = Patience(self._absence)
        self._correct()
        self.expected, completed = self._results.count_items()
        before = inner.found
        self.found = replace(before, completed=completed)
        self._warn_of_others(completed)
        aside = inner.state.set_aside(job.max_attempts, job.retry_failed)
        claims = self._pages(page_size(job))
        failed = inner.state.failures.items()
        tried = frozenset(line for line, failure in failed if failure.attempts)
        self.planner = TablePlanner(job.planning, claims, completed, aside, lambda page: tried)

    def _pages(self, most: int) -> Claims:
        size = self._batch_size
        return Claims(
            *(self._database, self._tables, self.run, size, most, []),
            patience=Patience(self._absence),
            shared=False,
        )

    def _correct(self) -> None:
        """Set the column of completed rows that are not marked."""
        corrected = 0
        for page in self._pages(_PAGE).pages():
            found = [
                self._tables.key_of([row[name] for name in self._tables.spec.keys]) for row in page
            ]
            done = [key for key in found if keys.canonical(key) in self.inner.state.done]
            if done:
                with self._database.writing() as connection:
                    self._results.set_done(connection, done)
                corrected += len(done)
        if corrected:
            log.info(
                "marked %s rows of %s as done that are completed in %s",
                f"{corrected:,}",
                self._tables.url,
                self.url,
            )

    def _warn_of_others(self, completed: int) -> None:
        here = len(self.inner.state.done)
        if completed > here:
            # The column was set by hand, or by a run with another directory.
            log.warning(
                "%s rows of %s are marked done, but %s has only %s: the others have no results "
                "there. If their results are in another directory, name that directory; if "
                "nowhere, set the column to NULL",
                f"{completed:,}",
                self._tables.url,
                self.url,
                f"{here:,}",
            )

    def stop_when(self, stop: Callable[[], bool]) -> None:
        self.planner.stop_when(stop)

    def shard_writer(self) -> Callable[[pa.Table, int], Shard]:
        return self.inner.shard_writer()

    def left_alone(self) -> list[Failure]:
        known = map(self.inner.state.known, self.planner.set_aside_lines)
        return [failure for failure in known if failure is not None]

    def parked(self) -> list[Failure]:
        return self.inner.parked()

    def rows_of(self, outcome: Done) -> pa.Table | None:
        return self.inner.rows_of(outcome)

    def estimate(self, items: int) -> Estimate:
        return self.inner.estimate(items)

    def begin(self) -> Unit:
        return MirroredUnit(self.inner.begin(), self._set_done)

    def _set_done(self, done: list[Any]) -> None:
        def write() -> None:
            with self._database.writing() as connection:
                self._results.set_done(connection, done)

        # The results are committed in the shards already; if this fails, the next run corrects
        # the column.
        self._patience.through(write, self.planner.stopping)

    def tidy(self, stop: Callable[[], bool]) -> None:
        self.inner.tidy(stop)

    def end(self, how: str, counts: Mapping[str, Any]) -> None:
        self.inner.end(how, counts)

    def close(self) -> None:
        self.inner.close()
        self._database.close()


class MirroredUnit(Unit):
    """A commit of the directory that then sets the column."""

    def __init__(self, inner: Unit, set_done: Callable[[list[Any]], None]) -> None:
        self._inner = inner
        self._set_done = set_done
        self._done: list[bytes] = []

    def add(self, outcome: Done) -> Done:
        outcome = self._inner.add(outcome)
        self._done.append(outcome.done)
        return outcome

    def commit(self) -> Receipt:
        receipt = self._inner.commit()
        fault_point("sql.behind")
        done = keys.parse_lines(keys.join(filter(None, self._done)))
        if done:
            self._set_done(done)
        return receipt


def open_mirrored(database: Database, tables: Tables, job: Job, opening: Opening) -> Checkpoint:
    """Open the checkpoint in the directory, and correct the column. Raises what either raises."""
    assert tables.spec.shards is not None
    inner = Directory(os.fspath(tables.spec.shards)).open(job, opening)
    assert isinstance(inner, DirectoryCheckpoint)
    try:
        return MirroredColumn(inner, database, tables, job)
    except BaseException:
        inner.close()
        raise
