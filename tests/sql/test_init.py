"""`resumable sql init`: prints the SQL, and runs it only with ``--apply``."""

from __future__ import annotations

from typing import Any

from click.testing import CliRunner, Result

from resumable_tasks import SqlCheckpoint, resumable_task
from resumable_tasks.cli import main

from .conftest import Db


def sql_init(db: Db, *more: str) -> Result:
    words = ["sql", "init", db.url, "--table", "lessons", "--key", "id", *more]
    return CliRunner().invoke(main, words)


def tables(db: Db) -> set[str]:
    import sqlalchemy as sa

    return set(sa.inspect(db.engine).get_table_names())


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
    db.do(*(each for each in script.split(";\n") if each.strip()))
    assert sql_init(db).stdout == ""


def test_what_cannot_be_prepared_ends_with_2_and_changes_nothing(db: Db) -> None:
    db.make(3, columns="")
    wrong = sql_init(db, "--key", "nothing", "--apply")
    assert (wrong.exit_code, tables(db)) == (2, {"lessons"})
    assert "no column 'nothing'" in wrong.stderr
    broken = sql_init(db, "--column", "label:NO SUCH TYPE (", "--apply")
    assert (broken.exit_code, tables(db)) == (75, {"lessons"})
