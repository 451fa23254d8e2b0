"""`resumable sql accept`: parked results of a table are taken over, without a run of its job."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import JobFailed, SqlCheckpoint, resumable_task
from resumable_tasks.cli import main
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]
CONVERT = """
def shorter(row):
    if row["id"] == 4:
        raise ValueError("not this one")
    return {**row, "label": f"{row['label']} {row['id']}"}


def as_text(row):
    return {**row, "label": str(row["label"])}
"""


@pytest.fixture
def parked(db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqlCheckpoint:
    """60 lessons, of which 2, 3 and 4 have one label, and a table that takes each label once."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conversions_of_labels.py").write_text(CONVERT)
    db.make(60)
    db.do(
        "CREATE TABLE labels (id INTEGER, label TEXT)", "CREATE UNIQUE INDEX one ON labels (label)"
    )
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="labels")
    db.prepare(checkpoint)
    with pytest.raises(JobFailed, match="2 of 60 items of label are parked"):
        label.run(checkpoint=checkpoint)
    return checkpoint


@resumable_task(batch_size=20, concurrency=1)
def label(rows: Rows) -> Rows:
    return [
        {"id": row["id"], "label": "same" if row["id"] in (2, 3, 4) else str(row["id"])}
        for row in rows
    ]


def accept(db: Db, *words: str) -> tuple[int, dict[str, Any]]:
    where = () if "--column" in words else ("--results-table", "labels")
    line = ["sql", "accept", db.url, "--table", "lessons", *where, *words, "--json"]
    answer = CliRunner().invoke(main, line)
    return answer.exit_code, json.loads(answer.stdout) if answer.stdout else {"": answer.output}


@pytest.mark.sample(only="postgresql")
@pytest.mark.usefixtures("parked")
def test_a_converter_makes_parked_results_fit(db: Db) -> None:
    code, said = accept(db)
    assert (code, said["accepted"], said["parked"]) == (1, 0, 2)
    code, said = accept(db, "--json-column", "lable")
    assert (code, "Did you mean label?" in said[""]) == (2, True)
    code, said = accept(db, "--convert", "conversions_of_labels:shorter")
    assert (code, said["accepted"], said["parked"], said["example"]["key"]) == (1, 1, 1, 4)
    assert db.rows("SELECT label FROM labels WHERE id = 3") == [("same 3",)]
    assert db.one("SELECT count(*) FROM lessons WHERE processed_at IS NULL") == 1
    db.do("DROP INDEX one")
    code, said = accept(db)
    assert (code, said["accepted"], said["parked"], said["example"]) == (0, 1, 0, None)
    assert db.one("SELECT count(*) FROM lessons_processed_at_failures") == 0
    status = CliRunner().invoke(main, ["sql", "status", db.url, "--table", "lessons"])
    assert status.exit_code == 0
    assert accept(db)[0] == 0


@pytest.mark.sample(only="sqlite")
def test_what_the_last_run_has_said_stays(
    db: Db, parked: SqlCheckpoint, caplog: pytest.LogCaptureFixture
) -> None:
    db.do("DROP INDEX one")
    query = "SELECT job, version, ended, identity FROM lessons_processed_at_runs ORDER BY began"
    before = db.rows(query)[-1]
    assert accept(db)[0] == 0
    assert db.rows(query)[-1] == before

    @resumable_task(name="label")
    def edited(rows: Rows) -> Rows:
        return [{"id": row["id"], "label": "x"} for row in rows]

    edited.run(checkpoint=parked)
    assert "another handler completed" in caplog.text


@pytest.mark.sample(only="sqlite")
def test_columns_of_the_same_row(db: Db, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conversions_of_labels.py").write_text(CONVERT)
    db.make(10, columns="label TEXT CHECK (label <> 'bad')")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)

    @resumable_task(key="id")
    def job(rows: Rows) -> Rows:
        return [{"id": row["id"], "label": "bad" if row["id"] == 3 else "ok"} for row in rows]

    with pytest.raises(JobFailed):
        job.run(checkpoint=checkpoint)
    code, said = accept(db, "--column", "label", "--convert", "conversions_of_labels:shorter")
    assert (code, said["accepted"], said["parked"]) == (0, 1, 0)
    assert db.rows("SELECT label FROM lessons WHERE id = 3") == [("bad 3",)]


@pytest.mark.sample(only="sqlite")
def test_a_run_at_work_keeps_what_is_its_own(db: Db, parked: SqlCheckpoint) -> None:
    db.do("INSERT INTO lessons (id, text) VALUES (61, 'one more')", "DROP INDEX one")
    seen: list[tuple[int, dict[str, Any]]] = []

    @resumable_task(name="label")
    def another(rows: Rows) -> Rows:
        db.do("CREATE UNIQUE INDEX one ON labels (label, id)")
        seen.append(accept(db))
        return [{"id": row["id"], "label": "y"} for row in rows]

    run = another.run(checkpoint=parked)  # which takes over what is parked when it begins
    code, said = seen[0]
    assert (run.completed, run.parked) == (1, 0)
    if db.engine.dialect.name == "sqlite":
        assert (code, "is held by run" in said[""]) == (3, True)
    else:
        assert (code, said["accepted"], said["parked"]) == (0, 0, 0)
    assert db.one("SELECT count(*) FROM labels WHERE label = 'same'") == 3


@pytest.mark.sample(only="sqlite")
def test_a_table_without_runs_has_nothing_parked(db: Db) -> None:
    db.make(3)
    db.do("CREATE TABLE labels (id INTEGER, label TEXT)")
    db.prepare(SqlCheckpoint(db.url, table="lessons", key="id", results_table="labels"))
    assert accept(db)[1]["accepted"] == 0
    answer = CliRunner().invoke(main, ["sql", "accept", db.url, "--table", "lessons"])
    assert (answer.exit_code, "--column" in answer.output) == (2, True)
