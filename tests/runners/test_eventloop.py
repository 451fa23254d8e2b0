"""Coroutines on an event loop: which of them begin."""

from __future__ import annotations

import threading
from typing import Any

from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.eventloop import AsyncRunner, long_lived
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.outcome import Done, Dropped, Outcome
from resumable_tasks.runners.retries import Retry


def test_a_call_that_has_not_begun_when_the_run_stops_never_does() -> None:
    """Both batches are under way on the loop when the first one's handler sees the stop come."""
    stopping, gate, both = threading.Event(), threading.Event(), threading.Semaphore(0)
    called: list[Any] = []
    outcomes: list[Outcome] = []

    async def handler(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        called.append(items[0]["id"])
        stopping.set()
        return items

    def done(outcome: Outcome) -> None:
        outcomes.append(outcome)
        both.release()

    runner = AsyncRunner(2)
    runner.start(Work(handler, KeyScheme("id"), "one", Retry(0).policy(1.0)), done, stopping)
    long_lived().call_soon_threadsafe(gate.wait, 30)  # so that both begin in one turn of the loop
    for number in range(2):
        lines = keys.canonical(number)
        runner.submit(Batch(number, [number], lines, [{"id": number}]))
    gate.set()
    for _ in range(2):
        assert both.acquire(timeout=30)
    runner.close(abandon=False)
    assert called == [0]
    assert sorted(type(outcome).__name__ for outcome in outcomes) == [
        Done.__name__,
        Dropped.__name__,
    ]
