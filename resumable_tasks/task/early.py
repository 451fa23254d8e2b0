"""The exception of a run that ended before all items were handled."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

from resumable_tasks.engine.engine import Ending
from resumable_tasks.errors import BudgetUsedUp, Interrupted, Waiting
from resumable_tasks.items import keys
from resumable_tasks.items.submission import Out
from resumable_tasks.results.result import RunResult

_MOST_NAMED = 10


def _utc(seconds: float) -> datetime:
    # Rounded up, so that it is not before the intended time.
    return datetime.fromtimestamp(math.ceil(seconds), UTC)


def stopped(how: str, result: RunResult, ending: Ending) -> Interrupted:
    """The exception that says why the run ended before all items were handled."""
    waits = how == "interrupted" and not ending.asked
    again_at = _utc(ending.again_at) if waits and ending.again_at is not None else None
    again = "Raise the budget, or run" if ending.by_budget else "Run"
    parts: dict[str, Any] = {
        "what": (
            _why(ending)
            if again_at is None
            else f"a service has the remaining work ({ending.stopped}); look again at "
            f"{again_at:%Y-%m-%d %H:%M:%S} UTC"
        )
        + f": {result.completed:,} items were completed in this run, {result.skipped:,} before"
        + _describe_unfinished(ending)
        + (f", at a cost of {result.cost:.4g}" if result.cost else "")
        + (f"; {Out(result.out, result.submissions)}" if result.submissions else "")
        + (f"; remaining: {result.remaining}" if result.remaining else ""),
        "safe": f"All results are safe in {result.checkpoint}",
        "remedy": f"{again} the same command again to resume",
        "result": result,
        "by_itself": not ending.asked,
    }
    if again_at is not None:
        return Waiting(**parts, look_again_at=again_at)
    if how == "spent":
        return BudgetUsedUp(**{**parts, "by_itself": True})
    return Interrupted(**parts)


def _why(ending: Ending) -> str:
    by_a_person = ending.asked and not ending.by_budget
    return f"interrupted by {ending.stopped}" if by_a_person else f"ended early: {ending.stopped}"


def _describe_unfinished(ending: Ending) -> str:
    """Describe the batches that did not end in time, by the keys of their items."""
    if not ending.abandoned:
        return ""
    found = [key for batch in ending.abandoned for key in batch.keys]
    named = ", ".join(keys.shown(key) for key in found[:_MOST_NAMED])
    more = f" and {len(found) - _MOST_NAMED:,} more" if len(found) > _MOST_NAMED else ""
    batches = "1 batch" if len(ending.abandoned) == 1 else f"{len(ending.abandoned):,} batches"
    return f"; {batches} did not end in time, with the keys {named}{more}"
