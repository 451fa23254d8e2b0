"""`resumable sql init`: prints the SQL, and runs it only with ``--apply``."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resumable_tasks import SqlCheckpoint, resumable_task
from resumable_tasks.checkpoint.sql import init
from resumable_tasks.checkpoint.sql.database import Database
from resumable_tasks.cli import main
from tests.checkpoint.sql.conftest import Db


def sql_init(db: Db, *more: str) -> Result:
    words = ["sql", "init", db.url, "--table", "lessons", "--key", "id", *more]
    return CliRunner().invoke(main, words)


def tables(db: Db) -> set[str]:
    import sqlalchemy as sa

    return set(sa.inspect(db.engine).get_table_names())


def nothing_to_do(db: Db, checkpoint: SqlCheckpoint) -> bool:
    database = Database(db.url)
    try:
        return not init.statements(database, checkpoint, {})
    finally:
        database.close()


def labelled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": row["id"], "label": "x"} for row in rows]


def wait_for(condition: Callable[[], bool]) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it has not come about")


def test_it_prints_and_with_apply_does_it(db: Db) -> None:
    db.make(10, columns="")
    printed = sql_init(db, "--column", "label:VARCHAR(20)")
    assert printed.exit_code == 0, printed.output
    assert "ALTER TABLE lessons ADD COLUMN processed_at" in printed.stdout
    assert "ADD COLUMN label VARCHAR(20);" in printed.stdout
    assert "nothing was changed" in printed.stderr
    assert tables(db) == {"lessons"}
    applied = sql_init(db, "--column", "label:VARCHAR(20)", "--apply")
    assert (applied.exit_code, applied.stdout) == (0, printed.stdout)
    assert len(tables(db)) == 4
    again = sql_init(db, "--column", "label", "--apply")
    assert (again.exit_code, again.stdout) == (0, "")

    def label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], "label": "x"} for row in rows]

    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    assert resumable_task(label).run(checkpoint=checkpoint).completed == 10


def test_what_it_prints_can_be_run_as_it_is(db: Db) -> None:
    db.make(10)
    script = sql_init(db).stdout
    with db.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for each in script.split(";\n"):
            if each.strip():
                connection.exec_driver_sql(each)
    assert sql_init(db).stdout == ""


@pytest.mark.sample(only="sqlite")
def test_what_cannot_be_prepared_ends_with_2_and_changes_nothing(db: Db) -> None:
    db.make(3, columns="")
    wrong = sql_init(db, "--key", "nothing", "--apply")
    assert (wrong.exit_code, tables(db)) == (2, {"lessons"})
    assert "no column 'nothing'" in wrong.stderr
    broken = sql_init(db, "--column", "label:NO SUCH TYPE (", "--apply")
    assert (broken.exit_code, tables(db)) == (2, {"lessons"})
    assert "Fix what the message names" in broken.stderr


@pytest.mark.parametrize("length", [48, 51, 63])
def test_a_table_with_a_long_name(db: Db, length: int) -> None:
    """PostgreSQL cuts a name after 63 bytes, so that names that differ at the end become one."""
    name = "é" + "t" * (length - 2)
    db.do(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, label TEXT)")
    db.do(f"INSERT INTO {name} (id) VALUES (1), (2)")
    checkpoint = SqlCheckpoint(db.url, table=name, key="id", columns=["label"])
    db.prepare(checkpoint)
    made = tables(db) - {name}
    assert len(made) == 3
    assert all(len(each.encode()) <= 63 for each in made)
    assert nothing_to_do(db, checkpoint)
    assert resumable_task(labelled, name="label").run(checkpoint=checkpoint).completed == 2


def test_names_that_have_to_be_quoted(db: Db) -> None:
    percent = "%" if db.url.startswith("sqlite") else "%%"  # psycopg takes one away
    for each in (
        'CREATE TABLE "Les""%son s" ("i%d" INTEGER PRIMARY KEY, "la%bel" TEXT)',
        'INSERT INTO "Les""%son s" ("i%d") VALUES (1), (2)',
    ):
        db.do(each.replace("%", percent))
    checkpoint = SqlCheckpoint(
        db.url, table='Les"%son s', key="i%d", done="do%ne", columns=["la%bel"]
    )
    words = [
        "sql",
        "init",
        db.url,
        "--table",
        'Les"%son s',
        "--done",
        "do%ne",
        "--column",
        "la%bel",
    ]
    shown = CliRunner().invoke(main, words)
    assert 'ALTER TABLE "Les""%son s" ADD COLUMN "do%ne"' in shown.stdout
    assert 'CREATE TABLE "Les""%son s_do%ne_claims"' in shown.stdout
    assert "%%" not in shown.stdout
    assert CliRunner().invoke(main, [*words, "--apply"]).exit_code == 0
    assert nothing_to_do(db, checkpoint)

    def label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"i%d": row["i%d"], "la%bel": "x"} for row in rows]

    assert resumable_task(label).run(checkpoint=checkpoint).completed == 2


def test_a_view_is_no_table(db: Db) -> None:
    db.make(3)
    db.do("CREATE VIEW seen AS SELECT * FROM lessons")
    for key in ([], ["--key", "id"]):
        answer = CliRunner().invoke(main, ["sql", "init", db.url, "--table", "seen", *key])
        assert answer.exit_code == 2
        assert "seen is a view" in answer.stderr


@pytest.mark.sample(only="sqlite")
def test_the_tables_that_a_table_refers_to_are_not_asked_for(db: Db) -> None:
    """Each of them would ask for those that it refers to, in turn."""
    db.do("CREATE TABLE t0 (id INTEGER PRIMARY KEY)")
    for n in range(1, 200):
        db.do(f"CREATE TABLE t{n} (id INTEGER PRIMARY KEY, up INTEGER REFERENCES t{n - 1} (id))")
    db.prepare(SqlCheckpoint(db.url, table="t199", key="id"))


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    for command in ("init", "status"):
        url = f"sqlite:///{tmp_path / 'shopp.db'}"
        answer = CliRunner().invoke(main, ["sql", command, url, "--table", "lessons"])
        assert answer.exit_code == 2
        assert "there is no such file" in answer.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_table_that_a_session_holds_is_not_waited_for_long(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waits for it has all others wait behind."""
    monkeypatch.setattr(init, "_PATIENCE", 1)
    db = Db(postgres_url)
    db.make(3)
    with db.engine.connect() as other:
        other.exec_driver_sql("SELECT * FROM lessons")
        answer = sql_init(db, "--apply")
    assert (answer.exit_code, tables(db)) == (75, {"lessons"})
    assert "a session holds the table" in answer.stderr
    assert "This attempt committed nothing" in answer.stderr
    assert sql_init(db, "--apply").exit_code == 0


def test_the_table_is_read_and_written_while_the_index_is_made(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that has begun before holds the index up, and nobody else."""
    db = Db(postgres_url)
    db.make(3)
    answers: list[Result] = []
    with db.engine.connect() as other:
        apply = init.apply

        def and_somebody_writes(database: Database, many: list[str]) -> None:
            *before, index = many
            apply(database, before)
            other.exec_driver_sql("UPDATE lessons SET text = text WHERE id = 1")
            apply(database, [index])

        monkeypatch.setattr(init, "apply", and_somebody_writes)
        thread = threading.Thread(target=lambda: answers.append(sql_init(db, "--apply")))
        thread.start()
        wait_for(
            lambda: (
                db.one(
                    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                    "AND query LIKE 'CREATE INDEX CONCURRENTLY%%'"
                )
                == 1
            )
        )
        db.do("SET lock_timeout = '1s'", "UPDATE lessons SET text = 'new' WHERE id = 2")
        assert len(db.rows("SELECT * FROM lessons")) == 3
        other.rollback()
        thread.join(30)
    assert answers[0].exit_code == 0, answers[0].output
    assert sql_init(db).stdout == ""


def test_an_index_that_was_not_made_to_its_end_is_made_again(postgres_url: str) -> None:
    db = Db(postgres_url)
    db.make(3)
    db.do("CREATE SCHEMA school", "ALTER TABLE lessons SET SCHEMA school")
    checkpoint = SqlCheckpoint(db.url, table="school.lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    valid = (
        "SELECT indisvalid FROM pg_index WHERE indexrelid = "
        "'school.lessons_processed_at_todo'::regclass"
    )
    assert db.one(valid)
    # As one is left by CREATE INDEX CONCURRENTLY if it is ended half way.
    db.do(
        "UPDATE pg_index SET indisvalid = false WHERE indexrelid = "
        "'school.lessons_processed_at_todo'::regclass"
    )
    words = ["sql", "init", db.url, "--table", "school.lessons", "--column", "label", "--apply"]
    answer = CliRunner().invoke(main, words)
    assert answer.exit_code == 0, answer.output
    assert answer.stdout.splitlines() == [
        "DROP INDEX CONCURRENTLY school.lessons_processed_at_todo;",
        "CREATE INDEX CONCURRENTLY lessons_processed_at_todo ON school.lessons (id) "
        "WHERE processed_at IS NULL;",
    ]
    assert db.one(valid)
    assert nothing_to_do(db, checkpoint)


def test_a_table_in_partitions(postgres_url: str) -> None:
    db = Db(postgres_url)
    db.do(
        "CREATE TABLE lessons (id INTEGER PRIMARY KEY, label TEXT) PARTITION BY RANGE (id)",
        "CREATE TABLE lessons_1 PARTITION OF lessons FOR VALUES FROM (0) TO (100)",
        "INSERT INTO lessons (id) VALUES (1), (2)",
    )
    answer = sql_init(db, "--apply")
    assert answer.exit_code == 0, answer.output
    assert "CONCURRENTLY" not in answer.stdout
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    assert nothing_to_do(db, checkpoint)
    assert resumable_task(labelled, name="label").run(checkpoint=checkpoint).completed == 2
