"""Warnings while a run goes on: batches that take long, keys that nobody knows."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from resumable_tasks.base import log
from resumable_tasks.base.text import duration
from resumable_tasks.engine.events import Committed, Event, RunFinished
from resumable_tasks.items.plan import Planner
from resumable_tasks.runners.outcome import Done

# How long a batch of more than one item may take before the run says so, and what it proposes.
LONG_BATCH_SECONDS, GOOD_BATCH_SECONDS = 1_800.0, 300.0
# So many completed keys, and so many items of which none is among them, are no accident.
MANY_KEYS = 50


class LongBatches:
    """Says, each once, that batches take too long: while they do, and then which size would fit."""

    def __init__(self) -> None:
        self._said = self._said_so_far = False
        self._since = time.monotonic()

    def reset(self) -> None:
        """A batch has ended, or the first one has begun."""
        self._since = time.monotonic()

    def quiet_left(self, out: int) -> float:
        """For how long no batch may end yet, where ``out`` are being handled, without a word."""
        if not out:
            self.reset()
        left = self._since + LONG_BATCH_SECONDS - time.monotonic()
        if left > 0:
            return left
        self.reset()
        if not self._said_so_far:
            self._said_so_far = True
            log.warning(
                "no batch has finished for %s; %d are running, and a crash would repeat all of "
                "them. A smaller batch_size commits more often",
                duration(LONG_BATCH_SECONDS),
                out,
            )
        return LONG_BATCH_SECONDS

    def look(self, outcomes: Sequence[Done]) -> None:
        """Take in the batches that were committed."""
        for outcome in outcomes:
            seconds = outcome.times.ended - outcome.times.began
            items = len(outcome.batch)
            if not self._said and items > 1 and seconds > LONG_BATCH_SECONDS:
                self._said = True
                log.warning(
                    "batch %d took %s for %d items, and a crash repeats it from its start: "
                    "batch_size=%d would commit about every %d minutes",
                    outcome.batch.number,
                    duration(seconds),
                    items,
                    max(1, int(items * GOOD_BATCH_SECONDS / seconds)),
                    GOOD_BATCH_SECONDS // 60,
                )


def key_watch(planner: Planner, found: int) -> Callable[[Event], None]:
    """A listener that says once if no item of a rerun is among the ``found`` completed ones."""
    said = False

    def listen(event: Event) -> None:
        nonlocal said
        if said or not isinstance(event, (Committed, RunFinished)):
            return
        known = planner.skipped + planner.changed
        if found >= MANY_KEYS and planner.total >= MANY_KEYS and not known:
            said = True
            log.warning(
                "%s items are completed in %s, and none of the %s items so far is among them. "
                "If they are the same items, their keys change between runs, and everything is "
                "done again: key= must name something stable, never a position or a random id",
                f"{found:,}",
                event.checkpoint,
                f"{planner.total:,}",
            )

    return listen
