"""Run as a process of its own: one job, and the peak memory that it took, in bytes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet  # part of the ground that is measured from

from resumable_tasks import resumable_task


def peak() -> int:
    # Not getrusage: that counts what the parent had when it forked.
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


@resumable_task(key="id", batch_size=1_000)
def work(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": row["id"], "value": row["n"] * 2} for row in rows]


def items(count: int) -> Iterator[dict[str, Any]]:
    return ({"id": f"item-{i:09d}", "n": i} for i in range(count))


if __name__ == "__main__":
    count, place = int(sys.argv[1]), sys.argv[2]
    ground = peak()
    result = work.run(items(count), checkpoint=place, progress=False)
    assert result.completed + result.skipped == count
    print(ground, peak() - ground, result.completed, pa.total_allocated_bytes())
