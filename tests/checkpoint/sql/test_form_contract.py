"""A column of a table keeps the contract of forms of checkpoint, in both databases."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import sqlalchemy as sa

from resumable_tasks.testing.form_suite import NOTE, Bench, FormSuite
from tests import warm


class ColumnSuite(warm.WarmForms, FormSuite):
    url: str
    in_flight = 2 * 2 * 5

    def program(self, place: Path) -> str:
        return (
            f"URL = {self.url!r}\n"
            + NOTE
            + """
import sqlalchemy as sa
from resumable_tasks import SqlCheckpoint, resumable_task
from resumable_tasks.checkpoint.sql import init
from resumable_tasks.checkpoint.sql.database import Database

checkpoint = SqlCheckpoint(URL, table="units", key="id", columns=["result"])
engine = sa.create_engine(URL)
with engine.begin() as connection:
    connection.exec_driver_sql(
        "CREATE TABLE IF NOT EXISTS units (id INTEGER PRIMARY KEY, result INTEGER)"
    )
    there = connection.exec_driver_sql("SELECT count(*) FROM units").scalar_one()
    for unit in range(there, COUNT):
        connection.exec_driver_sql(f"INSERT INTO units (id) VALUES ({unit})")
if not sa.inspect(engine).has_table("units_processed_at_runs"):
    database = Database(URL)
    init.apply(database, init.statements(database, checkpoint, {}))
    database.close()
engine.dispose()

@resumable_task(name="units", key="id", batch_size=5, concurrency=2)
def handler(rows):
    for row in rows:
        note(row["id"])
        time.sleep(SECONDS)
    return [{"id": row["id"], "result": row["id"] ** 2} for row in rows]

handler.run(checkpoint=checkpoint)
"""
        )

    def results(self, place: Path) -> list[int]:
        engine = sa.create_engine(self.url, poolclass=sa.NullPool)
        with engine.connect() as connection:
            if not sa.inspect(connection).has_table("units"):
                return []
            query = (
                "SELECT id, result, processed_at IS NOT NULL FROM units "
                "WHERE result IS NOT NULL OR processed_at IS NOT NULL"
            )
            rows = connection.exec_driver_sql(query).all()
        assert all(done and result == id_**2 for id_, result, done in rows)
        return [row[0] for row in rows]

    def damage(self, place: Path) -> None:
        pytest.skip("a database finds and repairs its own damage")


class TestSqlite(ColumnSuite):
    @pytest.fixture(autouse=True)
    def _database(self, tmp_path: Path) -> None:
        self.url = f"sqlite:///{tmp_path / 'data.db'}"

    @pytest.mark.long  # once: with PostgreSQL
    def test_killed_again_and_again(self, bench: Bench) -> None:
        super().test_killed_again_and_again(bench)


class TestPostgres(ColumnSuite):
    several_drivers = True

    @pytest.fixture(autouse=True)
    def _database(self, postgres_url: str) -> None:
        self.url = postgres_url

    # Of PostgreSQL the short form has two at once, and kills and SIGTERM; the rest has SQLite.

    @pytest.mark.long
    def test_all_is_done_once(self, bench: Bench) -> None:
        super().test_all_is_done_once(bench)

    @pytest.mark.long
    def test_what_is_done_is_not_done_again(self, bench: Bench) -> None:
        super().test_what_is_done_is_not_done_again(bench)

    @pytest.mark.long
    @pytest.mark.parametrize("after", [1, 17, 45])
    def test_killed_and_run_again(self, bench: Bench, after: int) -> None:
        super().test_killed_and_run_again(bench, after)

    @pytest.mark.parametrize(
        "number", [pytest.param(signal.SIGINT, marks=pytest.mark.long), signal.SIGTERM]
    )
    def test_interrupted_and_run_again(self, bench: Bench, number: signal.Signals) -> None:
        super().test_interrupted_and_run_again(bench, number)
