"""The window: how many batches may be in flight, submitted and not yet committed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence

from resumable_tasks.engine.watch import LongBatches
from resumable_tasks.runners.base import Runner
from resumable_tasks.runners.outcome import Done, Outcome

# As many batches as are handled in the time of two commits, so that handlers need not wait for
# them: a batch that ends just after one has begun waits for that one and its own. On a disk that is
# about this time, and a busy disk is no reason to have more redone after a crash. Far away it is
# measured. And no more than these many, or this many bytes of rows in memory.
OUT_SECONDS = 0.008
_MEASURED = 5
_FIRST_FAR_AWAY = 4
MOST_BATCHES_OUT = 1_024
_MOST_BYTES = 16_000_000
# A commit takes as long as many cheap calls: their outcomes are gathered, looked for this often,
# and no longer than that.
_STEP_SECONDS, _GATHER_SECONDS = 0.002, 0.02


class Window:
    """The runner's own window, and more batches while they cost next to nothing."""

    def __init__(self, runner: Runner, write_seconds: float | None = None) -> None:
        """``write_seconds``: of a write that was before the first commit; None on a disk."""
        self._runner = runner
        # Seconds and bytes of a call, on average over each of the last commits.
        self._calls: deque[float] = deque(maxlen=_MEASURED)
        self._sizes: deque[float] = deque(maxlen=_MEASURED)
        self._commits: deque[float] = deque(maxlen=_MEASURED)
        self.long_batches = LongBatches()
        self.batches = runner.window
        self.submits = runner.submits
        if write_seconds is not None:
            self._commits.append(2 * write_seconds)
            if write_seconds > OUT_SECONDS and not self.submits:
                # The first commit takes longer, since it loads Arrow.
                self.batches *= _FIRST_FAR_AWAY

    def widen(self, outcomes: Sequence[Done], size: int, commit_seconds: float) -> None:
        """Take in what was committed, and how long that took: handlers need not wait for it."""
        if self.submits:
            return
        self.long_batches.look(outcomes)
        # A call that failed at once says nothing of how long others take.
        worked = [outcome for outcome in outcomes if outcome.completed]
        if worked:
            self._calls.append(sum(outcome.times.seconds for outcome in worked) / len(worked))
            self._sizes.append(size / len(worked))
        out_seconds = OUT_SECONDS
        if self._commits:
            # The shortest of some: the first loads what it needs, and others wait for what is busy.
            self._commits.append(commit_seconds)
            out_seconds = max(OUT_SECONDS, 2 * min(self._commits))
        if not self._calls:
            return
        # Neither the first calls, which load what they need, nor some that the machine or the
        # network held up are a measure of the others. Rows that become larger count at once.
        cheap = min(
            MOST_BATCHES_OUT,
            self._runner.concurrency * out_seconds / max(_usual(self._calls), 1e-9),
            _MOST_BYTES / max(_usual(self._sizes), self._sizes[-1], 1),
        )
        self.batches = max(self._runner.window, int(cheap))


def _usual(values: Iterable[float]) -> float:
    """The median; of two in the middle, the smaller."""
    ordered = sorted(values)
    return ordered[(len(ordered) - 1) // 2]


class Gathering:
    """The outcomes of one commit, of which more are on their way.

    They wait for others for a moment, as long as others come, and only cheap ones: what a call of
    `OUT_SECONDS` or more has made is committed at once, and so is what comes alone.
    """

    def __init__(self, most: int) -> None:
        """``most``: with so many outcomes, those that handle batches would wait for the commit."""
        self._most = most
        self._cheap = True
        self._began = 0.0
        self._before = 1
        self.count = 0

    def add(self, outcome: Outcome) -> None:
        """Take in an outcome of the commit."""
        self._began = self._began or time.monotonic()
        self._cheap &= isinstance(outcome, Done) and outcome.times.seconds < OUT_SECONDS
        self.count += 1

    def goes_on(self) -> bool:
        """Wait for more outcomes, for a moment; False, at once, if these are to be committed."""
        others, self._before = self.count > self._before, self.count
        if not (others and self._cheap and self.count < self._most):
            return False
        if time.monotonic() - self._began > _GATHER_SECONDS:
            return False
        time.sleep(_STEP_SECONDS)
        return True
