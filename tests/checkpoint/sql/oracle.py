"""What must be true of the database, read by plain SQL and not by the library's code."""

from __future__ import annotations

from collections import Counter

from tests.checkpoint.sql.child import Spec
from tests.checkpoint.sql.conftest import Db


def watch(db: Db) -> None:
    """Have the database itself note down each time that a row's column is set."""
    db.do(
        "CREATE TABLE completions (id INTEGER NOT NULL)",
        "CREATE TABLE labels (id INTEGER, label TEXT)",
    )
    if db.engine.dialect.name == "sqlite":
        db.do(
            "CREATE TRIGGER completed AFTER UPDATE ON lessons "
            "BEGIN INSERT INTO completions VALUES (NEW.id); END"
        )
    else:
        db.do(
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN INSERT INTO completions VALUES (NEW.id); RETURN NEW; END'",
            "CREATE TRIGGER completed AFTER UPDATE ON lessons FOR EACH ROW EXECUTE FUNCTION note()",
        )


def consistent(db: Db, spec: Spec) -> int:
    """Results and the column agree, and no row was completed twice; how many are."""
    with db.at_one_moment() as rows:

        def ids(query: str) -> Counter[int]:
            return Counter(key for (key,) in rows(query))

        done = ids("SELECT id FROM lessons WHERE processed_at IS NOT NULL")
        assert ids("SELECT id FROM completions") == done, "set twice, or not by an update"
        if spec.place == "columns":
            assert ids("SELECT id FROM lessons WHERE label = upper(text)") == done
            assert ids("SELECT id FROM lessons WHERE label IS NOT NULL") == done
        if spec.place == "results":
            assert ids("SELECT id FROM labels") == done
            right = "SELECT id FROM labels JOIN lessons USING (id) WHERE labels.label = upper(text)"
            assert ids(right) == done
    return len(done)


def complete(db: Db, spec: Spec, items: int) -> None:
    assert consistent(db, spec) == items
    assert db.one("SELECT count(*) FROM lessons") == items
    if spec.place != "shards":
        assert db.one("SELECT count(*) FROM lessons_processed_at_claims") == 0
        assert db.one("SELECT count(*) FROM lessons_processed_at_failures") == 0
