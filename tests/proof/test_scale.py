"""Memory does not grow with the number of items or the size of their results."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MB = 1_000_000


def peak(count: int, place: Path) -> int:
    """Bytes of memory above an interpreter with pyarrow loaded, for this many items."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.memory", str(count), str(place)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[1])


@pytest.mark.parametrize(
    ("count", "megabytes"), [(300_000, 220), pytest.param(1_000_000, 300, marks=pytest.mark.long)]
)
def test_generated_items_take_little_memory(place: Path, count: int, megabytes: int) -> None:
    assert peak(count, place) < megabytes * MB
    assert peak(count, place) < megabytes * MB  # all completed


@pytest.mark.long
def test_three_million_keys_cost_less_than_60_bytes_each_more(tmp_path: Path) -> None:
    one, three = (peak(n, tmp_path / str(n)) for n in (1_000_000, 3_000_000))
    assert (three - one) / 2_000_000 < 60
