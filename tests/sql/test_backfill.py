"""The flow that backfills a column of 100,000 rows: killed, resumed, and in Prefect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.on_prefect.conftest import prefect_env, prefect_server

from .child import until
from .conftest import Db

__all__ = ["prefect_env", "prefect_server"]

_ROOT = Path(__file__).resolve().parents[2]
_WRONG = (
    "SELECT count(*) FROM lessons WHERE processed_at IS NULL OR words IS NULL "
    "OR words <> CASE WHEN (id & 1) = 0 THEN 5 ELSE 2 END"
)


def command(url: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "flows.backfill_table", url, "--local", *more]


@pytest.mark.parametrize("rows", [20_000, pytest.param(100_000, marks=pytest.mark.long)])
def test_many_rows_killed_and_resumed(db: Db, rows: int) -> None:
    env = {**os.environ, "BACKFILL_SECONDS": "0.01"}
    words = command(db.url, "--make", str(rows))
    first = subprocess.Popen(words, cwd=_ROOT, env=env)

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
    assert rows // 5 < done < rows
    db.do("UPDATE lessons_processed_at_runs SET alive_until = 0")  # do not wait for the claims
    again = subprocess.run(command(db.url), cwd=_ROOT, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"{rows - done:,} rows handled now, {done:,} before\n"
    assert db.one("SELECT count(*) FROM lessons") == rows
    assert db.one(_WRONG) == 0


def test_as_a_flow_run(db: Db, prefect_env: dict[str, str]) -> None:
    """By the flow's own task runner, on threads."""
    words = [sys.executable, "-m", "flows.backfill_table", db.url, "--make", "3000"]
    run = subprocess.run(
        words, cwd=_ROOT, env=prefect_env, capture_output=True, text=True, timeout=180
    )
    assert run.returncode == 0, run.stderr
    assert "3,000 rows handled now, 0 before" in run.stdout
    assert "Created task run" in run.stderr or "count-words" in run.stderr
    assert db.one(_WRONG) == 0


def test_usage(tmp_path: Path) -> None:
    run = subprocess.run(
        command(f"sqlite:///{tmp_path}/none.db"), cwd=_ROOT, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert "no table 'lessons'" in run.stderr


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(_ROOT))
