"""The rules of a run."""

from __future__ import annotations

from resumable_tasks.base.frozen import frozen


@frozen
class Rules:
    """The rules of a run for failures, and how long a stop waits for running batches."""

    isolate: bool = True
    pause_after: int | None = 5
    give_up_after: float = 600.0
    keep_items: bool = False
    fail_fast: bool = False
    grace_seconds: float = 25.0
