"""``make bench-many``: a complete job over many keys, run again; as ratios within one run.

``python -m tests.benchmarks.many [--keys N] [--batch N]``. Each measurement is a process of its
own, for its memory; seconds are of the processor, so that a busy machine disturbs little.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.__main__ import folder, row, table

BATCH = 5_000


def items(count: int) -> Iterator[dict[str, Any]]:
    for n in range(count):
        yield {"id": f"item-{n:09d}", "n": n}


def shuffled(count: int) -> Iterator[dict[str, Any]]:
    order = list(range(count))
    random.Random(1).shuffle(order)
    for n in order:
        yield {"id": f"item-{n:09d}", "n": n}


def batches(count: int) -> Any:
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = pa.schema({"id": pa.string(), "n": pa.int64()})

    def each() -> Iterator[pa.RecordBatch]:
        for at in range(0, count, 65_536):
            numbers = pa.array(range(at, min(at + 65_536, count)))
            text = pc.utf8_lpad(numbers.cast(pa.string()), 9, padding="0")
            ids = pc.binary_join_element_wise("item-", text, "")
            yield pa.record_batch([ids, numbers], schema)

    return pa.RecordBatchReader.from_batches(schema, each())


SOURCES: dict[str, Callable[[int], Any]] = {"dicts": items, "shuffled": shuffled, "arrow": batches}


def job(batch: int) -> Any:
    from resumable_tasks import resumable_task

    return resumable_task(
        lambda rows: None, name="many", key="id", batch_size=batch, results="none"
    )


def bare(source: str, count: int, place: str, batch: int) -> None:
    for _ in SOURCES[source](count):
        pass


def rerun(source: str, count: int, place: str, batch: int) -> None:
    result = job(batch).run(SOURCES[source](count), checkpoint=place, progress=False)
    assert result.total == count, result


def by_hand(source: str, count: int, place: str, batch: int) -> None:
    """The loop that people write: a file of keys, a set of strings."""
    path = Path(place, "keys.txt")
    if not path.exists():
        path.write_text("".join(f"item-{n:09d}\n" for n in range(count)))
    done = set(path.read_text().split("\n"))
    assert not [item for item in SOURCES[source](count) if item["id"] not in done]


def status(source: str, count: int, place: str, batch: int) -> None:
    from resumable_tasks.cli import main

    with contextlib.suppress(SystemExit):
        main(["status", place])


def nothing(source: str, count: int, place: str, batch: int) -> None:
    """The interpreter alone."""


WAYS = {way.__name__: way for way in (bare, rerun, by_hand, status, nothing)}


def measured(way: str, source: str, count: int, place: Path, batch: int) -> tuple[float, float]:
    """The seconds of the processor, and the peak of memory in MB, of a process of its own."""
    told = json.dumps([way, source, count, str(place), batch])
    found = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.many", "--one", told],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds, peak = found.stdout.strip().splitlines()[-1].split()
    return float(seconds), float(peak)


def one(told: str) -> None:
    way, source, count, place, batch = json.loads(told)
    WAYS[way](source, count, place, batch)
    print(time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=BATCH)
    parser.add_argument("--one")
    parser.add_argument("--arrow-only", action="store_true")
    asked = parser.parse_args()
    if asked.one:
        one(asked.one)
        return
    count = asked.keys
    with folder() as place:
        first, _ = measured("rerun", "arrow", count, place / "c", asked.batch)
        table(f"{count:,} completed keys", "s of CPU", "× the bare source", "µs per item", "MB")
        row("the first run, from Arrow", f"{first:.1f}", "", f"{first / count * 1e6:.2f}", "")
        for source in ["arrow"] if asked.arrow_only else SOURCES:
            alone, _ = measured("bare", source, count, place, asked.batch)
            ways = ["rerun"] if source == "arrow" else ["rerun", "by_hand"]
            for way in ways:
                seconds, peak = measured(
                    way, source, count, place / ("c" if way == "rerun" else "."), asked.batch
                )
                more = (seconds - alone) / count * 1e6
                row(
                    f"{source}: {way}",
                    f"{seconds:.1f}",
                    f"{seconds / alone:.2f}",
                    f"{more:.2f}",
                    f"{peak:.0f}",
                )
        start, _ = measured("nothing", "dicts", count, place, asked.batch)
        seconds, peak = measured("status", "dicts", count, place / "c", asked.batch)
        row(
            "`resumable status`, over the interpreter",
            f"{seconds - start:.2f}",
            "",
            "",
            f"{peak:.0f}",
        )


if __name__ == "__main__":
    main()
