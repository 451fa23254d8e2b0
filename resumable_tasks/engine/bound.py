"""The meter of a run: where its time goes, over the whole run and over the last minute."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from resumable_tasks.base.clock import SYSTEM, Clock
from resumable_tasks.items.batch import Batch
from resumable_tasks.runners.bound import (
    COMMIT,
    DOWN,
    HANDLER,
    IDLE,
    LANES,
    SOURCE,
    SPARE,
    WHOLE,
    BoundBy,
    Trail,
    judge,
)
from resumable_tasks.runners.outcome import START, Done, Failed, Outcome, Times

T = TypeVar("T")

LATELY_SECONDS = 60.0
# The figures of the last minute are computed at most this often.
_EVERY_SECONDS = 1.0
# The key, among the seconds by place, of the whole time without the start of the lanes.
_TIME = "time"
_TELLING = (*LANES, *WHOLE)


class Spare:
    """Counts the time of lanes that have no batch because no item is left.

    Such lanes wait for nothing. ``out``: the batches that the lanes have.
    """

    def __init__(self, lanes: int, clock: Clock) -> None:
        self.out: dict[int, Batch] = {}
        self._lanes = lanes
        self._clock = clock
        self._all_read = False
        # The seconds of spare lanes, the time up to which they are counted, the spare lanes since.
        self._known = 0.0, 0.0, 0
        self._lock = threading.Lock()

    def all_read(self) -> None:
        """Start counting: all items were read, so no new batch comes."""
        self._all_read = True
        self.look()

    def look(self) -> None:
        """Update the number of lanes that have no batch."""
        if not self._all_read:
            return
        with self._lock:
            now = self._clock.monotonic()
            self._known = self.seconds(now), now, max(0, self._lanes - len(self.out))

    def seconds(self, now: float) -> float:
        """Return the seconds of all spare lanes together."""
        known, at, lanes = self._known
        return known + lanes * max(0.0, now - at)


class Meter:
    """Adds up where a run's time goes, over the ``lanes`` that handle batches.

    Each outcome carries the waits of its batch, wherever it was handled. ``trails``: the trails of
    the batches that this process is handling. ``at_once`` describes what limits the number of
    concurrent calls. The time to start the lanes (processes, for example) is left out, because it
    does not grow with the run. The caller's thread reports the source, the committer's thread
    everything else; any thread may read.
    """

    def __init__(self, lanes: int, at_once: Callable[[], str], clock: Clock = SYSTEM) -> None:
        self.trails: dict[int, Trail] = {}
        self._lanes = lanes
        self._at_once = at_once
        self._clock = clock
        self._began = clock.monotonic()
        self._seconds = dict.fromkeys((*LANES, *WHOLE, START), 0.0)
        # The activities that go on now, and since when.
        self._since: dict[str, float] = {}
        self.spare = Spare(lanes, clock)
        # The seconds until the lanes were ready; None until the first outcome shows it.
        self._submitted = self._began
        self._start_up: float | None = None
        self._ended: float | None = None
        self._lock = threading.Lock()
        self._past: deque[tuple[float, Mapping[str, float]]] = deque([(self._began, {})])
        self._lately: BoundBy | None = None

    def begin(self) -> None:
        """Note that the first batch is submitted while the lanes start."""
        self._submitted = self._clock.monotonic()

    def end(self) -> None:
        """Stop the clock: all batches are handled, and closing the lanes does not count."""
        self._ended = self._clock.monotonic()

    def reading(self, batches: Iterable[T]) -> Iterator[T]:
        """Yield the same batches; count the time until each one comes as waiting for the source."""
        found = iter(batches)
        while True:
            self._enter(SOURCE)
            try:
                batch = next(found)
            except StopIteration:
                self.spare.all_read()
                return
            finally:
                self._leave(SOURCE)
            yield batch

    @contextmanager
    def committing(self) -> Iterator[None]:
        """Count the time inside the context as committing."""
        self._enter(COMMIT)
        try:
            yield
        finally:
            self._leave(COMMIT)
            self.spare.look()

    def down(self, is_down: bool) -> None:
        """Note whether the run pauses because the service is down."""
        if is_down and DOWN not in self._since:
            self._enter(DOWN)
        elif not is_down and DOWN in self._since:
            self._leave(DOWN)

    def took(self, outcome: Outcome) -> None:
        """Add the times of a batch that has come back."""
        trail = self.trails.pop(outcome.batch.number, None)
        if isinstance(outcome, (Done, Failed)):
            self._seconds[HANDLER] += outcome.times.seconds
            found = outcome.times.waits
            if self._start_up is None:
                self._start_up = self._overhead(outcome.times)
        elif trail is not None:
            found = trail.so_far(self._clock.monotonic())
            self._start_up = self._start_up or 0.0
        else:
            found = None
        for place, seconds in (found or {}).items():
            self._seconds[place] += seconds

    def _overhead(self, times: Times) -> float:
        """Return the seconds from the first submission to a batch's end that are not explained.

        These are the seconds in which the batch was neither handled nor waiting.
        """
        spent = times.seconds + sum((times.waits or {}).values())
        return max(0.0, times.ended - self._submitted - spent)

    def over_the_run(self) -> BoundBy | None:
        """Return what has limited the run so far; None if it has not handled anything."""
        if self._start_up is None and not self.trails:
            return None
        now = self._clock.monotonic() if self._ended is None else self._ended
        return self._judged(self._totals(now), {})

    def lately(self) -> BoundBy | None:
        """Return what has limited the run in the last minute; at most a second old.

        None while nothing is known of that minute: batches on other machines are only known by
        their outcomes.
        """
        now = self._clock.monotonic()
        with self._lock:
            if now - self._past[-1][0] >= _EVERY_SECONDS:
                totals = self._totals(now)
                while len(self._past) > 1 and now - self._past[1][0] >= LATELY_SECONDS:
                    self._past.popleft()
                before = self._past[0][1]
                self._past.append((now, totals))
                found = self._judged(totals, before)
                known = found is not None and max(map(found.shares.__getitem__, _TELLING)) >= 0.05
                self._lately = found if known else None
            return self._lately

    def _enter(self, place: str) -> None:
        self._since[place] = self._clock.monotonic()

    def _leave(self, place: str) -> None:
        self._seconds[place] += self._clock.monotonic() - self._since.pop(place)

    def _totals(self, now: float) -> dict[str, float]:
        start = (self._start_up or 0.0) + self._seconds[START] / self._lanes
        totals = {**self._seconds, _TIME: now - self._began - start}
        totals[SPARE] = self.spare.seconds(now)
        for place, since in dict(self._since).items():
            totals[place] += max(0.0, now - since)
        for trail in list(self.trails.values()):
            for place, seconds in trail.so_far(now).items():
                totals[place] += seconds
        return totals

    def _judged(self, totals: Mapping[str, float], before: Mapping[str, float]) -> BoundBy | None:
        seconds = totals[_TIME] - before.get(_TIME, 0.0)
        if seconds <= 0:
            return None
        spent = {place: max(0.0, totals[place] - before.get(place, 0.0)) for place in totals}
        shares = {place: min(1.0, spent[place] / seconds) for place in WHOLE}
        shares[SPARE] = min(1.0, spent[SPARE] / (seconds * self._lanes))
        busy = max(seconds * self._lanes - spent[SPARE], 1e-9)
        shares |= {place: min(1.0, spent[place] / busy) for place in LANES}
        shares[IDLE] = max(0.0, 1.0 - sum(shares[place] for place in LANES))
        return judge(shares, self._at_once())
