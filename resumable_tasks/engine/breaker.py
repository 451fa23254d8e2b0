"""Is the service down? A state machine.

::

    Closed ──enough failures in a row, or the last batches fail──▶ Paused
    Paused ──its time has come: one call is tried──▶ Trying
    Trying ──it fails──▶ Paused, for longer
    Paused, Trying ──a call has succeeded──▶ Closed
    Trying ──it fails after `patience` seconds──▶ Open: the run ends

This is Nygard's circuit breaker (*Release It!*, 2007). It neither reads a clock nor waits: the
caller of `step` passes the time, so that tests need not sleep.
"""

from __future__ import annotations

from enum import Enum, auto

from resumable_tasks.base.frozen import frozen

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 15.0
# Among the last batches, too few to count, an apparent outage may be the fault of one item (a dead
# host). So the run waits, but only briefly and only once.
TAIL_SECONDS = 30.0


class Tail(Enum):
    """The state of the wait for a run's last batches."""

    AHEAD = auto()
    NOW = auto()
    OVER = auto()


@frozen
class Closed:
    """Calls are made as usual. ``patience``: seconds without a success before the run ends."""

    patience: float
    tail: Tail = Tail.AHEAD


@frozen
class Paused:
    """No call begins before ``until``. ``pause`` is 0 until the first call was tried."""

    patience: float
    tail: Tail
    since: float
    until: float
    pause: float = 0.0


@frozen
class Trying:
    """One call is in flight; its outcome shows whether the service is back."""

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
    """Enough batches have failed in a row that the service may be down."""
    LAST_FAILED = auto()
    """Only failed batches are left, and some failures look like an outage."""
    SUCCESS = auto()
    """A call that began after others had failed has succeeded."""
    FAILURE = auto()
    """The call that was tried has failed."""
    NO_SIGN = auto()
    """No failure looks like an outage, or no failed batch is left."""
    NOTHING = auto()
    """No news; only time has passed."""


class Order(Enum):
    """What to do after a step."""

    NOTHING = auto()
    TRY = auto()
    """Make one call."""
    HALVE = auto()
    """Halve the failed batches: the service works, so they contain bad items."""
    AGAIN = auto()
    """Handle the failed batches again unchanged: the service was down."""


def step(state: State, evidence: Evidence, now: float) -> tuple[State, Order]:
    """Return the next state and what to do. ``now``: seconds of a monotonic clock."""
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
    # Make the last call exactly when the patience ends.
    patience = min(state.patience, TAIL_SECONDS) if state.tail is Tail.NOW else state.patience
    until = max(now, min(now + pause, state.since + patience))
    return Paused(state.patience, state.tail, state.since, until, pause)
