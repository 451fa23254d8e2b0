"""``python -m tests.benchmarks.tokens``: what a rate of tokens costs a call, its window full.

The clock is virtual: each call begins as soon as the window lets it, so that the processor's time
is all that is measured. Ratios are to the JSON of one item of 2 kB.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from resumable_tasks.runners.limits import Entry, Limits
from resumable_tasks.runners.rates import RateLimit, parse_rate
from resumable_tasks.runners.usage import Load
from tests.engine.simulation import VirtualClock

TOKENS = 500  # a call
ITEM = {"id": "item-000000001", "text": "Of all words these are some. " * 69}


def microseconds(call: Callable[[], object], count: int) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.process_time()
        for _ in range(count):
            call()
        best = min(best, time.process_time() - began)
    return best / count * 1e6


def calls_through(rate: RateLimit, count: int, share: str | None = None) -> float:
    """Of the processor, for each call: begin, report, end."""
    clock = VirtualClock()
    limits = Limits([rate], clock=clock, share=share)
    load = Load(1, 2_000, own=TOKENS)

    def call() -> None:
        entry = Entry(load)
        while (wait := limits._admit(entry)) > 0:
            clock.now += wait
        limits.report(entry, {"tokens": TOKENS})
        limits.leave(entry, None)

    for _ in range(rate.count // TOKENS):  # until the window is full
        call()
    return microseconds(call, count)


def main() -> None:
    base = microseconds(lambda: json.dumps(ITEM), 20_000)
    print(f"JSON of 2 kB: {base:.1f} µs of the processor = 1")
    for text in ("200k tokens/minute", "2M tokens/minute", "30M tokens/minute"):
        found = calls_through(parse_rate(text), 5_000)
        print(f"{text}: {found:.1f} µs a call = {found / base:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        found = calls_through(parse_rate("200k tokens/minute"), 500, str(Path(folder) / "quota"))
    print(f"200k tokens/minute, share=: {found:.1f} µs a call = {found / base:.1f}")


if __name__ == "__main__":
    main()
