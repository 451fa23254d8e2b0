"""A form of somebody else's needs one class and the suite that ships."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.testing.form_suite import NOTE, FormSuite
from tests import warm
from tests.checkpoint.small_form import RowsInSqlite

ROOT = Path(__file__).parents[2]


class TestRowsInSqlite(warm.WarmForms, FormSuite):
    in_flight = 2 * 2 * 5

    def program(self, place: Path) -> str:
        return (
            NOTE
            + f"sys.path.insert(0, {str(ROOT)!r})\n"
            + """
from resumable_tasks import resumable_task
from tests.checkpoint.small_form import RowsInSqlite

@resumable_task(name="units", batch_size=5, concurrency=2)
def handler(units):
    for unit in units:
        note(unit)
        time.sleep(SECONDS)
    return [{"key": unit, "result": unit * unit} for unit in units]

handler.run(range(COUNT), checkpoint=RowsInSqlite("rows.db"))
"""
        )

    def results(self, place: Path) -> list[int]:
        if not (place / "rows.db").exists():
            return []
        with closing(sqlite3.connect(place / "rows.db")) as database:
            rows = [json.loads(row) for (row,) in database.execute("SELECT rows FROM done")]
        assert all(row["result"] == row["key"] ** 2 for row in rows)
        return [row["key"] for row in rows]

    def damage(self, place: Path) -> None:
        pytest.skip("a database finds its own damage")


def test_the_rows_are_read_and_published(tmp_path: Path) -> None:
    place = RowsInSqlite(str(tmp_path / "rows.db"))
    double = resumable_task(lambda items: [{"key": n, "double": 2 * n} for n in items], name="d")
    assert double.run(range(20), checkpoint=place, dry_run=True).remaining.items == 20
    run = double.run(range(20), checkpoint=place)
    assert run.table(ordered=True).to_pylist() == [{"key": n, "double": 2 * n} for n in range(20)]
    assert run.publish(tmp_path / "published").rows == 20
    assert sorted(run.completed_keys()) == list(range(20))
    place.database.close()
    place.lock.close()
