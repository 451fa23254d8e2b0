"""Answers "what does this run wait for?", from shares of its time.

A run has ``concurrency`` lanes, which handle batches. A lane is in the handler, waits for a limit,
pauses before a retry, writes rows (if workers do that), or is idle. Reading the items, committing,
and a service that is down concern the run as a whole.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import field, replace
from typing import Literal

from resumable_tasks.base.frozen import locked
from resumable_tasks.runners.outcome import (
    ADAPTIVE,
    RATE,
    RETRIES,
    SERVICE,
    START,
    TOLD,
    WRITE,
    Done,
    Failed,
    Outcome,
    Times,
)

# Shares of the lanes' time; the rest is idle.
HANDLER, IDLE = "handler", "idle"
# The share of all the lanes' time without a batch because no item is left. The other shares of
# lanes leave this time out.
SPARE = "spare"
LANES = (HANDLER, TOLD, RATE, ADAPTIVE, RETRIES, WRITE, SERVICE)
# Shares of the run's time.
SOURCE, COMMIT, DOWN = "source", "commit", "down"
WHOLE = (SOURCE, COMMIT, DOWN)

What = Literal[
    "quota", "rate", "latency", "source", "commits", "outage", "retries", "service", "nothing"
]
_NAMED = 3
_IN_WORDS = {
    HANDLER: "calls took",
    TOLD: "waits that calls were told",
    RATE: "waits for rate_limit=",
    ADAPTIVE: "waits for fewer calls at once",
    RETRIES: "pauses before retries",
    WRITE: "writing",
    SERVICE: "the service was at work",
    SOURCE: "reading items",
    COMMIT: "commits",
}


@locked
class BoundBy:
    """What a run waits for most of the time.

    ``what`` is ``quota`` (calls were told to wait, as by HTTP 429), ``rate`` (the job's own
    ``rate_limit``), ``latency`` (of the calls), ``source`` (of the items), ``commits``, ``outage``
    (the service was down), ``retries`` (pauses after failed calls), ``service`` (work submitted to
    it) or ``nothing`` in particular. ``sentence`` says it in words. ``shares`` are from 0 to 1.
    ``handler``, ``told``, ``rate``, ``adaptive``, ``retries``, ``write``, ``service`` and ``idle``
    are shares of the lanes' time (one lane per simultaneous call), not counting the time in which
    no item was left for a lane; ``spare`` is that time's share of the whole. ``source``, ``commit``
    and ``down`` are shares of the run's time.
    """

    what: What
    sentence: str
    shares: Mapping[str, float] = field(hash=False)

    @property
    def brief(self) -> str:
        """The sentence without its numbers: ``latency (concurrency=4)``."""
        return self.sentence.partition(":")[0]


def judge(shares: Mapping[str, float], at_once: str = "") -> BoundBy:
    """Return what limits a run with these shares. ``at_once``: what limits concurrent calls."""
    share = {place: shares.get(place, 0.0) for place in (*LANES, *WHOLE, IDLE, SPARE)}
    what, sentence = _verdict(share, at_once)
    return BoundBy(what, sentence, {place: round(share[place], 3) for place in share})


def _verdict(share: Mapping[str, float], at_once: str) -> tuple[What, str]:
    handler, told, rate = share[HANDLER], share[TOLD], share[RATE]
    starved = 1.0 - (1.0 - share[IDLE]) * (1.0 - share[SPARE]) > 0.3
    calls = handler + share[ADAPTIVE]
    in_calls = calls * (1.0 - share[SPARE])  # of all lanes
    if share[DOWN] > 0.25:
        return "outage", f"outage: the service was down, {_of_the_time(share[DOWN])}"
    if told + rate > 0.25 and told + rate > handler:
        if told >= rate:
            return "quota", f"API quota (429): calls were told to wait, {_of_the_time(told)}"
        return "rate", f"API quota (own rate): rate_limit= held calls back, {_of_the_time(rate)}"
    if share[SERVICE] > max(0.5, in_calls):
        took = f"was at work {_of_the_time(share[SERVICE])}"
        return "service", f"the service{at_once and f' ({at_once})'}: it {took}"
    if share[RETRIES] > 0.25 and share[RETRIES] > handler:
        pauses = _of_the_time(share[RETRIES])
        return "retries", f"retries: calls failed, and pauses before retries took {pauses}"
    if share[SOURCE] > max(0.5, in_calls) and starved:
        return "source", f"source: reading the items took {_of_the_time(share[SOURCE])}"
    writing = max(share[COMMIT] if starved else 0.0, share[WRITE])
    if writing > max(0.5, in_calls):
        return "commits", f"commits: writing results took {_of_the_time(writing)}"
    if calls > 0.5:
        took = "calls took" if share[ADAPTIVE] < 0.05 else "calls and waiting to make them took"
        return "latency", f"latency{at_once and f' ({at_once})'}: {took} {_of_the_time(calls)}"
    return "nothing", f"nothing in particular{_largest(share)}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _of_the_time(share: float) -> str:
    return f"{_percent(share)} of the time"


def _largest(share: Mapping[str, float]) -> str:
    """Describe the largest shares, if they are large enough to matter."""
    named = sorted(_IN_WORDS, key=lambda place: -share[place])[:_NAMED]
    words = [f"{_IN_WORDS[each]} {_percent(share[each])}" for each in named if share[each] >= 0.05]
    return f": {', '.join(words)}" if words else ""


def with_start(times: Times, seconds: float) -> Times:
    """Return the times of a lane's first batch, with the unexplained seconds as its start."""
    waits = dict(times.waits or {})
    waits[START] = max(0.0, seconds - times.seconds - sum(waits.values()))
    return replace(times, waits=waits)


class Trail:
    """Where the time of one batch goes, also while it is being handled.

    One thread writes to it; any thread may read.
    """

    __slots__ = ("_at", "_called", "waits")

    def __init__(self) -> None:
        # The seconds by place, except those in the handler.
        self.waits: dict[str, float] = {}
        self._called = 0.0
        self._at: tuple[str, float] | None = None

    def enter(self, place: str) -> None:
        """Note that the batch enters this place now."""
        self._at = place, time.monotonic()

    def leave(self) -> None:
        """Note that the batch leaves its present place."""
        assert self._at is not None
        place, since = self._at
        seconds = time.monotonic() - since
        self._at = None
        if place == HANDLER:
            self._called += seconds
        else:
            self.waits[place] = self.waits.get(place, 0.0) + seconds

    def told_in(self, outcome: Outcome) -> Outcome:
        """Return the outcome with the waits of its batch added."""
        if not self.waits or not isinstance(outcome, (Done, Failed)):
            return outcome
        waits = dict(self.waits)
        for place, seconds in (outcome.times.waits or {}).items():
            waits[place] = waits.get(place, 0.0) + seconds
        return replace(outcome, times=replace(outcome.times, waits=waits))

    def so_far(self, now: float) -> dict[str, float]:
        """Return the seconds so far, by place."""
        found = {**self.waits, HANDLER: self._called}
        if (at := self._at) is not None:
            found[at[0]] = found.get(at[0], 0.0) + max(0.0, now - at[1])
        return found
