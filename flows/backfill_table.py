"""Backfill a column of a database table: rows that lack it are handled, each exactly once.

    python -m flows.backfill_table URL --make 100000      makes a table of so many lessons first
    python -m flows.backfill_table URL                    the same command again resumes

URL is SQLAlchemy's: ``sqlite:///shop.db``, ``postgresql://user@host/name``. The column `words` of
the table `lessons` gets the number of words of each text, and `processed_at` says which are done.
On PostgreSQL the command may be started several times: the drivers share the rows.

To Prefect it is the flow ``flows/backfill_table.py:backfill_table``.
"""

from __future__ import annotations

import os
import subprocess
import sysconfig
import time
from typing import Any

from flows._command import command
from flows._prefect import as_flow
from resumable_tasks import RunResult, SqlCheckpoint, UsageError, resumable_task

TABLE, KEY, COLUMN = "lessons", "id", "words"
_MAKE = (
    "CREATE TABLE lessons (id INTEGER PRIMARY KEY, text VARCHAR(200) NOT NULL, words INTEGER)",
    "INSERT INTO lessons (id, text) WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count:d}) "
    "SELECT i, 'lesson ' || i || CASE WHEN (i & 1) = 0 THEN ' on even numbers' ELSE '' END FROM n",
)


@resumable_task(name="count-words")
def count_words(lessons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stands for whatever takes hours: a model, an API."""
    time.sleep(float(os.environ.get("BACKFILL_SECONDS", "0")))
    return [{KEY: lesson[KEY], COLUMN: len(lesson["text"].split())} for lesson in lessons]


def backfill(
    url: str, make: int | None = None, batch_size: int = 200, concurrency: int = 4
) -> RunResult:
    """Backfill the column; killed, it is resumed by the next run.

    Args:
        url: of the database, as SQLAlchemy has it.
        make: make the table first, with so many rows.
        batch_size: rows a batch, at most.
        concurrency: batches at once.
    """
    if make is not None:
        make_table(url, make)
    checkpoint = SqlCheckpoint(url, table=TABLE, key=KEY, columns=[COLUMN])
    job = count_words.with_options(batch_size=batch_size, concurrency=concurrency)
    return job.run(checkpoint=checkpoint)


def make_table(url: str, count: int) -> None:
    """Make the table, and have `resumable sql init --apply` prepare it."""
    import sqlalchemy as sa

    there = sa.make_url(url)
    if there.drivername == "postgresql":
        there = there.set(drivername="postgresql+psycopg")
    engine = sa.create_engine(there)
    with engine.begin() as connection:
        for statement in _MAKE:
            connection.exec_driver_sql(statement.format(count=count))
    engine.dispose()
    resumable = os.path.join(sysconfig.get_path("scripts"), "resumable")
    init = ["sql", "init", url, "--table", TABLE, "--key", KEY, "--column", COLUMN, "--apply"]
    done = subprocess.run([resumable, *init], capture_output=True, text=True)  # noqa: S603 - ours
    if done.returncode:
        raise UsageError(done.stderr)


backfill_table = as_flow(backfill, "backfill-table")
main = command(backfill, backfill_table, unit="rows")

if __name__ == "__main__":
    main()
