"""Backfilling a table of PostgreSQL against a loop by hand: `python -m tests.benchmarks.table`.

The same rows in the same batches, in one run, on a server of its own. The loop by hand is for one
process: it claims nothing, records no failure, and knows nothing of others.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import psycopg
import sqlalchemy as sa

from resumable_tasks import SqlCheckpoint, resumable_task
from resumable_tasks.checkpoint.sql import init
from resumable_tasks.checkpoint.sql.database import Database
from tests.checkpoint.sql import postgres

ROWS, BATCH, ROUNDS = 100_000, 200, 3


def make(url: str, rows: int) -> None:
    engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        beside = ", ".join(
            f"lessons_processed_at_{name}" for name in ("runs", "claims", "failures")
        )
        connection.exec_driver_sql(f"DROP TABLE IF EXISTS lessons, {beside}")
        connection.exec_driver_sql(
            "CREATE TABLE lessons (id INTEGER PRIMARY KEY, text TEXT NOT NULL, label TEXT, "
            "processed_at TIMESTAMPTZ)"
        )
        connection.exec_driver_sql(
            "INSERT INTO lessons (id, text) "
            f"SELECT i, 'text ' || i FROM generate_series(1, {rows:d}) i"
        )
        connection.exec_driver_sql("ANALYZE lessons")
    engine.dispose()


def by_hand(url: str) -> None:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        last = 0
        while True:
            rows = connection.execute(
                "SELECT id, text FROM lessons WHERE processed_at IS NULL AND id > %s "
                "ORDER BY id LIMIT %s",
                (last, BATCH),
            ).fetchall()
            if not rows:
                return
            with connection.cursor() as cursor:
                cursor.executemany(
                    "UPDATE lessons SET label = %s, processed_at = clock_timestamp() WHERE id = %s",
                    [(text.upper(), key) for key, text in rows],
                )
            connection.commit()
            last = rows[-1][0]


@resumable_task(name="label", batch_size=BATCH)
def label(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"id": row["id"], "label": row["text"].upper()} for row in rows]


def by_us(url: str) -> None:
    checkpoint = SqlCheckpoint(url, table="lessons", key="id", columns=["label"])
    database = Database(url)
    init.apply(database, init.statements(database, checkpoint, {}))
    database.close()
    label.run(checkpoint=checkpoint)


def timed(work: Callable[[str], None], url: str, rows: int) -> tuple[float, float]:
    make(url, rows)
    wall, processor = time.perf_counter(), time.process_time()
    work(url)
    return time.perf_counter() - wall, time.process_time() - processor


def main(rows: int = ROWS) -> None:
    with postgres.server() as server:
        url = server.url + "postgres"
        for _ in range(ROUNDS):
            hand, ours = timed(by_hand, url, rows), timed(by_us, url, rows)
            print(
                f"{rows:,} rows: by hand {hand[0]:.1f} s ({hand[1]:.1f} s of processor time), "
                f"SqlCheckpoint {ours[0]:.1f} s ({ours[1]:.1f} s): {ours[0] / hand[0]:.1f} times, "
                f"{ours[1] / hand[1]:.1f} times",
                flush=True,
            )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
