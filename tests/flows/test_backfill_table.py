"""The flow that backfills a column of 100,000 rows: killed, and resumed."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest

from tests import warm
from tests.checkpoint.sql.child import until
from tests.checkpoint.sql.conftest import Db, db, postgres_server, postgres_url, url

__all__ = ["db", "postgres_server", "postgres_url", "url"]

_ROOT = Path(__file__).resolve().parents[2]
_WRONG = (
    "SELECT count(*) FROM lessons WHERE processed_at IS NULL OR words IS NULL "
    "OR words <> CASE WHEN (id & 1) = 0 THEN 5 ELSE 2 END"
)
# The flow, of which half of the batches are handled; the others wait, to be killed.
_HALF = """
import itertools, sys, time
from types import SimpleNamespace
import flows.backfill_table as flow

begun = itertools.count()
let = int(sys.argv.pop()) // 2 // 200
flow.time = SimpleNamespace(sleep=lambda _: time.sleep(0 if next(begun) < let else 600))
flow.main()
"""


def command(url: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "flows.backfill_table", url, "--local", *more]


@pytest.mark.parametrize(
    ("url", "rows"),
    [
        ("sqlite", 5_000),
        *(
            pytest.param(database, rows, marks=pytest.mark.long)
            for database, rows in [
                ("postgresql", 5_000),
                ("sqlite", 100_000),
                ("postgresql", 100_000),
            ]
        ),
    ],
    indirect=["url"],
)
def test_many_rows_killed_and_resumed(db: Db, rows: int) -> None:
    words = [sys.executable, "-c", _HALF, db.url, "--local", "--make", str(rows), str(rows)]
    first = warm.start(words, cwd=_ROOT)

    def some() -> bool:
        try:
            return bool(db.one("SELECT count(processed_at) FROM lessons") > rows // 5)
        except Exception:  # the table is not there yet, or locked
            return False

    try:
        until("a part is done", some)
    finally:
        first.kill()
    assert first.wait() == -signal.SIGKILL
    done: int = db.one("SELECT count(processed_at) FROM lessons")
    assert rows // 5 < done <= rows // 2
    again = warm.run(command(db.url), cwd=_ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    told = f"{rows:,} rows: {rows - done:,} handled now, {done:,} resumed, 0 failed, in "
    assert again.stdout.startswith(told)
    assert db.one("SELECT count(*) FROM lessons") == rows
    assert db.one(_WRONG) == 0


def test_usage(tmp_path: Path) -> None:
    run = warm.run(
        command(f"sqlite:///{tmp_path}/none.db"), cwd=_ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "there is no such file" in run.stderr


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(_ROOT))
