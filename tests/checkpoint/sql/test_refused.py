"""What the database has against a row is that row's affair, whatever the code it says so with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from resumable_tasks import JobFailed, SqlCheckpoint, UsageError, resumable_task
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]
Prepared = Callable[..., SqlCheckpoint]

BAD = {7, 8, 33}


@pytest.fixture
def postgres(db: Db) -> None:
    if db.engine.dialect.name != "postgresql":
        pytest.skip("SQLite has no codes, and no inheritance")


@pytest.fixture
def sqlite(db: Db) -> None:
    if db.engine.dialect.name != "sqlite":
        pytest.skip("of SQLite alone")


def label_all(checkpoint: SqlCheckpoint, label: Callable[[int], Any]) -> Any:
    """Run a job to its end; no row is handled for a second time."""
    handled: Counter[int] = Counter()

    def job(rows: Rows) -> Rows:
        handled.update(row["id"] for row in rows)
        return [{"id": row["id"], "label": label(row["id"])} for row in rows]

    task = resumable_task(job, batch_size=20, concurrency=1, tolerated_failures=60)
    result = task.run(checkpoint=checkpoint)
    assert set(handled.values()) == {1}
    return result


def refuses_the_bad_alone(result: Any, db: Db, says: str) -> None:
    parked = {each.key: each for each in result.parked_items}
    assert (set(parked), result.completed, result.failed) == (BAD, 57, 0)
    assert all(says in each.message for each in parked.values())
    assert db.one("SELECT count(*) FROM lessons WHERE processed_at IS NULL") == len(BAD)


@pytest.mark.sample(only="postgresql", one_in=8)
@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    "raises",
    [
        *("ERRCODE = 'AB123'", "ERRCODE = 'P0002'", "ERRCODE = 'P0004'", "ERRCODE = '20000'"),
        # What a server says of itself, in the mouth of a trigger.
        *("ERRCODE = '40P01'", "ERRCODE = '57014'", "ERRCODE = '42501'", "ERRCODE = '08006'"),
    ],
)
def test_a_trigger_may_raise_any_code(db: Db, prepared: Prepared, raises: str) -> None:
    checkpoint = prepared(60)
    db.do(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN IF NEW.label = 'bad' "
        f"THEN RAISE EXCEPTION 'not this one' USING {raises}; END IF; RETURN NEW; END$$",
        "CREATE TRIGGER no BEFORE UPDATE ON lessons FOR EACH ROW EXECUTE FUNCTION no()",
    )
    result = label_all(checkpoint, lambda key: "bad" if key in BAD else "good")
    refuses_the_bad_alone(result, db, "not this one")


@pytest.mark.sample(only="postgresql", one_in=5)
@pytest.mark.usefixtures("postgres")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("SELECT id INTO STRICT one FROM lessons WHERE id < 0", "returned no rows"),
        ("ASSERT false, 'no such thing'", "no such thing"),
        ("one := (SELECT id FROM lessons)", "more than one row"),
        ("PERFORM 1 FROM nowhere", "does not exist"),
        ("one := 1 / 0", "division by zero"),
    ],
)
def test_whatever_goes_wrong_in_a_trigger(db: Db, prepared: Prepared, body: str, says: str) -> None:
    checkpoint = prepared(60)
    db.do(
        "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$DECLARE one INTEGER; "
        f"BEGIN IF NEW.label = 'bad' THEN {body}; END IF; RETURN NEW; END$$",
        "CREATE TRIGGER no BEFORE UPDATE ON lessons FOR EACH ROW EXECUTE FUNCTION no()",
    )
    result = label_all(checkpoint, lambda key: "bad" if key in BAD else "good")
    refuses_the_bad_alone(result, db, says)


@pytest.mark.usefixtures("sqlite")
@pytest.mark.parametrize("how", ["ABORT", "FAIL", "ROLLBACK"])
def test_a_trigger_of_sqlite_may_end_the_whole_transaction(
    db: Db, prepared: Prepared, how: str
) -> None:
    checkpoint = prepared(60)
    db.do(
        "CREATE TRIGGER no BEFORE UPDATE ON lessons WHEN NEW.label = 'bad' "
        f"BEGIN SELECT RAISE({how}, 'not this one'); END"
    )
    result = label_all(checkpoint, lambda key: "bad" if key in BAD else "good")
    refuses_the_bad_alone(result, db, "not this one")


@pytest.mark.usefixtures("sqlite")
def test_an_expression_of_sqlite_that_fails(db: Db) -> None:
    db.make(60, columns="label TEXT CHECK (label IS NULL OR json_extract(label, '$') <> 5)")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    result = label_all(checkpoint, lambda key: "{bad" if key in BAD else "{}")
    refuses_the_bad_alone(result, db, "malformed JSON")


class Odd:
    """A value that no driver knows, and that answers no question."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name)


@pytest.mark.sample(one_in=4)
@pytest.mark.parametrize("bad", [2**80, "half \ud83d", "\0", Odd(), {"a": Odd()}])
def test_a_value_that_no_driver_can_send(db: Db, prepared: Prepared, bad: Any) -> None:
    checkpoint = prepared(60)
    if bad == ("\0" if db.engine.dialect.name == "sqlite" else 2**80):
        pytest.skip("it can")
    result = label_all(checkpoint, lambda key: bad if key in BAD else "good")
    refused = [*result.parked_items, *result.failures]
    assert (sorted(each.key for each in refused), result.completed) == (sorted(BAD), 57)


@pytest.mark.usefixtures("postgres")
def test_a_key_that_inheritance_repeats_is_named(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(60)
    db.do(
        "CREATE TABLE more (PRIMARY KEY (id)) INHERITS (lessons)",
        "INSERT INTO more (id, text) VALUES (7, 'twice')",
    )
    task = resumable_task(lambda rows: pytest.fail("called"), name="label")
    with pytest.raises(UsageError, match=r"key 7 is in 2 rows") as caught:
        task.run(checkpoint=checkpoint)
    assert caught.value.exit_code == 2
    assert "same command" not in str(caught.value)


@pytest.mark.usefixtures("postgres")
def test_a_key_that_inheritance_repeats_in_the_middle(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(500)
    db.do("CREATE TABLE more (PRIMARY KEY (id)) INHERITS (lessons)")

    @resumable_task(name="label", batch_size=5, concurrency=1)
    def label(rows: Rows) -> Rows:
        if rows[0]["id"] == 1:
            db.do("INSERT INTO more (id, text) VALUES (455, 'twice')")
        return [{"id": row["id"], "label": "x"} for row in rows]

    with pytest.raises(UsageError, match=r"key 455 is in 2 rows"):
        label.run(checkpoint=checkpoint)


@pytest.mark.parametrize("empty", ["''", "'a' || char(10)"])
def test_a_key_that_is_none_is_named(db: Db, empty: str) -> None:
    if db.engine.dialect.name == "postgresql":
        empty = empty.replace("char(", "chr(")
    db.do(
        "CREATE TABLE lessons (id VARCHAR(20) PRIMARY KEY, text TEXT, label TEXT)",
        "INSERT INTO lessons (id, text) VALUES ('good', '')",
        f"INSERT INTO lessons (id, text) VALUES ({empty}, '')",
    )
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    task = resumable_task(
        lambda rows: [{"id": row["id"], "label": "x"} for row in rows], name="label"
    )
    if empty == "''":
        with pytest.raises(UsageError, match="no usable key") as caught:
            task.run(checkpoint=checkpoint)
        assert "same command" not in str(caught.value)
    else:
        assert task.run(checkpoint=checkpoint).completed == 2


def test_what_is_parked_is_kept_and_taken_over_without_a_call(db: Db) -> None:
    db.make(60)
    db.do(
        "CREATE TABLE labels (id INTEGER, label TEXT, at TEXT)",
        "CREATE UNIQUE INDEX one ON labels (label)",
    )
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="labels")
    db.prepare(checkpoint)

    def label(rows: Rows) -> Rows:
        return [
            {"id": r["id"], "label": "same" if r["id"] in (2, 3, 4) else str(r["id"]), "at": None}
            for r in rows
        ]

    task = resumable_task(label, batch_size=20, concurrency=1, results="one")
    with pytest.raises(JobFailed, match="2 of 60 items of label are parked") as caught:
        task.run(checkpoint=checkpoint)
    assert (caught.value.result.completed, caught.value.result.parked) == (58, 2)

    never = resumable_task(lambda rows: pytest.fail("called again"), name="label")
    with pytest.raises(JobFailed) as caught:
        never.run(checkpoint=checkpoint)
    result = caught.value.result
    assert (result.completed, result.skipped, result.failed, result.parked) == (0, 58, 0, 2)
    assert [dict(row) for each in result.parked_items for row in each.rows or ()] == [
        {"id": key, "label": "same", "at": None} for key in (3, 4)
    ]
    db.do("DROP INDEX one")
    result = never.run(checkpoint=checkpoint)
    assert (result.skipped, result.failed, result.parked) == (60, 0, 0)
    assert db.one("SELECT count(*) FROM labels WHERE label = 'same'") == 3
    assert db.one("SELECT count(*) FROM lessons_processed_at_failures") == 0
