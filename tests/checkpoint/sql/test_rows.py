"""A value is written as it is, whatever stands beside it in its batch."""

from __future__ import annotations

import enum
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from resumable_tasks import BadResult, Budget, JobFailed, SqlCheckpoint, resumable_task
from tests.checkpoint.sql.conftest import Db

Rows = list[dict[str, Any]]

NAIVE = datetime(2024, 1, 1, 12)
EAST = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
WEST = datetime(2024, 1, 1, 12, tzinfo=timezone(timedelta(hours=-5)))

KINDS = {"columns": {"columns": ["v"]}, "results_table": {"results_table": "found"}}


def stored(
    db: Db, place: str, kind: str, values: list[Any], batch_size: int, show: str
) -> list[Any]:
    """What stands in a column of this type after a job has returned these values."""
    db.make(len(values), columns=f"v {kind}")
    db.do(f"CREATE TABLE found (id INTEGER, v {kind})")
    named: dict[str, Any] = KINDS[place]
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", **named)
    db.prepare(checkpoint)

    def job(rows: Rows) -> Rows:
        return [{"id": row["id"], "v": values[row["id"] - 1]} for row in rows]

    run = resumable_task(job, batch_size=batch_size).run(checkpoint=checkpoint)
    assert run.completed == len(values)
    table = "lessons" if place == "columns" else "found"
    return [row[0] for row in db.rows(f"SELECT {show} FROM {table} ORDER BY id")]


@pytest.mark.sample(one_in=8)
@pytest.mark.parametrize("batch_size", [1, 50])
@pytest.mark.parametrize("place", list(KINDS))
@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("TEXT", [Decimal("1.10"), Decimal("2.5"), 0.1, 3, "4"], ["1.10", "2.5", "0.1", "3", "4"]),
        (
            "NUMERIC",
            [Decimal("1.10"), Decimal("2.5"), 0.25, 3, None],
            ["1.10", "2.5", "0.25", "3", None],
        ),
        (
            "TIMESTAMPTZ",
            [NAIVE, EAST, WEST, NAIVE, None],
            ["12:00:00", "10:00:00", "17:00:00", "12:00:00", None],
        ),
        ("JSONB", [{"a": 1}, {"a": "1"}, [], "text", 1.5], None),
    ],
)
def test_values_do_not_colour_each_other(
    postgres_url: str,
    place: str,
    kind: str,
    values: list[Any],
    wanted: list[Any] | None,
    batch_size: int,
) -> None:
    db = Db(postgres_url)
    db.do(f"ALTER DATABASE {postgres_url.rpartition('/')[2]} SET timezone = 'UTC'")
    show = "v::time::text" if kind == "TIMESTAMPTZ" else "v" if kind == "JSONB" else "v::text"
    found = stored(db, place, kind, values, batch_size, show)
    assert found == (values if wanted is None else wanted)


@pytest.mark.parametrize("batch_size", [1, 50])
@pytest.mark.parametrize("place", list(KINDS))
@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        ("TEXT", [Decimal("1.10"), Decimal("2.5"), "4"], ["1.10", "2.5", "4"]),
        ("NUMERIC", [Decimal("1.5"), 0.25, 3, None], [1.5, 0.25, 3, None]),
        (
            "TIMESTAMP",
            [NAIVE, EAST, WEST, None],
            [
                "2024-01-01 12:00:00.000000",
                "2024-01-01 10:00:00.000000+00:00",
                "2024-01-01 17:00:00.000000+00:00",
                None,
            ],
        ),
        ("TEXT", [NAIVE, EAST], ["2024-01-01 12:00:00", "2024-01-01 12:00:00+02:00"]),
        ("BLOB", [b"a", "a", 1], [b"a", "a", 1]),
    ],
)
def test_values_do_not_colour_each_other_in_sqlite(
    tmp_path: Path,
    place: str,
    kind: str,
    values: list[Any],
    wanted: list[Any],
    batch_size: int,
) -> None:
    db = Db(f"sqlite:///{tmp_path / 'test.db'}")
    found = stored(db, place, kind, values, batch_size, "v")
    assert found == wanted


def test_a_column_of_sqlite_with_two_kinds_of_moments_is_read_as_none_of_both(
    tmp_path: Path,
) -> None:
    db = Db(f"sqlite:///{tmp_path / 'test.db'}")
    db.make(2, columns="v TIMESTAMP")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["v"])
    db.prepare(checkpoint)
    moments = {1: NAIVE, 2: EAST}
    task = resumable_task(
        lambda rows: [{"id": r["id"], "v": moments[r["id"]]} for r in rows], name="job"
    )
    run = task.run(checkpoint=checkpoint)
    with pytest.raises(BadResult, match="'v' cannot be read"):
        run.table()
    db.do("DELETE FROM lessons WHERE id = 1")
    assert run.table().column("v").to_pylist() == [EAST]


class Colour(enum.Enum):
    RED = "red"


def test_values_of_libraries_are_the_values_they_stand_for(db: Db) -> None:
    np = pytest.importorskip("numpy")
    db.make(1, columns="a INTEGER")
    db.do("ALTER TABLE lessons ADD b TEXT", "ALTER TABLE lessons ADD c TEXT")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["a", "b", "c"])
    db.prepare(checkpoint)
    task = resumable_task(
        lambda rows: [{"id": 1, "a": np.int64(5), "b": Colour.RED, "c": Path("x/y")}], name="job"
    )
    assert task.run(checkpoint=checkpoint).completed == 1
    assert db.rows("SELECT a, b, c FROM lessons") == [(5, "red", "x/y")]


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize("batch_size", [1, 50])
def test_a_field_that_a_row_leaves_out_hangs_on_no_neighbour(db: Db, batch_size: int) -> None:
    db.make(4, columns="label TEXT")
    db.do("ALTER TABLE lessons ADD why TEXT")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["label", "why"])
    db.prepare(checkpoint)
    given = {1: {"label": "a", "why": "b"}, 2: {"label": "a"}, 3: {}, 4: {"label": "a", "wyh": "b"}}
    task = resumable_task(
        lambda rows: [{"id": r["id"], **given[r["id"]]} for r in rows],
        name="job",
        batch_size=batch_size,
    )
    with pytest.raises(JobFailed) as caught:
        task.run(checkpoint=checkpoint)
    result = caught.value.result
    assert (result.completed, sorted(each.key for each in result.parked_items)) == (2, [3, 4])
    assert "no field 'why'" in next(e.message for e in result.parked_items if e.key == 4)


@pytest.mark.sample(only="sqlite")
@pytest.mark.parametrize("batch_size", [1, 50])
def test_a_column_that_a_row_leaves_out_has_its_default(db: Db, batch_size: int) -> None:
    db.make(3)
    db.do("CREATE TABLE found (id INTEGER, v TEXT, note TEXT NOT NULL DEFAULT 'none')")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", results_table="found")
    db.prepare(checkpoint)
    given = {1: {"note": "some"}, 2: {"v": "x"}, 3: {}}
    task = resumable_task(
        lambda rows: [{"id": r["id"], **given[r["id"]]} for r in rows],
        name="job",
        batch_size=batch_size,
    )
    assert task.run(checkpoint=checkpoint).completed == 3
    assert db.rows("SELECT id, v, note FROM found ORDER BY id") == [
        (1, None, "some"),
        (2, "x", "none"),
        (3, None, "none"),
    ]


@pytest.mark.sample(only="sqlite")
def test_the_cost_is_known_where_other_columns_have_no_type(db: Db) -> None:
    db.make(10, columns="v TEXT")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["v"])
    db.prepare(checkpoint)

    def job(rows: Rows) -> Rows:
        return [{"id": r["id"], "v": [0.1, "x", Decimal(1)][r["id"] % 3], "cost": 2} for r in rows]

    for cost in ("cost", lambda call: sum(call.table["cost"].to_pylist())):
        db.do("UPDATE lessons SET processed_at = NULL")
        task = resumable_task(job, cost=cost, budget=Budget(cost=100), concurrency=1)
        assert task.run(checkpoint=checkpoint).cost == 20


@pytest.mark.sample(only="sqlite")
def test_rows_that_the_handler_changes_afterwards_are_as_it_returned_them(db: Db) -> None:
    db.make(40, columns="v TEXT")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["v"])
    db.prepare(checkpoint)
    row: dict[str, Any] = {}

    def job(rows: Rows) -> Rows:
        row.update(id=rows[0]["id"], v=f"of {rows[0]['id']}")
        return [row]

    assert resumable_task(job, batch_size=1, concurrency=1).run(checkpoint=checkpoint).completed
    assert db.one("SELECT count(*) FROM lessons WHERE v = 'of ' || id") == 40


@pytest.mark.sample(only="sqlite")
def test_arrow_is_taken_as_before(db: Db) -> None:
    db.make(10, columns="v TEXT")
    checkpoint = SqlCheckpoint(db.url, table="lessons", key="id", columns=["v"])
    db.prepare(checkpoint)
    task = resumable_task(
        lambda rows: pa.table({"id": [r["id"] for r in rows], "v": ["x"] * len(rows)}), name="job"
    )
    assert task.run(checkpoint=checkpoint).completed == 10
    assert db.one("SELECT count(*) FROM lessons WHERE v = 'x'") == 10
