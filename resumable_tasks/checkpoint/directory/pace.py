"""The pace of a checkpoint's runs, from the records: the time and cost of items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.frozen import changing
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.form import Used
from resumable_tasks.runners.outcome import Done

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.estimate import Estimate


@changing
class Pace:
    """The time and cost at which the runs of a checkpoint have completed items.

    ``cost`` is that of all runs. All tries of one flow run share a budget: `used` is the part that
    they have used, including their items that are with a service.
    """

    _began: str = ""
    _last: str = ""
    _seconds: float = 0.0
    _completed: int = 0
    cost: float = 0.0
    _costed: int = 0
    _imports: bool = False
    _flow_run: str = ""
    _used: dict[str, Used] = field(default_factory=dict)
    # The flow run and the number of items of each submission.
    _out: dict[str, tuple[str, int]] = field(default_factory=dict)

    def apply(self, commit: Commit) -> None:
        """Apply one more record. A run counts from its claim to its last commit."""
        if commit.kind == "claim":
            self._end_tenure()
            self._began = self._last = commit.time
            self._imports = "imported" in commit.info
            self._flow_run = commit.info.get("flow_run", "")
        elif commit.kind == "submitting" and self._flow_run:
            count = commit.out.count(b"\n") + 1
            self._out[commit.info["token"]] = self._flow_run, count
            self._use(Used(count))
        elif commit.kind == "withdrawn":
            self._no_longer_out(commit)
        elif commit.kind == "commit" and not self._imports:  # imports show no handler's pace
            # The claim may have been lost.
            self._began, self._last = self._began or commit.time, commit.time
            # Without keys that were only copied because others were done again.
            count = commit.key_count - commit.info.get("copied", 0)
            self._completed += count
            cost = commit.info.get("cost", 0.0)
            if cost:
                self.cost += cost
                self._costed += count + len(commit.failures)
            self._use(Used(count + len(commit.failures), 0.0, cost))
            self._no_longer_out(commit)

    @classmethod
    def of_told(cls, told: Mapping[str, Any]) -> Pace:
        """Restore from a snapshot's data."""
        used = {flow_run: Used(**each) for flow_run, each in told["_used"].items()}
        out = {
            token: (flow_run, count) for token, (flow_run, count) in told.get("_out", {}).items()
        }
        return cls(**{**told, "_used": used, "_out": out})

    @property
    def cost_each(self) -> float | None:
        """The average cost of an item; None if no cost is known."""
        return self.cost / self._costed if self._costed else None

    @property
    def used(self) -> Used:
        """The part of the budget that earlier tries of this flow run used; empty without one."""
        return self._used.get(self._flow_run, Used())

    def _no_longer_out(self, commit: Commit) -> None:
        for token in commit.info.get("settled", ()):
            flow_run, count = self._out.pop(token, ("", 0))
            if flow_run == self._flow_run:
                self._use(Used(-count))

    def _use(self, more: Used) -> None:
        if self._flow_run:
            used = self.used
            self._used[self._flow_run] = Used(
                used.items + more.items, used.seconds + more.seconds, used.cost + more.cost
            )

    def estimate(self, items: int) -> Estimate:
        """Estimate the effort for ``items`` more items, at the pace of the runs so far."""
        from resumable_tasks.checkpoint.estimate import Estimate

        self._end_tenure()
        seconds = self._seconds / self._completed * items if self._completed else None
        cost = self.cost_each * items if self.cost_each is not None else None
        return Estimate(items, seconds, cost)

    def _end_tenure(self) -> None:
        if self._last != self._began:
            seconds = _between(self._began, self._last)
            self._seconds += seconds
            self._use(Used(seconds=seconds))
            self._began = self._last


def _between(began: str, last: str) -> float:
    """Seconds between two records' times; 0 if one is malformed, since times decide nothing."""
    try:
        passed = datetime.fromisoformat(last) - datetime.fromisoformat(began)
    except (ValueError, TypeError):
        return 0.0
    return max(0.0, passed.total_seconds())


def spent(outcomes: Sequence[Done]) -> dict[str, float]:
    """The sums over these outcomes: batches, seconds in the handler, and the cost if known.

    ``longest`` is the seconds of the longest batch, if there are several.
    """
    each = [outcome.times.seconds for outcome in outcomes]
    found = {"seconds": round(sum(each), 6), "batches": len(each)}
    if len(each) > 1:
        found["longest"] = round(max(each), 6)
    cost = sum(outcome.cost for outcome in outcomes if outcome.cost == outcome.cost)  # no NaN
    return {**found, "cost": cost} if cost else found
