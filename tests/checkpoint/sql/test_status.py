"""`resumable sql status`: how far a table is, without changing anything."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resumable_tasks import Budget, ItemFailure, JobFailed, SqlCheckpoint, resumable_task
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.checkpoint.sql.status import TableStatus, table_status
from resumable_tasks.cli import main
from tests.checkpoint.sql.conftest import Db


def sql_status(url: str, *more: str) -> Result:
    return CliRunner().invoke(main, ["sql", "status", url, "--table", "lessons", *more])


def described(db: Db, *more: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sql_status(db.url, "--json", *more).stdout)
    return found


@pytest.mark.sample(only="postgresql")
def test_from_nothing_to_done(db: Db, prepared: Callable[..., SqlCheckpoint]) -> None:
    checkpoint = prepared(20)
    nothing = sql_status(db.url)
    assert nothing.exit_code == 75
    assert nothing.stdout.startswith("no run yet\n")
    bad = True
    seen: list[TableStatus] = []
    database = Database(db.url)

    def label(rows: list[dict[str, Any]]) -> list[Any]:
        seen.append(table_status(database, checkpoint))
        return [
            ItemFailure(row["id"], "no") if bad and row["id"] == 7 else {**row, "label": "x"}
            for row in rows
        ]

    task = resumable_task(label, key="id", batch_size=5, concurrency=1, budget=Budget(items=10))
    with pytest.raises(KeyboardInterrupt):
        task.run(checkpoint=checkpoint)
    during, found = seen[0], described(db)
    assert (during.status, len(during.running)) == ("running", 1)
    assert during.running[0]["run"] == found["last_run"]["run"]
    assert (during.claimed > 0) != database.sqlite
    counts = "rows", "completed", "failed", "left", "claimed", "errors"
    assert [found[name] for name in counts] == [20, 9, 1, 10, 0, {"ItemFailure": 1}]
    assert (found["status"], found["exit_code"], found["job"]) == ("spent", 5, "label")
    assert (found["running"], found["last_run"]["ended"]) == ([], "spent")
    with pytest.raises(JobFailed):
        task.with_options(budget=Budget()).run(checkpoint=checkpoint)
    failed = sql_status(db.url)
    assert (failed.exit_code, "1: 1 × ItemFailure" in failed.stdout) == (1, True)
    task.with_options(budget=Budget(), tolerated_failures=1).run(checkpoint=checkpoint)
    assert (sql_status(db.url).exit_code, described(db)["failed"]) == (0, 1)
    bad = False
    task.with_options(budget=Budget()).run(checkpoint=checkpoint)
    assert (sql_status(db.url).exit_code, described(db)["completed"]) == (0, 20)
    assert described(db, "--where", "id > 15")["rows"] == 5
    database.close()


@pytest.mark.sample(only="sqlite")
def test_a_run_that_was_killed_is_not_at_work(
    db: Db, prepared: Callable[..., SqlCheckpoint]
) -> None:
    prepared(20)
    code = f"""
import os, signal
from resumable_tasks import SqlCheckpoint, resumable_task
resumable_task(lambda rows: os.kill(os.getpid(), signal.SIGKILL), name="label", results="none").run(
    checkpoint=SqlCheckpoint({db.url!r}, table="lessons", key="id"))
"""
    died = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert died.returncode == -signal.SIGKILL, died.stderr
    found = sql_status(db.url)
    assert found.exit_code == 75
    assert "unknown: it died" in found.stdout


def test_what_is_not_there_is_said(db: Db) -> None:
    db.do("CREATE TABLE other (n INTEGER)")
    absent = sql_status(db.url)
    assert (absent.exit_code, "no table 'lessons'" in absent.stderr) == (2, True)
    db.make(3, columns="")
    plain = sql_status(db.url)
    assert (plain.exit_code, "resumable sql init" in plain.stderr) == (2, True)
    db.do("CREATE TABLE bare (n INTEGER)")
    keyless = CliRunner().invoke(main, ["sql", "status", db.url, "--table", "bare"])
    assert (keyless.exit_code, "by --key" in keyless.stderr) == (2, True)
