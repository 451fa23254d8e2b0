"""``python -m tests.benchmarks.one_a_call``: one text a call, beside the same rows by the thousand.

``[--count N]``. What is there after the run and the next one: its files, its bytes, and what that
next run, which has nothing left to do, takes of the processor. A call waits until its commit has
ended, so that each is a commit of its own.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.__main__ import folder, row, table

LENGTHS = (16, 200, 500)  # characters of a text
FEW, MANY = 1, 1_000
WORDS = 6_000
CALL_SECONDS = 0.003


def texts(length: int) -> Any:
    """A handler whose answers are words, the usual ones more often, as in a language."""
    letters = random.Random(5)
    words = ["".join(letters.choices("etaoinshrdlucmfwyp", k=2 + n % 8)) for n in range(WORDS)]
    weights = [1 / (n + 1) for n in range(WORDS)]

    def answer(item: dict[str, Any]) -> dict[str, Any]:
        chosen = random.Random(item["id"]).choices(words, weights, k=length // 2)
        return {**item, "answer": " ".join(chosen)[:length]}

    def handler(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if len(items) == FEW:
            time.sleep(CALL_SECONDS)
        return [answer(item) for item in items]

    return handler


def measured(count: int, length: int, batch: int, place: Path) -> tuple[int, int, float]:
    """Files, bytes, and seconds of the processor of a run that has nothing left to do."""
    from resumable_tasks import resumable_task

    job = resumable_task(texts(length), name="texts", key="id", batch_size=batch, concurrency=1)
    items = [{"id": f"text-{n:06d}"} for n in range(count)]
    job.run(items, checkpoint=place, progress=False)
    began = time.process_time()
    job.run(items, checkpoint=place, progress=False)
    seconds = time.process_time() - began
    files = [each.stat().st_size for each in place.rglob("*") if each.is_file()]
    return len(files), sum(files), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=5_000)
    count = parser.parse_args().count
    table(
        f"{count:,} texts of so many characters",
        *("files, one a call", "by the thousand"),
        *("MB, one a call", "by the thousand", "ratio"),
        *("next run, s of CPU, one a call", "by the thousand"),
    )
    for length in LENGTHS:
        with folder() as place:
            few, many = (
                measured(count, length, batch, place / str(batch)) for batch in (FEW, MANY)
            )
        row(
            *(str(length), str(few[0]), str(many[0])),
            *(f"{few[1] / 1e6:.2f}", f"{many[1] / 1e6:.2f}", f"{few[1] / many[1]:.2f}"),
            *(f"{few[2]:.2f}", f"{many[2]:.2f}"),
        )


if __name__ == "__main__":
    main()
