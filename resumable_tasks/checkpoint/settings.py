"""Settings of a job for items that fail and for a version that has changed."""

from __future__ import annotations

from typing import Literal

from resumable_tasks.base import checks
from resumable_tasks.base.frozen import locked

OnVersionChange = Literal["error", "reuse", "restart"]


@locked
class Failing:
    """A run's response to items that fail. Raises `UsageError` for an invalid value.

    Args:
        isolate: halve a batch that still fails after its retries, repeatedly, until the bad items
            are alone and the others are done: about 2 log2(batch_size) calls per bad item. False,
            for a handler whose calls are expensive, fails all items of the batch; this is the
            default for work submitted to a service.
        pause_after: after this many batches in a row failed with the same class of error, the run
            pauses and tries single items until one succeeds; no attempts are counted meanwhile.
            None: never.
        give_up_after: seconds of such a pause, or of waiting as told by the service, after which
            the run ends as interrupted. The next run resumes.
        max_attempts: after this many attempts over all runs an item is quarantined: runs count and
            list it but do not try it, until ``resumable retry`` releases it. A batch's calls count
            for each of its items; calls that isolate a bad item do not count. None: never.
        retry_failed: whether to try items again that failed in earlier runs.
        keep_items: store failed items in the checkpoint, as JSON, with the failure.
    """

    isolate: bool | None = None
    pause_after: int | None = 5
    give_up_after: float = 600.0
    max_attempts: int | None = None
    retry_failed: bool = True
    keep_items: bool = False

    def __post_init__(self) -> None:
        for name in ("retry_failed", "keep_items"):
            checks.flag(f"Failing: {name}", getattr(self, name))
        if self.isolate is not None:
            checks.flag("Failing: isolate", self.isolate)
        checks.whole_number("Failing: pause_after", self.pause_after, 1, or_none=True)
        checks.whole_number("Failing: max_attempts", self.max_attempts, 1, or_none=True)
        checks.seconds("Failing: give_up_after", self.give_up_after)
