"""The backfill of a table as a flow run, by the flow's own task runner, on threads."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
def test_as_a_flow_run(tmp_path: Path, prefect_env: dict[str, str]) -> None:
    url = f"sqlite:///{tmp_path / 'shop.db'}"
    words = [sys.executable, "-m", "flows.backfill_table", url, "--make", "3000"]
    env = {**prefect_env, "PYTHONPATH": str(_ROOT)}
    run = subprocess.run(words, cwd=_ROOT, env=env, capture_output=True, text=True, timeout=180)
    assert run.returncode == 0, run.stderr
    assert "3,000 rows: 3,000 handled now, 0 resumed, 0 failed" in run.stdout
    assert "Created task run" in run.stderr or "count-words" in run.stderr
    database = sqlite3.connect(tmp_path / "shop.db")
    query = (
        "SELECT count(*), count(processed_at), count(words) FROM lessons "
        "WHERE words = CASE WHEN (id & 1) = 0 THEN 5 ELSE 2 END"
    )
    assert database.execute(query).fetchone() == (3_000, 3_000, 3_000)
    database.close()
