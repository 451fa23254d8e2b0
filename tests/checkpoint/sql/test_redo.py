"""Rows of a table that are to be done again: their column is unset, and old results are gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import (
    JobFailed,
    ResumableTask,
    SqlCheckpoint,
    UsageError,
    redo,
    resumable_task,
)
from tests.checkpoint.sql.conftest import Db

Prepared = Callable[..., SqlCheckpoint]

CHOICES = [
    ({"keys": [3, 17]}, [3, 17]),
    ({"keys": []}, []),
    ({"where": "label = 'old 4' or label = 'old 5' -- two"}, [4, 5]),
    ({"where": "label like 'old 1_'", "keys": [1, 11]}, [11]),
    ({"before": "2999-01-01"}, list(range(1, 21))),
    ({"before": "2020-01-01T00:00Z"}, []),
]


def job(say: str = "old", **options: Any) -> ResumableTask[Any]:
    def label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], "label": f"{say} {row['id']}"} for row in rows]

    return resumable_task(label, key="id", batch_size=6, **options)


FORMS = ("columns", "results_table", "shards")
# How rows are chosen is the same for every form; what is undone for them differs.
ALSO = [(form, *choice) for form in FORMS[1:] for choice in CHOICES[1:]]


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize(
    ("form", "choice", "keys"),
    [
        *((form, *choice) for form in FORMS for choice in CHOICES if (form, *choice) not in ALSO),
        *(pytest.param(*each, marks=pytest.mark.long) for each in ALSO),
    ],
    ids=str,
)
def test_the_chosen_rows_are_done_again_and_no_others(
    db: Db, prepared: Prepared, tmp_path: Path, form: str, choice: dict[str, Any], keys: list[int]
) -> None:
    db.do("CREATE TABLE labels (id INTEGER NOT NULL, label TEXT)")
    places = {"columns": ["label"], "results_table": "labels", "shards": tmp_path / "shards"}
    checkpoint = prepared(20, **{form: places[form]})
    job().run(checkpoint=checkpoint)
    assert redo(checkpoint, **choice, dry_run=True) == keys
    assert job().run(checkpoint=checkpoint).completed == 0
    assert redo(checkpoint, **choice) == keys
    left = [row for (row,) in db.rows("SELECT id FROM lessons WHERE processed_at IS NULL")]
    assert sorted(left) == keys
    if form == "results_table":
        assert db.one("SELECT count(*) FROM labels") == 20 - len(keys)
    run = job("new").run(checkpoint=checkpoint)
    assert run.completed == len(keys)
    table = run.table()
    found = dict(zip(table["id"].to_pylist(), table["label"].to_pylist(), strict=True))
    assert found == {n: f"{'new' if n in keys else 'old'} {n}" for n in range(1, 21)}
    assert table.num_rows == 20


@pytest.mark.sample(only="sqlite")
def test_what_chooses_nothing_is_refused(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(5)
    job().run(checkpoint=checkpoint)
    with pytest.raises(UsageError, match="no row with key 6 is completed"):
        redo(checkpoint, keys=[1, 6])
    with pytest.raises(UsageError, match="lable"):
        redo(checkpoint, where="lable = 'x'")
    assert db.one("SELECT count(*) FROM lessons WHERE processed_at IS NULL") == 0


@pytest.mark.sample(only="postgresql")
def test_other_rows_and_failures_are_left_alone(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(6)

    def label(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if any(row["id"] == 2 for row in rows):
            raise ValueError("2 is bad")
        return [{"id": row["id"], "label": "x"} for row in rows]

    with pytest.raises(JobFailed):
        resumable_task(label, key="id", batch_size=2).run(checkpoint=checkpoint)
    part = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"], where="id > 3")
    assert redo(part, where="label = 'x'") == [4, 5, 6]
    assert db.one("SELECT count(*) FROM lessons_processed_at_failures") == 1


def test_a_boolean_column_does_not_say_when(db: Db) -> None:
    db.make(3)
    db.do("ALTER TABLE lessons ADD COLUMN ready BOOLEAN")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", done="ready", columns=["label"])
    db.prepare(checkpoint)
    job().run(checkpoint=checkpoint)
    with pytest.raises(UsageError, match="is a boolean and does not say when"):
        redo(checkpoint, before="2026-11-23")
    assert redo(checkpoint, keys=[2]) == [2]
    assert job("new").run(checkpoint=checkpoint).completed == 1


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize("form", ["columns", "shards"])
def test_an_edited_handler_is_said_once(
    db: Db, prepared: Prepared, tmp_path: Path, caplog: pytest.LogCaptureFixture, form: str
) -> None:
    checkpoint = prepared(9, **{form: ["label"] if form == "columns" else tmp_path / "c"})
    for say, said in (("old", 0), ("old", 0), ("new", 1), ("new", 0)):
        caplog.clear()
        job(say).run(checkpoint=checkpoint)
        found = [text for text in caplog.messages if "code has changed" in text]
        assert len(found) == said
        assert all("redo" in text and "before" in text for text in found)
