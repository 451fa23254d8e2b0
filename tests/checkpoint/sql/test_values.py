"""What the handler returns, and a table that will not have it: no call is made for it again."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any

import pytest

from resumable_tasks import JobFailed, SqlCheckpoint, UsageError, resumable_task
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]
Prepared = Callable[..., SqlCheckpoint]


@pytest.fixture
def postgres(db: Db) -> None:
    if db.engine.dialect.name != "postgresql":
        pytest.skip("SQLite checks less")


@pytest.mark.parametrize("place", ["columns", "results_table"])
def test_json_stands_there_as_it_was_given(db: Db, place: str) -> None:
    kind = "JSONB" if db.engine.dialect.name == "postgresql" else "JSON"
    db.make(6, columns=f"j {kind}")
    db.do(f"CREATE TABLE found (id INTEGER, j {kind})")
    given = {1: {"a": 1}, 2: {"b": 2.5}, 3: {}, 4: None, 5: [{"a": "text"}, 1], 6: "text"}
    more: dict[str, Any] = {place: ["j"] if place == "columns" else "found"}
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", **more)
    db.prepare(checkpoint)
    task = resumable_task(
        lambda rows: [{"id": r["id"], "j": given[r["id"]]} for r in rows], name="j"
    )
    run = task.run(checkpoint=checkpoint)
    assert run.completed == 6
    table = "lessons" if place == "columns" else "found"
    assert db.one(f"SELECT count(*) FROM {table} WHERE j IS NULL") == 1
    if kind == "JSONB":
        found = dict(db.rows(f"SELECT id, j FROM {table}"))
    else:
        rows = db.rows(f"SELECT id, j FROM {table}")
        found = {key: None if text is None else json.loads(text) for key, text in rows}
    assert found == given


@pytest.mark.sample(only="postgresql", one_in=2)
@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    ("ddl", "bad", "says"),
    [
        ("CHECK (label <> 'bad')", "bad", "violates check constraint"),
        ("REFERENCES known (name) DEFERRABLE INITIALLY DEFERRED", "bad", "violates foreign key"),
        ("UNIQUE", "x" * 20_000, "index row"),
    ],
)
def test_values_that_are_refused_are_found_without_another_call(
    db: Db, prepared: Prepared, ddl: str, bad: str, says: str
) -> None:
    db.do("CREATE TABLE known (name TEXT PRIMARY KEY)")
    db.do("INSERT INTO known SELECT 'label ' || i FROM generate_series(1, 60) i")
    db.make(60, columns=f"label TEXT {ddl}")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    handled: Counter[int] = Counter()

    def label(rows: Rows) -> Rows:
        handled.update(row["id"] for row in rows)
        value = bad if len(bad) < 9 else "".join(map(chr, range(1_000, 21_000)))
        return [
            {"id": r["id"], "label": value if r["id"] in (7, 8, 33) else f"label {r['id']}"}
            for r in rows
        ]

    with pytest.raises(JobFailed) as caught:
        resumable_task(label, batch_size=20, concurrency=1).run(checkpoint=checkpoint)
    failed = {failure.key: failure for failure in caught.value.result.parked_items}
    assert (sorted(failed), caught.value.result.completed) == ([7, 8, 33], 57)
    assert all(each.error == "ResultConflict" and says in each.message for each in failed.values())
    assert set(handled.values()) == {1}
    assert db.one("SELECT count(*) FROM lessons_processed_at_failures") == 3
    assert db.one("SELECT count(*) FROM lessons WHERE processed_at IS NULL") == 3


@pytest.mark.sample(only="postgresql", one_in=5)
@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    ("kind", "bad", "good"),
    [
        ("VARCHAR(5)", "longer", "short"),
        ("NUMERIC(4, 2)", Decimal("123.45"), Decimal("12.34")),
        ("SMALLINT", 40_000, 4),
        ("DATE", "no date", "2026-11-23"),
        ("TEXT[]", 5, ["a", "b"]),
        ("UUID", "no uuid", "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_value_that_does_not_fit_its_column_is_not_cut(
    db: Db, kind: str, bad: Any, good: Any
) -> None:
    db.make(3, columns=f"label {kind}")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    given = {1: bad, 2: good, 3: None}
    task = resumable_task(
        lambda rows: [{"id": r["id"], "label": given[r["id"]]} for r in rows],
        name="label",
        batch_size=1,
        tolerated_failures=1,
    )
    run = task.run(checkpoint=checkpoint)
    assert [failure.key for failure in run.parked_items] == [1]
    assert db.one("SELECT count(*) FROM lessons WHERE label IS NULL AND id IN (1, 3)") == 2
    assert db.one("SELECT label::text FROM lessons WHERE id = 2") in (str(good), "{a,b}")


@pytest.mark.usefixtures("postgres")
def test_rows_that_lean_on_later_ones_of_their_batch_are_taken(db: Db) -> None:
    """Each batch is looked at as at a COMMIT, also behind another one of the same commit."""
    db.make(60)
    db.do(
        "CREATE TABLE parts (id INTEGER, part TEXT PRIMARY KEY, "
        "parent TEXT REFERENCES parts DEFERRABLE INITIALLY DEFERRED)"
    )
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="parts")
    db.prepare(checkpoint)

    def parts(rows: Rows) -> Rows:
        each = [
            [
                {"id": r["id"], "part": f"child {r['id']}", "parent": f"parent {r['id']}"},
                {"id": r["id"], "part": f"parent {r['id']}", "parent": None},
            ]
            for r in rows
        ]
        return [row for rows in each for row in rows]

    task = resumable_task(parts, results="many", batch_size=2, concurrency=5)
    assert task.run(checkpoint=checkpoint).completed == 60
    assert db.one("SELECT count(*) FROM parts") == 120


@pytest.mark.usefixtures("postgres")
def test_what_a_trigger_does_elsewhere_fails_its_row_alone(db: Db) -> None:
    db.make(30)
    db.do(
        "CREATE TABLE labels (id INTEGER, label TEXT)",
        "CREATE TABLE known (id INTEGER PRIMARY KEY)",
        "INSERT INTO known SELECT i FROM generate_series(1, 29) i",
        "CREATE TABLE audit (id INTEGER REFERENCES known DEFERRABLE INITIALLY DEFERRED)",
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NEW; END$$",
        "CREATE TRIGGER note AFTER INSERT ON labels FOR EACH ROW EXECUTE FUNCTION note()",
    )
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="labels")
    db.prepare(checkpoint)
    task = resumable_task(
        lambda rows: [{"id": r["id"], "label": "x"} for r in rows],
        name="label",
        tolerated_failures=1,
    )
    run = task.run(checkpoint=checkpoint)
    assert ([failure.key for failure in run.parked_items], run.completed) == ([30], 29)


@pytest.mark.sample(only="sqlite")
def test_a_field_that_the_table_lacks_fails_the_rows_that_have_it(db: Db) -> None:
    db.make(60)
    db.do("CREATE TABLE labels (id INTEGER, label TEXT)")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="labels")
    db.prepare(checkpoint)

    def label(rows: Rows) -> Rows:
        return [{"id": r["id"], "label": "x", **({"zz": 1} if r["id"] == 7 else {})} for r in rows]

    run = resumable_task(label, tolerated_failures=1).run(checkpoint=checkpoint)
    assert ([failure.key for failure in run.parked_items], run.completed) == ([7], 59)
    assert "no column 'zz'" in run.parked_items[0].message


@pytest.mark.usefixtures("postgres")
def test_a_row_whose_column_does_not_stay_set_is_a_failure(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(40)
    db.do(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS "
        "$$BEGIN IF NEW.id = 5 THEN NEW.processed_at = NULL; END IF; RETURN NEW; END$$",
        "CREATE TRIGGER again BEFORE UPDATE ON lessons FOR EACH ROW EXECUTE FUNCTION again()",
    )
    handled: Counter[int] = Counter()

    def label(rows: Rows) -> Rows:
        handled.update(row["id"] for row in rows)
        return [{"id": row["id"], "label": "x"} for row in rows]

    with pytest.raises(JobFailed) as caught:
        resumable_task(label, batch_size=10).run(checkpoint=checkpoint)
    (failure,) = caught.value.result.parked_items
    assert (failure.key, caught.value.result.completed) == (5, 39)
    assert "a trigger or a row-level policy of the table prevents it" in failure.message
    assert set(handled.values()) == {1}
    assert db.one("SELECT label FROM lessons WHERE id = 5") is None


@pytest.mark.usefixtures("postgres")
def test_a_run_ends_where_nothing_of_it_can_be_kept(db: Db, prepared: Prepared) -> None:
    """Ten thousand rows are not paid for to learn the same of each of them."""
    db.make(2_000, columns="label INTEGER")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    handled: Counter[int] = Counter()

    def label(rows: Rows) -> Rows:
        handled.update(row["id"] for row in rows)
        time.sleep(0.02)
        return [{"id": row["id"], "label": "no number"} for row in rows]

    with pytest.raises(JobFailed, match="batches in a row could not be stored"):
        resumable_task(label, batch_size=10, concurrency=2).run(checkpoint=checkpoint)
    assert len(handled) < 1_000
    assert set(handled.values()) == {1}


@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    ("ddl", "says"),
    [
        ("ALTER TABLE lessons ALTER processed_at TYPE BIGINT USING 0", "is of type bigint"),
        (
            "ALTER TABLE lessons DROP label, ADD label TEXT GENERATED ALWAYS AS ('x') STORED",
            "label",
        ),
    ],
)
def test_a_table_that_cannot_be_written_costs_no_call(
    db: Db, prepared: Prepared, ddl: str, says: str
) -> None:
    checkpoint = prepared(20)
    db.do("DROP INDEX lessons_processed_at_todo", ddl)
    task = resumable_task(lambda rows: pytest.fail("called"), name="label")
    with pytest.raises(UsageError, match=says):
        task.run(checkpoint=checkpoint)


@pytest.mark.usefixtures("postgres")
def test_a_role_that_may_not_write_costs_no_call(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(20)
    name = db.url.rpartition("/")[2]
    db.do(
        f"CREATE ROLE reader_{name} LOGIN",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader_{name}",
        f"GRANT ALL ON lessons_processed_at_runs, lessons_processed_at_claims, "
        f"lessons_processed_at_failures TO reader_{name}",
        f"GRANT UPDATE (processed_at) ON lessons TO reader_{name}",
    )
    url = db.url.replace("//tests@", f"//reader_{name}@")
    task = resumable_task(lambda rows: pytest.fail("called"), name="label")
    try:
        with pytest.raises(UsageError, match="permission denied"):
            task.run(checkpoint=SqlCheckpoint(url, table="lessons", key="id", columns=["label"]))
    finally:
        db.do(f"DROP OWNED BY reader_{name}", f"DROP ROLE reader_{name}")
    assert checkpoint.table == "lessons"


@pytest.mark.sample(only="sqlite")
def test_a_boolean_column_says_done_by_true(db: Db) -> None:
    db.make(30, columns="done BOOLEAN DEFAULT FALSE")
    db.do(
        "ALTER TABLE lessons ADD COLUMN label TEXT", "UPDATE lessons SET done = TRUE WHERE id > 25"
    )
    db.do("UPDATE lessons SET done = NULL WHERE id < 3")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", done="done", columns=["label"])
    db.prepare(checkpoint)
    task = resumable_task(lambda rows: [{**row, "label": "x"} for row in rows], name="label")
    run = task.run(checkpoint=checkpoint)
    assert (run.completed, run.skipped) == (25, 5)
    assert db.one("SELECT count(*) FROM lessons WHERE done AND label = 'x'") == 25
    assert task.run(checkpoint=checkpoint).completed == 0


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("text <> ':x 50%'", 10),
        ("text LIKE '%:x%' OR id < 4 -- the first", 3),
        ("text = 'text 5' AND '10:30' <> '::'", 1),
    ],
)
def test_any_condition_may_choose_rows(db: Db, prepared: Prepared, where: str, rows: int) -> None:
    checkpoint = prepared(10, where=where)
    task = resumable_task(lambda many: [{"id": r["id"], "label": "x"} for r in many], name="label")
    assert task.run(checkpoint=checkpoint).completed == rows
    with pytest.raises(UsageError, match="absent"):
        task.run(checkpoint=replace(checkpoint, where="absent = 1"))


def test_a_table_of_results_without_the_keys_column_is_refused(db: Db, prepared: Prepared) -> None:
    db.do("CREATE TABLE labels (lesson_id INTEGER, label TEXT)")
    checkpoint = prepared(10, results_table="labels")
    task = resumable_task(lambda rows: pytest.fail("called"), name="label")
    with pytest.raises(UsageError, match="results_key="):
        task.run(checkpoint=checkpoint)
