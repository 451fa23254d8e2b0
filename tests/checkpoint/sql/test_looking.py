"""`sql show` and `sql history`: what a table keeps, and what it does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import ItemFailure, JobFailed, SqlCheckpoint, resumable_task
from resumable_tasks.cli import main
from tests.checkpoint.sql.conftest import Db


def sql(command: str, url: str, *more: str) -> Any:
    return CliRunner().invoke(
        main, ["sql", command, url, *more, "--table", "lessons"], catch_exceptions=False
    )


@pytest.mark.sample(only="sqlite")
def test_a_row_and_the_runs(db: Db, prepared: Callable[..., SqlCheckpoint]) -> None:
    checkpoint = prepared(10)

    def label(rows: list[dict[str, Any]]) -> list[Any]:
        return [
            ItemFailure(row["id"], ValueError("no\x1b[2J")) if row["id"] == 7 else {**row}
            for row in rows
        ]

    task = resumable_task(label, key="id", batch_size=5, concurrency=1)
    assert json.loads(sql("show", db.url, "3", "--json").stdout)["status"] == "left"
    assert "no run has started yet" in sql("history", db.url).stdout
    with pytest.raises(JobFailed):
        task.run(checkpoint=checkpoint)
    done = json.loads(sql("show", db.url, "3", "--json").stdout)
    assert (done["key"], done["status"], done["row"]["id"]) == (3, "completed", 3)
    assert "not recorded in a table: the run" in sql("show", db.url, "3").stdout
    failed = sql("show", db.url, "7")
    assert "status       failed" in failed.stdout
    assert r"ValueError: no\x1b[2J" in failed.stdout
    (run,) = json.loads(sql("history", db.url, "--json").stdout)
    assert (run["number"], run["ended"], run["job"]) == (1, "failed", "label")
    assert json.loads(sql("show", db.url, "7", "--json").stdout)["run"] == run["run"]
    assert run["run"] in sql("history", db.url).stdout
    assert sql("history", db.url, "--csv").stdout.startswith("number,run,job")
    for key in ("99", "x"):
        absent = sql("show", db.url, key)
        assert (absent.exit_code, "has no row with key" in absent.stderr) == (2, True)


def test_keys_of_text_and_of_several_columns(db: Db) -> None:
    db.do(
        "CREATE TABLE lessons (lang VARCHAR(9), id INTEGER, processed_at TEXT, "
        "PRIMARY KEY (lang, id))",
        "INSERT INTO lessons VALUES ('de', 1, NULL), ('en', 1, NULL)",
    )
    assert sql("init", db.url, "--apply").exit_code == 0
    found = json.loads(sql("show", db.url, '["en", 1]', "--json").stdout)
    assert (found["key"], found["status"]) == (["en", 1], "left")
    assert sql("show", db.url, "en").exit_code == 2
