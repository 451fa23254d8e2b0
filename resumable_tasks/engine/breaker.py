"""Is the service down? States, and one step from state to state.

::

    Closed ──enough failures in a row, or the last batches fail──▶ Paused
    Paused ──its time has come: one call is tried──▶ Trying
    Trying ──it fails──▶ Paused, for longer
    Paused, Trying ──a call has succeeded──▶ Closed
    Trying ──it fails after `patience` seconds──▶ Open: the run ends

The idea is that of Nygard's circuit breaker (*Release It!*, 2007). Nothing here looks at a clock
or waits: whoever steps says what time it is, so that a test needs no second of sleep.
"""

from __future__ import annotations

from enum import Enum, auto

from resumable_tasks.base.frozen import frozen

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 15.0
# What looks like an outage among the last batches, which are too few to count, may as well be one
# item's own fault (a dead host): it is waited for, but not for long, and once in a run.
TAIL_SECONDS = 30.0


class Tail(Enum):
    """The state of the wait for a run's last batches."""

    AHEAD = auto()
    NOW = auto()
    OVER = auto()


@frozen
class Closed:
    """Calls go out as usual. ``patience``: seconds without a success after which a run ends."""

    patience: float
    tail: Tail = Tail.AHEAD


@frozen
class Paused:
    """Nothing begins before ``until``. ``pause`` is 0 before the first call was tried."""

    patience: float
    tail: Tail
    since: float
    until: float
    pause: float = 0.0


@frozen
class Trying:
    """A call is out that tells whether the service is back."""

    patience: float
    tail: Tail
    since: float
    pause: float


@frozen
class Open:
    """The service has been down for ``seconds``: the run ends."""

    seconds: float


State = Closed | Paused | Trying | Open


class Evidence(Enum):
    """Evidence about the service since the last step."""

    MANY_FAILED = auto()
    """So many batches in a row have failed that the service may be down."""
    LAST_FAILED = auto()
    """Only batches that failed are left, and some failed as if the service were down."""
    SUCCESS = auto()
    """A call has succeeded that began after others had failed."""
    FAILURE = auto()
    """The call that was tried has failed."""
    NO_SIGN = auto()
    """Nothing that failed looks like an outage, or nothing is left that failed."""
    NOTHING = auto()
    """Time goes by."""


class Order(Enum):
    """The order that follows from a step."""

    NOTHING = auto()
    TRY = auto()
    """Make one call."""
    HALVE = auto()
    """The service works: what has failed has a bad item in it."""
    AGAIN = auto()
    """The service was down: what has failed meanwhile is handled again as it was."""


def step(state: State, evidence: Evidence, now: float) -> tuple[State, Order]:
    """The next state, and the order that goes with it. ``now``: seconds of a monotonic clock."""
    match state, evidence:
        case Closed(), Evidence.MANY_FAILED:
            return Paused(state.patience, state.tail, now, until=now), Order.NOTHING
        case Closed(tail=Tail.AHEAD), Evidence.LAST_FAILED:
            return Paused(state.patience, Tail.NOW, now, until=now), Order.NOTHING
        case Paused() | Trying(), Evidence.SUCCESS:
            return _closed(state), Order.AGAIN if state.pause else Order.HALVE
        case Paused() | Trying(), Evidence.NO_SIGN:
            return _closed(state), Order.HALVE
        case Trying(), Evidence.FAILURE if now - state.since >= state.patience:
            return Open(now - state.since), Order.NOTHING
        case Trying(tail=Tail.NOW), Evidence.FAILURE if now - state.since >= TAIL_SECONDS:
            return _closed(state), Order.HALVE
        case Trying(), Evidence.FAILURE:
            return _paused_longer(state, now), Order.NOTHING
        case Paused(), Evidence.NOTHING if now >= state.until:
            return Trying(state.patience, state.tail, state.since, state.pause), Order.TRY
    return state, Order.NOTHING


def _closed(state: Paused | Trying) -> Closed:
    return Closed(state.patience, Tail.OVER if state.tail is Tail.NOW else state.tail)


def _paused_longer(state: Trying, now: float) -> Paused:
    pause = min(2 * state.pause or FIRST_PAUSE, LONGEST_PAUSE)
    # The last call is made when the time is over, and not some seconds before or after.
    patience = min(state.patience, TAIL_SECONDS) if state.tail is Tail.NOW else state.patience
    until = max(now, min(now + pause, state.since + patience))
    return Paused(state.patience, state.tail, state.since, until, pause)
