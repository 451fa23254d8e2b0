"""What a run on a table does: what it handles, writes, records and refuses."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import resumable_tasks
from resumable_tasks import (
    Budget,
    CheckpointHeld,
    CheckpointMismatch,
    CheckpointUnusable,
    Failing,
    Fenced,
    Interrupted,
    InvalidKey,
    ItemFailure,
    JobFailed,
    SqlCheckpoint,
    UsageError,
    resumable_task,
)
from resumable_tasks.engine.events import Committed
from tests.checkpoint.sql.conftest import Db

Prepared = Callable[..., SqlCheckpoint]
Rows = list[dict[str, Any]]


@resumable_task(batch_size=10)
def shout(rows: Rows) -> Rows:
    return [{"id": row["id"], "label": row["text"].upper()} for row in rows]


def state(db: Db) -> tuple[int, int]:
    """How many rows are done, and how many have their result."""
    ((done, labels),) = db.rows("SELECT count(processed_at), count(label) FROM lessons")
    return done, labels


def test_columns_of_the_same_row(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(95)
    events: list[Any] = []
    run = shout.run(checkpoint=checkpoint, listeners=[events.append])
    assert (run.total, run.completed, run.skipped, run.failed) == (95, 95, 0, 0)
    assert state(db) == (95, 95)
    assert db.one("SELECT label FROM lessons WHERE id = 7") == "TEXT 7"
    assert run.table().to_pylist()[6] == {"id": 7, "label": "TEXT 7"}
    assert run.dataset().count_rows() == 95
    assert list(run.completed_keys()) == list(range(1, 96))
    assert sum(event.rows for event in events if isinstance(event, Committed)) == 95
    again = shout.run(checkpoint=checkpoint)
    assert (again.total, again.completed, again.skipped) == (95, 0, 95)


@pytest.mark.sample(only="sqlite")
def test_only_rows_that_are_not_done_are_handled(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(30)
    db.do("UPDATE lessons SET processed_at = CURRENT_TIMESTAMP WHERE id <= 10")
    seen: list[int] = []

    @resumable_task(name="shout", batch_size=7)
    def handler(rows: Rows) -> Rows:
        seen.extend(row["id"] for row in rows)
        return [{"id": row["id"], "label": "x"} for row in rows]

    run = handler.run(checkpoint=checkpoint)
    assert sorted(seen) == list(range(11, 31))
    assert (run.total, run.completed, run.skipped) == (30, 20, 10)
    assert state(db) == (30, 20)


@pytest.mark.sample(only="sqlite")
def test_where_leaves_other_rows_alone(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(30, where="id > 10 AND text LIKE 'text 1%'")
    run = shout.run(checkpoint=checkpoint)
    assert (run.total, run.completed) == (9, 9)
    assert db.rows("SELECT min(id), max(id) FROM lessons WHERE processed_at IS NOT NULL") == [
        (11, 19)
    ]


def test_rows_of_a_results_table_many_an_item(db: Db, prepared: Prepared) -> None:
    db.do("CREATE TABLE words (id INTEGER, word TEXT)")
    checkpoint = prepared(20, results_table="words")

    @resumable_task(results="many")
    def words(rows: Rows) -> Rows:
        return [
            {"id": row["id"], "word": word}
            for row in rows
            if row["id"] % 2
            for word in row["text"].split()
        ]

    run = words.run(checkpoint=checkpoint)
    assert run.completed == 20
    assert db.one("SELECT count(*) FROM words") == 20
    assert run.table().num_rows == 20
    assert db.one("SELECT count(processed_at) FROM lessons") == 20


@pytest.mark.sample(only="sqlite")
def test_nothing_but_the_column(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(20, columns=[])
    sent: list[int] = []

    @resumable_task(results="none")
    def send(rows: Rows) -> None:
        sent.extend(row["id"] for row in rows)

    run = send.run(checkpoint=checkpoint)
    assert sorted(sent) == list(range(1, 21))
    assert db.one("SELECT count(processed_at) FROM lessons") == 20
    with pytest.raises(UsageError, match="columns=, results_table= or shards="):
        run.table()


@pytest.mark.sample(only="sqlite")
def test_rows_in_shards_and_the_column_behind(db: Db, prepared: Prepared, place: Path) -> None:
    checkpoint = prepared(50, shards=place)
    run = shout.run(checkpoint=checkpoint)
    assert (run.completed, run.checkpoint) == (50, str(place))
    assert db.one("SELECT count(processed_at) FROM lessons") == 50
    assert run.table().num_rows == 50
    assert run.publish(place.parent / "published").rows == 50
    db.do("UPDATE lessons SET processed_at = NULL WHERE id > 40")
    again = shout.run(checkpoint=checkpoint)
    assert (again.completed, again.skipped) == (0, 50)
    assert db.one("SELECT count(processed_at) FROM lessons") == 50


@pytest.mark.sample(only="sqlite")
def test_failures_are_in_their_table_with_attempts_over_all_runs(
    db: Db, prepared: Prepared
) -> None:
    checkpoint = prepared(40)
    tried: list[int] = []

    @resumable_task(
        batch_size=10, failing=Failing(max_attempts=2, keep_items=True), tolerated_failures=5
    )
    def picky(rows: Rows) -> list[Any]:
        tried.extend(row["id"] for row in rows)
        if any(row["id"] == 7 for row in rows):
            raise ValueError("seven")
        return [
            ItemFailure(row["id"], "thirteen")
            if row["id"] == 13
            else {"id": row["id"], "label": "x"}
            for row in rows
        ]

    first = picky.run(checkpoint=checkpoint)
    assert (first.completed, first.failed) == (38, 2)
    query = "SELECT id, error, message, attempts FROM lessons_processed_at_failures ORDER BY id"
    assert db.rows(query) == [(7, "ValueError", "seven", 1), (13, "ItemFailure", "thirteen", 1)]
    tried.clear()
    second = picky.run(checkpoint=checkpoint)
    assert {*tried} == {7, 13}
    assert sorted((f.key, f.attempts) for f in second.failures) == [(7, 2), (13, 2)]
    assert state(db) == (38, 38)
    tried.clear()
    assert picky.run(checkpoint=checkpoint, dry_run=True).quarantined == 2
    third = picky.run(checkpoint=checkpoint)
    assert (tried, third.quarantined, third.failed, third.total) == ([], 2, 0, 40)
    db.do("UPDATE lessons_processed_at_failures SET attempts = 0 WHERE id = 13")
    unpicky = resumable_task(shout.fn, name="picky", failing=Failing(max_attempts=2))
    fourth = unpicky.run(checkpoint=checkpoint)
    assert (fourth.completed, fourth.quarantined) == (1, 1)
    assert [row[0] for row in db.rows(query)] == [7]


@pytest.mark.sample(only="sqlite")
def test_what_fails_is_tried_once_a_run(db: Db, prepared: Prepared) -> None:
    """Its failure is committed long before the last look at what is left."""
    checkpoint = prepared(300)
    tried: list[int] = []

    def handler(rows: Rows) -> list[Any]:
        tried.extend(row["id"] for row in rows)
        return [
            ItemFailure(row["id"], "bad") if row["id"] == 3 else {"id": row["id"], "label": "x"}
            for row in rows
        ]

    with pytest.raises(JobFailed):
        resumable_task(handler, batch_size=10, concurrency=1).run(checkpoint=checkpoint)
    assert sorted(tried) == list(range(1, 301))
    assert db.rows("SELECT id, attempts FROM lessons_processed_at_failures") == [(3, 1)]


@pytest.mark.sample(only="sqlite")
def test_retry_failed_false_leaves_them_failed(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(10)

    def bad(rows: Rows) -> list[Any]:
        return [
            ItemFailure(row["id"], "bad") if row["id"] == 3 else {"id": row["id"], "label": "x"}
            for row in rows
        ]

    for retry_failed, attempts in ((True, 1), (False, 1), (True, 2)):
        with pytest.raises(JobFailed) as failed:
            resumable_task(bad, name="job", failing=Failing(retry_failed=retry_failed)).run(
                checkpoint=checkpoint
            )
        assert [(f.key, f.attempts) for f in failed.value.result.failures] == [(3, attempts)]


def test_what_the_database_refuses_fails_its_item_alone(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(40)
    kind = "UNIQUE INDEX once ON lessons (label)"
    db.do(f"CREATE {kind}")

    @resumable_task(batch_size=40)
    def same(rows: Rows) -> Rows:
        return [
            {"id": row["id"], "label": "same" if row["id"] in (5, 31) else row["text"]}
            for row in rows
        ]

    with pytest.raises(JobFailed) as failed:
        same.run(checkpoint=checkpoint)
    (failure,) = failed.value.result.parked_items
    assert failure.key in (5, 31)
    assert failure.error == "ResultConflict"
    assert "lessons" in failure.message
    assert state(db) == (39, 39)


@pytest.mark.sample(only="sqlite")
def test_a_result_without_the_column_fails(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(3)
    wrong = resumable_task(lambda rows: [{"id": r["id"], "lable": 1} for r in rows], name="wrong")
    with pytest.raises(JobFailed, match="no field 'label'"):
        wrong.run(checkpoint=checkpoint)
    assert state(db) == (0, 0)


def test_composite_keys(db: Db) -> None:
    db.do(
        "CREATE TABLE parts (book VARCHAR(9) NOT NULL, page INTEGER NOT NULL, label TEXT, "
        "PRIMARY KEY (book, page))",
        "INSERT INTO parts (book, page) VALUES ('b', 2), ('a', 10), ('a', 9), ('b', 1), ('c', 1)",
    )
    checkpoint = SqlCheckpoint(db.url, table="parts", key=("book", "page"), columns=["label"])
    db.prepare(checkpoint)

    @resumable_task(batch_size=2, concurrency=1)
    def label(rows: Rows) -> list[Any]:
        return [
            ItemFailure((row["book"], row["page"]), "no")
            if row["book"] == "c"
            else {"book": row["book"], "page": row["page"], "label": f"{row['book']}{row['page']}"}
            for row in rows
        ]

    with pytest.raises(JobFailed) as failed:
        label.run(checkpoint=checkpoint)
    assert [failure.key for failure in failed.value.result.failures] == [("c", 1)]
    assert db.rows(
        "SELECT label FROM parts WHERE processed_at IS NOT NULL ORDER BY book, page"
    ) == [("a9",), ("a10",), ("b1",), ("b2",)]
    assert next(failed.value.result.completed_keys()) == ("a", 9)


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize("swapped", [False, True])
def test_composite_keys_of_a_results_table_by_other_names(db: Db, swapped: bool) -> None:
    """``swapped``: the names are those of the key, for the other part of it."""
    book, page = ("page", "book") if swapped else ("of_book", "of_page")
    db.do(
        "CREATE TABLE parts (book INTEGER NOT NULL, page INTEGER NOT NULL, PRIMARY KEY (book, "
        "page))",
        "INSERT INTO parts (book, page) VALUES (2, 2), (1, 10), (1, 9), (2, 1), (3, 1)",
        f"CREATE TABLE labels ({page} INTEGER, label TEXT, {book} INTEGER)",
        "INSERT INTO labels VALUES (1, 'of an item that is not done', 3)",
    )
    checkpoint = SqlCheckpoint(
        db.url,
        table="parts",
        key=("book", "page"),
        results_table="labels",
        results_key=(book, page),
    )
    db.prepare(checkpoint)

    @resumable_task(batch_size=2, results="many", tolerated_failures=1)
    def label(rows: Rows) -> list[Any]:
        return [
            ItemFailure((row["book"], row["page"]), "no")
            if row["book"] == 3
            else {"book": row["book"], "page": row["page"], "label": f"{row['book']}.{row['page']}"}
            for row in rows
        ]

    run = label.run(checkpoint=checkpoint)
    assert (run.completed, run.failed) == (4, 1)
    labels = ["1.9", "1.10", "2.1", "2.2"]
    query = f"SELECT {book}, {page}, label FROM labels WHERE {book} < 3 ORDER BY {book}, {page}"
    assert db.rows(query) == [(int(x[0]), int(x[2:]), x) for x in labels]
    assert run.table()["label"].to_pylist() == labels
    assert label.run(checkpoint=checkpoint).skipped == 4


@pytest.mark.sample(only="sqlite")
def test_a_row_whose_key_is_none_says_what_to_do(db: Db) -> None:
    db.do("CREATE TABLE words (word VARCHAR(9) PRIMARY KEY, label TEXT)")
    db.do("INSERT INTO words (word) VALUES (''), ('a')")
    checkpoint = SqlCheckpoint(db.url, table="words", key="word", columns=["label"])
    db.prepare(checkpoint)
    task = resumable_task(lambda rows: [{**row, "label": "x"} for row in rows], name="label")
    with pytest.raises(InvalidKey, match=r"a row of table words .*\(word\).*empty.*where="):
        task.run(checkpoint=checkpoint)
    assert task.run(checkpoint=replace(checkpoint, where="word <> ''")).completed == 1


def test_text_and_uuid_keys(db: Db) -> None:
    kind = "UUID" if db.engine.dialect.name == "postgresql" else "TEXT"
    db.do(f"CREATE TABLE things (id {kind} NOT NULL PRIMARY KEY, label TEXT)")
    names = [f"{i:08x}-0000-4000-8000-000000000000" for i in range(25)]
    db.do(*(f"INSERT INTO things (id) VALUES ('{name}')" for name in names))
    checkpoint = SqlCheckpoint(db.url, table="things", key="id", columns=["label"])
    db.prepare(checkpoint)
    job = resumable_task(
        lambda rows: [{"id": row["id"], "label": row["id"][:8]} for row in rows],
        name="job",
        batch_size=4,
    )
    assert job.run(checkpoint=checkpoint).completed == 25
    assert db.one("SELECT count(*) FROM things WHERE label = substr(CAST(id AS TEXT), 1, 8)") == 25


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize("failing", [False, True])
def test_pages_bound_what_is_read_ahead(db: Db, prepared: Prepared, failing: bool) -> None:
    """Rows that are added behind the run's back are handled, if they are in time."""
    checkpoint = prepared(200)
    added = []

    @resumable_task(batch_size=5, concurrency=1)
    def handler(rows: Rows) -> Rows:
        if not added:
            added.append(db.do("INSERT INTO lessons (id, text) VALUES (1000, 'late')"))
        if failing and rows[0]["id"] == 1:
            raise ValueError("first")
        return [{"id": row["id"], "label": "x"} for row in rows]

    run = handler.with_options(tolerated_failures=1.0).run(checkpoint=checkpoint)
    assert run.completed == 201 - (1 if failing else 0)


@pytest.mark.sample(only="sqlite")
def test_a_budget_ends_the_run_and_gives_the_rest_back(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(100)
    with pytest.raises(Interrupted, match="remaining: ") as stopped:
        shout.run(checkpoint=checkpoint, budget=Budget(items=25))
    assert stopped.value.result is not None
    assert stopped.value.result.remaining is not None
    assert stopped.value.result.remaining.items == 75
    assert state(db) == (25, 25)
    assert db.one("SELECT count(*) FROM lessons_processed_at_claims") == 0
    assert shout.run(checkpoint=checkpoint).skipped == 25


@pytest.mark.sample(only="sqlite")
def test_dry_run_writes_nothing(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(30)
    db.do("UPDATE lessons SET processed_at = CURRENT_TIMESTAMP WHERE id <= 10")
    run = shout.run(checkpoint=checkpoint, dry_run=True)
    assert run.remaining is not None
    assert (run.remaining.items, run.total, run.skipped) == (20, 30, 10)
    assert state(db)[0] == 10
    assert db.one("SELECT count(*) FROM lessons_processed_at_runs") == 0


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize("runner", ["threads", "async", "processes"])
def test_on_every_local_runner(db: Db, prepared: Prepared, runner: str) -> None:
    checkpoint = prepared(60)

    async def coroutine(rows: Rows) -> Rows:
        return shout.fn(rows)

    job = shout if runner != "async" else resumable_task(coroutine, name="shout")
    if runner == "processes":
        job = shout.with_options(runner="processes", concurrency=2)
    assert job.run(checkpoint=checkpoint).completed == 60
    assert state(db) == (60, 60)


@pytest.mark.sample(only="sqlite")
def test_arrow_to_the_handler(db: Db, prepared: Prepared) -> None:
    import pyarrow.compute as pc

    checkpoint = prepared(30)
    job = resumable_task(
        lambda batch: {"rows": 0} if isinstance(batch, list) else _upper(batch, pc),
        name="arrow",
        batch_format="arrow",
    )
    assert job.run(checkpoint=checkpoint).completed == 30
    assert db.one("SELECT label FROM lessons WHERE id = 30") == "TEXT 30"


def _upper(batch: Any, pc: Any) -> Any:
    import pyarrow as pa

    return pa.table({"id": batch["id"], "label": pc.utf8_upper(batch["text"])})


# --- what is refused


def test_items_with_a_table_are_refused(prepared: Prepared) -> None:
    checkpoint = prepared(3)
    with pytest.raises(UsageError, match="leave items out"):
        shout.run([{"id": 1}], checkpoint=checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"results": "none"}, "does not fit"),
        ({"results": "many"}, "does not fit"),
        ({"key": "text"}, "the checkpoint has key='id'"),
    ],
)
def test_options_that_do_not_fit(prepared: Prepared, options: dict[str, Any], message: str) -> None:
    checkpoint = prepared(3)
    with pytest.raises(UsageError, match=message):
        shout.with_options(**options).run(checkpoint=checkpoint)
    with pytest.raises(UsageError, match="cannot archive a table"):
        shout.run(checkpoint=checkpoint, on_version_change="restart")


@pytest.mark.sample(only="sqlite")
def test_a_table_that_is_not_prepared_says_the_command(db: Db) -> None:
    db.make(3)
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label", "words"])
    with pytest.raises(
        UsageError, match=r"sql init .* --table lessons --key id.* its type, as in words:INTEGER"
    ) as error:
        shout.run(checkpoint=checkpoint)
    assert "processed_at" in str(error.value)
    with pytest.raises(UsageError, match="no table 'nothing'"):
        shout.run(checkpoint=SqlCheckpoint(db.url, table="nothing", key="id", columns=["label"]))
    with pytest.raises(UsageError, match="no column 'number'"):
        shout.run(
            checkpoint=SqlCheckpoint(db.url, table="lessons", key="number", columns=["label"])
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ("('a', 1), ('a', 2)", 'key "a" is in 2 rows'),
        ("('a', 1), (NULL, 2)", "1 rows of table loose have no key"),
        ("('a', 1), ('b', 2)", "CREATE UNIQUE INDEX"),
    ],
)
def test_keys_that_are_none(db: Db, values: str, message: str) -> None:
    db.do("CREATE TABLE loose (name TEXT, n INTEGER, label TEXT, processed_at TIMESTAMP)")
    db.do(f"INSERT INTO loose (name, n) VALUES {values}")
    checkpoint = SqlCheckpoint(db.url, table="loose", key="name", columns=["label"])
    with pytest.raises(CheckpointUnusable, match=message):
        db.prepare(checkpoint)


def test_a_key_of_another_type(db: Db) -> None:
    db.do("CREATE TABLE days (day DATE NOT NULL PRIMARY KEY)")
    with pytest.raises(UsageError, match="a key must be text, an integer or a UUID"):
        db.prepare(SqlCheckpoint(db.url, table="days", key="day"))


@pytest.mark.sample(only="sqlite")
def test_another_version_or_job_is_refused(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(5)
    shout.run(checkpoint=checkpoint)
    with pytest.raises(CheckpointMismatch, match="version '1'"):
        shout.with_options(version=2).run(checkpoint=checkpoint)
    with pytest.raises(CheckpointMismatch, match="its own done= column"):
        shout.with_options(name="other").run(checkpoint=checkpoint)
    newer = shout.with_options(version=2)
    assert newer.run(checkpoint=checkpoint, on_version_change="reuse").skipped == 5


@pytest.mark.sample(only="sqlite")
def test_two_jobs_on_one_table(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(5)
    db.do("ALTER TABLE lessons ADD COLUMN size INTEGER")
    second = SqlCheckpoint(db.url, table="lessons", key="id", done="sized_at", columns=["size"])
    db.prepare(second)
    size = resumable_task(
        lambda rows: [{"id": row["id"], "size": len(row["text"])} for row in rows], name="size"
    )
    assert (shout.run(checkpoint=checkpoint).completed, size.run(checkpoint=second).completed) == (
        5,
        5,
    )
    assert db.one("SELECT count(*) FROM lessons WHERE size = 6 AND label = upper(text)") == 5


def test_takeover_fences_the_run_at_work(db: Db, prepared: Prepared) -> None:
    checkpoint = prepared(60)
    inner: list[Any] = []

    @resumable_task(name="shout", batch_size=5, concurrency=1)
    def slow(rows: Rows) -> Rows:
        if not inner:
            inner.append(None)
            if db.engine.dialect.name == "sqlite":
                with pytest.raises(CheckpointHeld, match="takeover=True"):
                    shout.run(checkpoint=checkpoint)
            inner[0] = shout.run(checkpoint=checkpoint, takeover=True)
        return shout.fn(rows)

    with pytest.raises(Fenced):
        slow.run(checkpoint=checkpoint)
    assert inner[0].completed == 60
    assert state(db) == (60, 60)


def test_databases_that_cannot_be() -> None:
    for database, message in (
        ("sqlite://", "in-memory"),
        ("mysql://localhost/x", "PostgreSQL and SQLite, not mysql"),
        ("nonsense", "Could not parse"),
        (3, "neither a URL nor a SQLAlchemy engine"),
    ):
        with pytest.raises(UsageError, match=message):
            shout.run(checkpoint=SqlCheckpoint(database, table="t", key="id", columns=["label"]))
    with pytest.raises(UsageError, match="exclude each other"):
        SqlCheckpoint("sqlite:///x", table="t", key="id", columns=["a"], shards="s")
    with pytest.raises(UsageError, match="give a list"):
        SqlCheckpoint("sqlite:///x", table="t", key="id", columns="label")


def test_without_the_extra_the_line_that_installs_it(tmp_path: Path) -> None:
    code = """
import sys
import threading
sys.modules["sqlalchemy"] = None
from resumable_tasks import SqlCheckpoint, UsageError, resumable_task
job = resumable_task(lambda rows: rows, name="job")
try:
    job.run(checkpoint=SqlCheckpoint("sqlite:///x.db", table="t", key="id", columns=["label"]))
except UsageError as error:
    print(error)
from resumable_tasks.cli import main
for command in ("init", "status"):
    main.main(["sql", command, "sqlite:///x.db", "--table", "t"], standalone_mode=False)
"""
    env = {**os.environ, "PYTHONPATH": str(Path(resumable_tasks.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert 'pip install "resumable-tasks[sql]"' in done.stdout, done.stderr
    assert done.stderr.count('pip install "resumable-tasks[sql]"') == 2, done.stderr


def test_importing_it_does_not_load_sqlalchemy(tmp_path: Path) -> None:
    code = (
        "import sys, resumable_tasks; resumable_tasks.SqlCheckpoint\n"
        "resumable_tasks.resumable_task\n"
        "print(sorted({'sqlalchemy', 'pyarrow', 'psycopg'} & set(sys.modules)))"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(resumable_tasks.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=env
    )
    assert done.stdout == "[]\n", done.stderr


@pytest.mark.sample(only="sqlite")
def test_an_engine_that_is_given_and_a_result_that_travels(db: Db, prepared: Prepared) -> None:
    prepared(20)
    engine = sa.create_engine(db.url)
    checkpoint = SqlCheckpoint(engine, table="lessons", key="id", columns=["label"])
    run = shout.run(checkpoint=checkpoint)
    assert run.completed == 20
    with engine.connect() as connection:  # it is still its owner's
        assert connection.exec_driver_sql("SELECT count(label) FROM lessons").scalar() == 20
    engine.dispose()
    assert pickle.loads(pickle.dumps(run)).table().num_rows == 20
    with pytest.raises(UsageError, match="shards=DIR"):
        run.publish("anywhere")


def test_a_password_is_shown_nowhere(postgres_url: str, caplog: pytest.LogCaptureFixture) -> None:
    db = Db(postgres_url.replace("tests@", "tests:hunter2@"))
    db.make(5)
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    with pytest.raises(UsageError) as error:
        shout.run(checkpoint=checkpoint)
    db.prepare(checkpoint)
    run = shout.run(checkpoint=checkpoint)
    everything = f"{error.value} {checkpoint!r} {run!r} {caplog.text}"
    assert "lessons" in everything
    assert "hunter2" not in everything


def test_others_who_write_to_a_file_of_sqlite_are_waited_for(tmp_path: Path) -> None:
    db = Db(f"sqlite:///{tmp_path / 'test.db'}")
    db.make(400)
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label"])
    db.prepare(checkpoint)
    db.do("CREATE TABLE other (n INTEGER)", "INSERT INTO other VALUES (0)")
    db.rows("PRAGMA journal_mode = WAL")
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            db.do("UPDATE other SET n = n + 1")

    writer = threading.Thread(target=write, daemon=True)
    writer.start()
    try:
        assert shout.run(checkpoint=checkpoint).completed == 400
    finally:
        over.set()
        writer.join(10)
    assert state(db) == (400, 400)
