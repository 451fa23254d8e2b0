"""The window: how many batches may be in flight (submitted and not yet committed)."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from resumable_tasks.engine.watch import LongBatches
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.outcome import Done, Outcome

# The window holds as many batches as are handled during two commits, so that handlers never wait
# for a commit: a batch that finishes just after a commit began waits for that one and for its own.
# On a disk two commits take about this long; a busy disk does not widen the window, because a
# crash would then repeat more. For a remote checkpoint the time is measured. The window is also
# limited by the number of batches and by the bytes of rows in memory.
OUT_SECONDS = 0.008
_MEASURED = 5
_FIRST_FAR_AWAY = 4
MOST_BATCHES_OUT = 1_024
_MOST_BYTES = 16_000_000
# One commit takes as long as many cheap calls, so their outcomes are gathered: the queue is checked
# again after each step, for at most the total time.
_STEP_SECONDS, _GATHER_SECONDS = 0.002, 0.02


class Window:
    """The size of the window: the runner's own, and wider while calls are very short."""

    def __init__(self, runner: Runner, write_seconds: float | None = None) -> None:
        """``write_seconds``: the duration of a write before the first commit; None on a disk."""
        self._runner = runner
        # Average seconds and bytes per call, one value for each of the last commits.
        self._calls: deque[float] = deque(maxlen=_MEASURED)
        self._sizes: deque[float] = deque(maxlen=_MEASURED)
        self._commits: deque[float] = deque(maxlen=_MEASURED)
        self.long_batches = LongBatches()
        self.batches = runner.window
        self.submits = runner.submits
        if write_seconds is not None:
            self._commits.append(2 * write_seconds)
            if write_seconds > OUT_SECONDS and not self.submits:
                # The first commit takes longer, because it imports Arrow.
                self.batches *= _FIRST_FAR_AWAY

    def widen(self, outcomes: Sequence[Done], size: int, commit_seconds: float) -> None:
        """Adapt the window to a commit: its outcomes, its size in bytes and its duration."""
        if self.submits:
            return
        self.long_batches.look(outcomes)
        # A call that failed immediately does not show how long other calls take.
        worked = [outcome for outcome in outcomes if outcome.completed]
        if worked:
            self._calls.append(sum(outcome.times.seconds for outcome in worked) / len(worked))
            self._sizes.append(size / len(worked))
        out_seconds = OUT_SECONDS
        if self._commits:
            # Use the shortest: the first commit imports modules, and others meet a busy store.
            self._commits.append(commit_seconds)
            out_seconds = max(OUT_SECONDS, 2 * min(self._commits))
        if not self._calls:
            return
        # Use the median: the first calls import modules, and the machine or the network may delay
        # a few. Larger rows, however, count at once.
        cheap = min(
            MOST_BATCHES_OUT,
            self._runner.concurrency * out_seconds / max(_usual(self._calls), 1e-9),
            _MOST_BYTES / max(_usual(self._sizes), self._sizes[-1], 1),
        )
        self.batches = max(self._runner.window, int(cheap))


def _usual(values: Iterable[float]) -> float:
    """Return the median (of two in the middle, the smaller)."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


class Gathering:
    """Decides how long one commit waits for more outcomes.

    The commit waits briefly, as long as outcomes keep arriving and all of them are cheap. The
    outcome of a call of `OUT_SECONDS` or more is committed at once, and so is a single outcome.
    """

    def __init__(self, most: int) -> None:
        """``most``: commit at this many outcomes, because workers would soon be idle."""
        self._most = most
        self._cheap = True
        self._began = 0.0
        self._before = 1
        self.count = 0

    def add(self, outcome: Outcome) -> None:
        """Count an outcome of the commit."""
        self._began = self._began or time.monotonic()
        self._cheap &= isinstance(outcome, Done) and outcome.times.seconds < OUT_SECONDS
        self.count += 1

    def goes_on(self) -> bool:
        """Wait a moment and return True, or return False at once if it is time to commit."""
        others, self._before = self.count > self._before, self.count
        if not (others and self._cheap and self.count < self._most):
            return False
        if time.monotonic() - self._began > _GATHER_SECONDS:
            return False
        time.sleep(_STEP_SECONDS)
        return True
