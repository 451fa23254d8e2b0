"""Run as a process of its own: one flow run, what it took, as JSON on the last line.

``python -m tests.benchmarks.flow_cases CASE BATCHES SIZE SECONDS PLACE``: the handler takes so
many seconds for each of the batches, which have SIZE items.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prefect import flow, task
from prefect.cache_policies import INPUTS, NO_CACHE
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from resumable_tasks import resumable_task
from resumable_tasks.prefect import threads
from tests.benchmarks.memory import peak

CONCURRENCY = 4


def items(count: int) -> list[dict[str, Any]]:
    return [{"id": f"item-{i:07d}", "n": i} for i in range(count)]


def work(rows: list[dict[str, Any]], seconds: float) -> list[dict[str, Any]]:
    if seconds:
        time.sleep(seconds)
    return [{"id": row["id"], "value": row["n"] * 2} for row in rows]


def empty(batches: int, size: int, seconds: float, place: Path) -> int:
    return 0


def ours(batches: int, size: int, seconds: float, place: Path) -> int:
    job = resumable_task(
        lambda rows: work(rows, seconds),
        name="bench",
        key="id",
        batch_size=size,
        concurrency=CONCURRENCY,
    )
    return job.run(items(batches * size), checkpoint=place).completed


def ours_each(batches: int, size: int, seconds: float, place: Path) -> int:
    """A task run for every batch, whatever that costs: what we add to a task run of Prefect's."""
    threads.SECONDS = 0
    return ours(batches, size, seconds, place)


def mapped(batches: int, size: int, seconds: float, place: Path, **options: Any) -> int:
    handler = task(lambda rows: work(rows, seconds), name="bench", **options)
    every = items(batches * size)
    cut = [every[at : at + size] for at in range(0, len(every), size)]
    futures = [handler.submit(each) for each in cut]
    return sum(len(future.result()) for future in futures)


def plain(batches: int, size: int, seconds: float, place: Path) -> int:
    return mapped(batches, size, seconds, place, cache_policy=NO_CACHE, persist_result=False)


def cached(batches: int, size: int, seconds: float, place: Path) -> int:
    return mapped(
        batches,
        size,
        seconds,
        place,
        cache_policy=INPUTS,
        persist_result=True,
        result_storage_key=None,
    )


CASES: dict[str, Callable[..., int]] = {
    "empty": empty,
    "ours": ours,
    "ours_each": ours_each,
    "plain": plain,
    "cached": cached,
}


def main() -> None:
    name, batches, size, seconds, place = sys.argv[1:]
    case = CASES[name]
    found: dict[str, Any] = {}

    @flow(name=name, task_runner=ThreadPoolTaskRunner(max_workers=CONCURRENCY))
    def bench() -> None:
        found["flow_run"] = str(flow_run.id)
        ground = peak()
        found["handled"] = case(int(batches), int(size), float(seconds), Path(place))
        found["grown"] = peak() - ground

    began = time.perf_counter()
    bench()
    found["seconds"] = time.perf_counter() - began
    print(json.dumps(found))


if __name__ == "__main__":
    main()
