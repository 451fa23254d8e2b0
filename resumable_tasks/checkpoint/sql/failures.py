"""The side table of failures: failed items with their attempts over all runs, and parked items.

A parked item's rows, and the item if the job keeps it, are in the column of the item:
``{"$rows": […], "$item": …}``. Tables of earlier versions would lack a new column.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Failure

# A prefix of the message marks an error that a whole batch raised, since tables of earlier versions
# would lack a new column.
_OF_BATCH = "(of its batch) "
_ROWS, _ITEM = "$rows", "$item"


def is_parked(failures: sa.Table) -> Any:
    """The condition that a row of the failures table is of a parked item."""
    return failures.c.item.startswith(f'{{"{_ROWS}":')


def _kept(failure: Failure) -> str | None:
    if failure.rows is not None:
        return json.dumps({_ROWS: failure.rows, _ITEM: failure.item})
    return json.dumps(failure.item) if failure.item is not None else None


class FailuresTable:
    """The failures of all runs. ``began`` is this run's beginning by the database's clock."""

    def __init__(
        self, database: Database, tables: Tables, run: str, began: float, job: Job
    ) -> None:
        self._database = database
        self._tables = tables
        self._run = run
        self._began = began
        self._job = job
        self._any = True

    def _of_row(self, *conditions: Any) -> Any:
        """The condition that an item's row has a failure that meets these conditions."""
        failures, tables = self._tables.failures, self._tables
        found = sa.select(failures.c.run).where(tables.same(failures), *conditions)
        return sa.exists(found.correlate(tables.items))

    def to_try(self) -> list[Any]:
        """The conditions for this run to try a row.

        Excludes rows that failed since this run began, in any run; the next run tries those.
        """
        c = self._tables.failures.c
        if not self._job.retry_failed:
            return [~self._of_row()]
        not_now = sa.or_(
            c.run == self._run, c.failed_at >= self._began, is_parked(self._tables.failures)
        )
        if self._job.max_attempts is not None:
            not_now = sa.or_(not_now, c.attempts >= self._job.max_attempts)
        return [~self._of_row(not_now)]

    def set_aside(self) -> list[Failure]:
        """The failures of earlier runs that this run has not tried again, and the parked items."""
        failures, job = self._tables.failures, self._job
        query = sa.select(failures).where(
            failures.c.run != self._run, failures.c.failed_at < self._began, self._still_there
        )
        if job.retry_failed:
            aside = is_parked(failures)
            if job.max_attempts is not None:
                aside = sa.or_(aside, failures.c.attempts >= job.max_attempts)
            query = query.where(aside)
        return self._found(query)

    def parked(self) -> list[Failure]:
        """The items whose results are kept but were refused by the tables, with their rows."""
        failures = self._tables.failures
        return self._found(sa.select(failures).where(is_parked(failures), self._still_there))

    def _found(self, query: sa.Select[Any]) -> list[Failure]:
        with self._database.reading() as connection:
            return [self.failure_of(row) for row in connection.execute(query).mappings()]

    def suspects(self, page: Sequence[Mapping[str, Any]]) -> Set[bytes]:
        """The keys of these rows that failed in an earlier run by an error of their own."""
        if not self._any:
            return frozenset()
        failures, tables = self._tables.failures, self._tables
        found = [tables.key_of([row[name] for name in tables.spec.keys]) for row in page]
        query = sa.select(*tables.columns_of(failures)).where(
            tables.is_in(failures, found), failures.c.attempts > 0
        )
        with self._database.reading() as connection:
            return {keys.canonical(tables.key_of(row)) for row in connection.execute(query)}

    def count(self) -> tuple[int, int]:
        """Count the failed and the parked rows that are not done since.

        Call it before the first commit.
        """
        failures, every = self._tables.failures, sa.func.count()
        counts = sa.select(every, every.filter(is_parked(failures))).select_from(failures)
        with self._database.reading() as connection:
            # Later failures need no check, since this run does not try them again.
            self._any = bool(connection.execute(counts).scalar_one())
            found, parked = connection.execute(counts.where(self._still_there)).one()
        return found - parked, parked

    @property
    def _still_there(self) -> Any:
        """The condition that a failure's item still exists and was not completed otherwise."""
        failures, tables = self._tables.failures, self._tables
        # Not a join, because where= names the items' columns without their table.
        found = sa.select(sa.literal(1)).select_from(tables.items)
        found = found.where(tables.same(failures), tables.undone, *tables.considered)
        return sa.exists(found.correlate(failures))

    def failure_of(self, row: Any) -> Failure:
        """The failure in a row of the table."""
        key = self._tables.key_of([row[name] for name in self._tables.spec.keys])
        fields = ("error", "message", "attempts", "batch", "time", "traceback")
        values = {name: row[name] for name in fields}
        if row["message"].startswith(_OF_BATCH):
            values |= {"message": row["message"][len(_OF_BATCH) :], "error_of": "batch"}
        item = json.loads(row["item"]) if row["item"] else None
        if isinstance(item, dict) and _ROWS in item:
            return Failure(key, item=item[_ITEM], rows=tuple(item[_ROWS]), **values)
        return Failure(key, item=item, **values)

    def record(self, connection: sa.Connection, many: Sequence[Failure]) -> tuple[Failure, ...]:
        """Write these failures. Returns them with the attempts of earlier runs added."""
        if not many:
            return ()
        failures, tables = self._tables.failures, self._tables
        columns = tables.columns_of(failures)
        these = tables.is_in(failures, [failure.key for failure in many])
        query = sa.select(*columns, failures.c.attempts).where(these)
        before = {tables.key_of(row): row.attempts for row in connection.execute(query)}
        counted = tuple(
            replace(failure, attempts=failure.attempts + before.get(failure.key, 0))
            for failure in many
        )
        connection.execute(sa.delete(failures).where(these))
        connection.execute(
            sa.insert(failures).values(failed_at=self._database.now),
            [self._row(failure) for failure in counted],
        )
        return counted

    def _row(self, failure: Failure) -> dict[str, Any]:
        row: dict[str, Any] = {
            **self._tables.named(failure.key),
            "error": failure.error,
            "message": (_OF_BATCH if failure.error_of == "batch" else "") + failure.message,
            "attempts": failure.attempts,
            "batch": failure.batch,
            "time": failure.time,
            "traceback": failure.traceback,
            "item": _kept(failure),
            "run": self._run,
        }
        # PostgreSQL's text can hold every character except NUL.
        return {
            name: value.replace("\0", "\\x00") if isinstance(value, str) else value
            for name, value in row.items()
        }

    def forget(self, connection: sa.Connection, many: Sequence[Any]) -> None:
        """Remove the failures of completed rows."""
        if not self._any:
            return
        failures = self._tables.failures
        connection.execute(sa.delete(failures).where(self._tables.is_in(failures, many)))
