"""A run's row in the runs table: the active run, its heartbeat, and how it ended."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from resumable_tasks.base import process
from resumable_tasks.checkpoint.directory import handlers, holder
from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.tables import Tables
from resumable_tasks.errors import CheckpointHeld, CheckpointMismatch, Fenced

LOCK_SECONDS = 10


class RunRow:
    """One run, from `take` to `leave`. On SQLite only one at a time."""

    def __init__(self, database: Database, tables: Tables, run: str, job: Job) -> None:
        self._database = database
        self._tables = tables
        self.run = run
        self._job = job
        self._until = database.now + tables.spec.claim_seconds
        runs = tables.runs.c
        self.handlers = handlers.Handlers()
        """The handlers of the previous run and of this one."""
        self._mine = [runs.run == run, runs.ended.is_(None)]

    def take(
        self, *, takeover: bool, identity: Mapping[str, str] | None, completed: int = 0
    ) -> float:
        """Enter this run. Returns its beginning by the database's clock.

        ``completed`` is the number of completed rows. Raises `CheckpointHeld` on SQLite while
        another run is active, `CheckpointMismatch` if earlier runs were of another job or version.
        """
        runs = self._tables.runs
        me = holder.me(self.run)
        with self._database.writing() as connection:
            self._check_job(connection, completed > 0)
            self._end_gone(connection)
            others = sa.update(runs).where(runs.c.ended.is_(None))
            if takeover:
                connection.execute(others.values(ended="taken over"))
            elif self._database.sqlite:
                self._refuse_second(connection)
                connection.execute(others.values(ended="lost"))
            connection.execute(
                sa.insert(runs).values(
                    run=self.run,
                    job=self._job.name,
                    version=self._job.version,
                    host=me["host"],
                    pid=me["pid"],
                    machine=process.machine(),
                    began=self._database.now,
                    alive_until=self._until,
                    identity=json.dumps({**(identity or {}), **self._handler}),
                )
            )
            began = sa.select(runs.c.began).where(runs.c.run == self.run)
            return float(connection.execute(began).scalar_one())

    @property
    def _handler(self) -> dict[str, str]:
        """The known ones of the handler's file, function and code digest."""
        origin = self._job.origin
        known = handlers.describe(origin) if origin is not None else {}
        return {name: value for name, value in known.items() if value is not None}

    def _check_job(self, connection: sa.Connection, completed: bool) -> None:
        job, last = self._job, connection.execute(_newest(self._tables)).first()
        if last is None:
            return
        if last.job != job.name:
            raise CheckpointMismatch(
                f"{self._tables.url} belongs to job {last.job!r}, but this run is of job "
                f"{job.name!r}: give each job its own done= column, or change the job's name back"
            )
        if last.version != job.version and job.on_version_change != "reuse":
            raise CheckpointMismatch(
                f"{self._tables.url} was made by version {last.version!r} of the handler, this run "
                f'has version {job.version!r}: on_version_change="reuse" keeps completed rows; to '
                f"redo rows, SET {self._tables.spec.done} = NULL in them"
            )
        self.handlers.follow(json.loads(last.identity), completed=False, told=False)
        if completed:
            handlers.check(self._tables.url, self.handlers, job)
        told = last.version != job.version
        self.handlers.follow(self._handler, completed=completed, told=told)

    def _refuse_second(self, connection: sa.Connection) -> None:
        runs = self._tables.runs
        alive = sa.select(runs).where(
            runs.c.ended.is_(None), runs.c.alive_until > self._database.now
        )
        for other in connection.execute(alive):
            raise CheckpointHeld(
                f"{self._tables.url} is held by run {other.run} on host {other.host}, pid "
                f"{other.pid}, and SQLite supports one run at a time. Wait for it to end; or, if "
                "you know that it is stuck, take it over: takeover=True",
                holder={
                    "run": other.run,
                    "host": other.host,
                    "pid": other.pid,
                    **json.loads(other.identity),
                },
            )

    def end_gone(self) -> None:
        """End the runs of dead processes on this machine, which frees their claims."""
        with self._database.writing() as connection:
            self._end_gone(connection)

    def _end_gone(self, connection: sa.Connection) -> None:
        runs = self._tables.runs
        open_ones = connection.execute(sa.select(runs).where(runs.c.ended.is_(None)))
        gone = [run.run for run in open_ones if process.is_gone(run.machine, run.pid)]
        if gone:
            mine = sa.update(runs).where(runs.c.run.in_(gone), runs.c.ended.is_(None))
            connection.execute(mine.values(ended="lost"))

    def beat(self) -> bool:
        """Extend this run by `claim_seconds`; False if another run has taken over."""
        statement = sa.update(self._tables.runs).where(*self._mine)
        with self._database.writing() as connection:
            return bool(connection.execute(statement.values(alive_until=self._until)).rowcount)

    def check(self, connection: sa.Connection) -> int | None:
        """Raise `Fenced` if another run has taken over; otherwise as `set_limits`."""
        query = sa.select(self._tables.runs.c.run).where(*self._mine)
        if connection.execute(query).first() is None:
            raise Fenced(
                f"{self._tables.url} was taken over from this run; everything it committed is kept",
                remedy="Let the other run end, then run the same command again to do what is left",
            )
        return self.set_limits(connection)

    def set_limits(self, connection: sa.Connection) -> int | None:
        """Set the transaction's timeouts, and make its COMMIT durable. Returns its number."""
        if self._database.sqlite:
            return None
        # With synchronous_commit off, a crash of the server can lose the last commits. A lock
        # timeout, because a transaction that waits forever could not report that.
        connection.exec_driver_sql(
            f"SELECT set_config('lock_timeout', '{LOCK_SECONDS}s', true), "
            "set_config('statement_timeout', '0', true), "
            "CASE WHEN current_setting('synchronous_commit') = 'off' "
            "THEN set_config('synchronous_commit', 'on', true) END"
        )
        return self._database.end_if_silent(connection, self._tables.spec.claim_seconds)

    def leave(self, how: str) -> None:
        """Release the claims, and record how this run ended; "" removes it from the runs."""
        claims, runs = self._tables.claims, self._tables.runs
        left = sa.update(runs).values(ended=how) if how else sa.delete(runs)
        with self._database.writing() as connection:
            connection.execute(sa.delete(claims).where(claims.c.run == self.run))
            connection.execute(left.where(*self._mine))


def last_run(database: Database, tables: Tables) -> Any:
    """The row of the latest run: its job, version and identity; None if there is none."""
    with database.reading() as connection:
        return connection.execute(_newest(tables)).first()


def _newest(tables: Tables) -> sa.Select[Any]:
    c = tables.runs.c
    return sa.select(c.job, c.version, c.identity).order_by(c.began.desc()).limit(1)
