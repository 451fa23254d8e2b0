"""Settings of a job for items that fail and for a version that has changed."""

from __future__ import annotations

from typing import Literal

from resumable_tasks.base import checks
from resumable_tasks.base.frozen import locked

OnVersionChange = Literal["error", "reuse", "restart"]


@locked
class Failing:
    """A run's response to items that fail. Raises `UsageError` for a value that does not fit.

    Args:
        isolate: a batch that still fails after its retries is halved, and so on, until the bad
            items stand alone and the others are done: some 2 log2(batch_size) calls for each bad
            item. False, for a handler whose calls are expensive, fails all items of the batch; so
            it is by default for work that is submitted to a service.
        pause_after: after so many batches in a row that failed with the same class of error, the
            run pauses, and tries single items until one succeeds; no item's attempts are used up
            meanwhile. None: never.
        give_up_after: seconds of such a pause, or of waiting as told, after which the run ends as
            interrupted. The next run resumes.
        max_attempts: after so many attempts over all runs an item is quarantined: no run tries it,
            but each counts and lists it, until ``resumable retry`` releases it. A batch's calls
            count for each of its items, calls that isolate a bad item do not. None: never.
        retry_failed: whether items that failed in earlier runs are tried again.
        keep_items: keep the items that failed in the checkpoint, as JSON, beside the failure.
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
