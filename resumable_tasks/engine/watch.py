"""Warnings during a run: batches that take too long, and reruns that recognise no key."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from resumable_tasks.base import log
from resumable_tasks.base.text import duration
from resumable_tasks.engine.events import Committed, Event, RunFinished
from resumable_tasks.items.plan import Planner
from resumable_tasks.runners.outcome import Done

# A batch of several items that takes longer than this is warned of; the good duration is proposed.
LONG_BATCH_SECONDS, GOOD_BATCH_SECONDS = 1_800.0, 300.0
# If none of this many items is among this many completed keys, it is not by chance.
MANY_KEYS = 50


class LongBatches:
    """Warns once while no batch finishes, and once, with a better size, after a long batch."""

    def __init__(self) -> None:
        self._said = self._said_so_far = False
        self._since = time.monotonic()

    def reset(self) -> None:
        """Start the waiting time anew: a batch has ended, or the first one has begun."""
        self._since = time.monotonic()

    def quiet_left(self, out: int) -> float:
        """Warn if no batch has ended for too long; return the seconds until the next check.

        ``out``: the number of batches being handled.
        """
        if not out:
            self.reset()
        left = self._since + LONG_BATCH_SECONDS - time.monotonic()
        if left > 0:
            return left
        self.reset()
        if not self._said_so_far:
            self._said_so_far = True
            log.warning(
                "no batch has finished for %s; a crash would repeat all %d running batches. A "
                "smaller batch_size commits more often",
                duration(LONG_BATCH_SECONDS),
                out,
            )
        return LONG_BATCH_SECONDS

    def look(self, outcomes: Sequence[Done]) -> None:
        """Look at committed batches; warn about the first that took too long."""
        for outcome in outcomes:
            seconds = outcome.times.ended - outcome.times.began
            items = len(outcome.batch)
            if not self._said and items > 1 and seconds > LONG_BATCH_SECONDS:
                self._said = True
                log.warning(
                    "batch %d took %s for %d items, and a crash repeats such a batch from its "
                    "start: batch_size=%d would commit about every %d minutes",
                    outcome.batch.number,
                    duration(seconds),
                    items,
                    max(1, int(items * GOOD_BATCH_SECONDS / seconds)),
                    GOOD_BATCH_SECONDS // 60,
                )


def key_watch(planner: Planner, found: int) -> Callable[[Event], None]:
    """Return a listener that warns once if no item of a rerun is among ``found`` completed ones."""
    said = False

    def listen(event: Event) -> None:
        nonlocal said
        if said or not isinstance(event, (Committed, RunFinished)):
            return
        known = planner.skipped + planner.changed
        if found >= MANY_KEYS and planner.total >= MANY_KEYS and not known:
            said = True
            log.warning(
                "%s items are completed in %s, but none of the %s items read so far is among them. "
                "If these are the same items, their keys change between runs and everything is "
                "done again: key= must name something stable, not a position or a random id",
                f"{found:,}",
                event.checkpoint,
                f"{planner.total:,}",
            )

    return listen
