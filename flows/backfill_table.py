"""Backfill a column of a database table: rows that lack it are handled, each exactly once.

    python -m flows.backfill_table URL --make 100000      makes a table of so many lessons first
    python -m flows.backfill_table URL                    the same command again resumes

URL is SQLAlchemy's: ``sqlite:///shop.db``, ``postgresql://user@host/name``. The column `words` of
the table `lessons` gets the number of words of each text, and `processed_at` says which are done.
On PostgreSQL the command may be started several times: the drivers share the rows.

To Prefect it is the flow ``flows/backfill_table.py:backfill_table``; started as a script it is a
flow run if PREFECT_API_URL names a server, unless ``--local`` says otherwise.

Exit codes: 0 done · 1 items failed · 2 usage · 3 held by another run · 75 run again to resume.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from resumable_tasks import (
    Interrupted,
    ResumableTasksError,
    RunResult,
    SqlCheckpoint,
    resumable_task,
)

# As a script it does not pay for the import of Prefect; see `flows.nightly_ingest`.
if TYPE_CHECKING or __name__ == "__main__":
    from flows.ingest import flow
else:
    try:
        from prefect import flow
    except ImportError:
        from flows.ingest import flow

TABLE, KEY, COLUMN = "lessons", "id", "words"
_MAKE = (
    "CREATE TABLE lessons (id INTEGER PRIMARY KEY, text VARCHAR(200) NOT NULL)",
    "INSERT INTO lessons (id, text) WITH RECURSIVE n(i) AS "
    "(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count:d}) "
    "SELECT i, 'lesson ' || i || CASE WHEN (i & 1) = 0 THEN ' on even numbers' ELSE '' END FROM n",
)


@resumable_task(name="count-words", batch_size=200)
def count_words(lessons: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Stands for whatever takes hours: a model, an API."""
    time.sleep(float(os.environ.get("BACKFILL_SECONDS", "0")))
    return [{KEY: lesson[KEY], COLUMN: len(lesson["text"].split())} for lesson in lessons]


@flow(name="backfill-table")
def backfill_table(url: str, batch_size: int = 200, concurrency: int = 4) -> Any:
    """Backfill the column; killed, it is resumed by the next run.

    Args:
        url: of the database.
        batch_size: rows a batch, at most.
        concurrency: batches at once.
    """
    result = backfill(url, batch_size=batch_size, concurrency=concurrency)
    if flow.__module__ == "flows.ingest":  # there is no Prefect
        return result
    from resumable_tasks import flow_state

    return flow_state(result)


def backfill(url: str, **options: Any) -> RunResult:
    checkpoint = SqlCheckpoint(url, table=TABLE, key=KEY, columns=[COLUMN])
    return count_words.with_options(**options).run(checkpoint=checkpoint)


def make(url: str, count: int) -> None:
    """Make the table, and prepare it as `resumable sql init --apply` does."""
    from resumable_tasks.checkpoint.sql import init
    from resumable_tasks.checkpoint.sql.database import Database

    database = Database(url, create=True)
    try:
        init.apply(database, [statement.format(count=count) for statement in _MAKE])
        checkpoint = SqlCheckpoint(url, table=TABLE, key=KEY, columns=[COLUMN])
        init.apply(database, init.statements(database, checkpoint, {COLUMN: "INTEGER"}))
    finally:
        database.close()


def main(argv: Sequence[str] | None = None) -> int:
    args = arguments(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    options = {"batch_size": args.batch_size, "concurrency": args.concurrency}
    try:
        if args.make:
            make(args.url, args.make)
        if not args.local and os.environ.get("PREFECT_API_URL"):
            # By its name, unlike this script, it is a flow.
            as_flow = importlib.import_module("flows.backfill_table").backfill_table
            result: RunResult = as_flow(args.url, **options)
        else:
            result = backfill(args.url, **options)
    except (ResumableTasksError, Interrupted) as error:
        logging.error("%s", error)  # noqa: TRY400 - the message says what to do; no traceback
        return error.exit_code
    print(f"{result.completed:,} rows handled now, {result.skipped:,} before", flush=True)
    return 0


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m flows.backfill_table",
        description="Backfill a column of a database table; resumable.",
        epilog="Exit codes: 0 done, 1 items failed, 2 usage, 3 held by another run, 75 "
        "interrupted: run the same command again.",
    )
    add = parser.add_argument
    add("url", metavar="URL", help="of the database, as SQLAlchemy has it")
    add("--make", type=int, metavar="ROWS", help="make the table first, with so many rows")
    add("--batch-size", type=int, default=200, help="rows a batch (default: %(default)s)")
    add("--concurrency", type=int, default=4, help="batches at once (default: %(default)s)")
    add("--local", action="store_true", help="without Prefect, even if PREFECT_API_URL is set")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
