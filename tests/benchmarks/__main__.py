"""``make bench``: the numbers of docs/performance.md, as ratios within one run.

``python -m tests.benchmarks [--rounds N] [--huge]``; ``--huge`` adds 10,000,000 keys.
"""

from __future__ import annotations

import argparse
import functools
import gc
import logging
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.directory import shards
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.outcome import Done
from tests.benchmarks import baselines

BATCH = 50
FLUSHES = 200


def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": row["id"], "value": row["n"] * 2} for row in rows]


def arrow_handler(rows: pa.RecordBatch) -> pa.Table:
    return pa.table({"id": rows["id"], "value": pc.multiply(rows["n"], 2)})


def ours(concurrency: int) -> Callable[..., None]:
    def run(handler: Any, items: Any, batch: int, place: Path) -> None:
        job = resumable_task(
            handler, name="bench", key="id", batch_size=batch, concurrency=concurrency
        )
        result = job.run(items, checkpoint=place / f"c{concurrency}", progress=False)
        assert result.completed + result.skipped == len(items)

    return run


def timed(call: Callable[[], Any]) -> float:
    gc.collect()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def interleaved(rounds: int, calls: dict[str, Callable[[Path], Any]]) -> dict[str, float]:
    """Median seconds of each, taken in turn, so that a slow spell of the machine hits all."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        with folder() as place:
            for name, call in calls.items():
                times[name].append(timed(lambda call=call, place=place: call(place)))
    return {name: statistics.median(each) for name, each in times.items()}


class folder:
    """A folder under the working directory, which is on a disk; the temporary one may not be."""

    def __enter__(self) -> Path:
        Path(".resumable").mkdir(exist_ok=True)
        self.path = Path(tempfile.mkdtemp(prefix="bench-", dir=".resumable"))
        return self.path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.path)


def row(*cells: str) -> None:
    print("| " + " | ".join(cells) + " |")


def table(*head: str) -> None:
    print()
    row(*head)
    row(*("---" for _ in head))


def overhead(rounds: int) -> None:
    count = 100_000
    items = [{"id": f"item-{i:07d}", "n": i} for i in range(count)]
    ways = {
        "bare loop, nothing durable": baselines.bare,
        "ours, concurrency 4": ours(4),
        "hand-written SQLite (WAL, full)": baselines.sqlite,
        "ours, concurrency 1": ours(1),
        "hand-written JSONL + fsync": baselines.jsonl,
    }
    calls: dict[str, Callable[[Path], Any]] = {
        name: lambda place, way=way: way(handler, items, BATCH, place) for name, way in ways.items()
    }
    calls["flush"] = flushes
    table_of_them, arrow = pa.Table.from_pylist(items), ours(4)
    calls["ours, Arrow in and out"] = lambda place: arrow(
        arrow_handler, table_of_them, BATCH, place / "arrow"
    )
    found = interleaved(rounds, calls)
    flush = found.pop("flush") / FLUSHES
    best = min(found["hand-written SQLite (WAL, full)"], found["hand-written JSONL + fsync"])
    table(f"{count:,} trivial items, batch {BATCH}", "µs per item", "× the faster loop")
    for name, seconds in found.items():
        row(name, f"{seconds / count * 1e6:.1f}", f"{seconds / best:.2f}")
    print(f"\nOne flush of 4 KB takes {flush * 1e3:.2f} ms here; a loop makes {count // BATCH:,}.")


def flushes(place: Path) -> None:
    """So many appends to a file, each made durable: most of what the loops by hand wait for."""
    with (place / "flushes").open("ab", buffering=0) as file:
        for _ in range(FLUSHES):
            file.write(bytes(4_096))
            os.fsync(file.fileno())


def resume(rounds: int, counts: list[int]) -> None:
    table("rerun of a complete job", "ours, s", "JSONL loop, s", "ratio", "ours, µs per key")
    for count in counts:
        items = [{"id": f"item-{i:09d}", "n": i} for i in range(count)]
        with folder() as place:
            batch = max(BATCH, count // 2_000)
            ours(4)(handler, items, batch, place)
            baselines.jsonl(handler, items, batch, place)
            times: dict[str, list[float]] = {"ours": [], "jsonl": []}
            for _ in range(rounds):
                for name, way in (("ours", ours(4)), ("jsonl", baselines.jsonl)):
                    call = functools.partial(way, handler, items, batch, place)
                    times[name].append(timed(call))
        mine, theirs = (statistics.median(times[name]) for name in ("ours", "jsonl"))
        row(
            f"{count:,} keys",
            f"{mine:.2f}",
            f"{theirs:.2f}",
            f"{mine / theirs:.2f}",
            f"{mine / count * 1e6:.2f}",
        )


def alone(rounds: int) -> None:
    """A batch that is committed alone, against the two durable files that it cannot do without."""
    count = 100
    rows = pa.table({"id": [f"item-{i}" for i in range(BATCH)], "value": list(range(BATCH))})

    def floor(place: Path) -> None:
        store = LocalStore(place / "floor")
        store.prepare(("a", "b"))
        for i in range(count):
            store.put(f"a/{i}", shards.encode(rows))
            store.create(f"b/{i}", b"x" * 2_000)

    def commit(place: Path) -> None:
        checkpoint = DirectoryCheckpoint.open(
            open_store(place / "alone"), Manifest("bench", "1", {"field": "id"}, "one")
        )
        for i in range(count):
            lines = b"\n".join(b'"%d-%d"' % (i, j) for j in range(BATCH))
            batch = Batch(i, [], lines, [])
            outcome = Done(batch, lines, BATCH, rows, schema=rows.schema)
            unit = checkpoint.begin()
            unit.add(outcome)
            unit.commit()
        checkpoint.close()

    found = interleaved(rounds, {"floor": floor, "commit": commit})
    table("one batch committed alone", "ms", "× the floor")
    row("two durable files and a Parquet encode", f"{found['floor'] / count * 1e3:.2f}", "1")
    row(
        "a commit",
        f"{found['commit'] / count * 1e3:.2f}",
        f"{found['commit'] / found['floor']:.2f}",
    )


def memory(counts: list[int]) -> None:
    table("generated items, batch 1,000", "peak above the baseline, MB", "bytes per key", "what")
    for count in counts:
        with folder() as place:
            for what in ("all handled", "all skipped"):
                command = [sys.executable, "-m", "tests.benchmarks.memory"]
                out = subprocess.run(
                    [*command, str(count), str(place / "c")],
                    check=True,
                    capture_output=True,
                    text=True,
                ).stdout
                used = int(out.split()[1])
                row(f"{count:,}", f"{used / 1e6:.0f}", f"{used / count:.0f}", what)


def start(rounds: int) -> None:
    with folder() as place:
        ours(4)(handler, [{"id": str(i), "n": i} for i in range(1_000)], BATCH, place)
        resumable = str(Path(sys.executable).with_name("resumable"))
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "import resumable_tasks": [sys.executable, "-c", "import resumable_tasks"],
            "from resumable_tasks import resumable_task": [
                sys.executable,
                "-c",
                "from resumable_tasks import resumable_task",
            ],
            "resumable status": [resumable, "status", str(place / "c4")],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds * 4):
            for name, command in commands.items():
                run = lambda command=command: subprocess.run(  # noqa: E731
                    command, capture_output=True, check=False
                )
                times[name].append(timed(run))
    found = {name: statistics.median(each) for name, each in times.items()}
    table("process", "ms above an empty interpreter")
    for name, seconds in found.items():
        row(f"`{name}`", f"{(seconds - found['python -c pass']) * 1e3:.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--huge", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.CRITICAL)
    print(
        f"{os.cpu_count()} cores, Python {platform.python_version()}, pyarrow {pa.__version__}, "
        f"{platform.system()}; medians of {options.rounds} interleaved rounds"
    )
    overhead(options.rounds)
    alone(options.rounds)
    resume(options.rounds, [10_000, 100_000, 1_000_000])
    memory([1_000_000, *([10_000_000] if options.huge else [])])
    if options.huge:
        resume(1, [10_000_000])
    start(options.rounds)


if __name__ == "__main__":
    main()
