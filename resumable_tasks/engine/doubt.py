"""Is the handler itself wrong? States, and one step from state to state.

::

    Trusted ──batches in a row fail with an error of programming, or nothing works──▶ Doubted
    Doubted ──a call has succeeded──▶ Trusted
    Doubted ──items by themselves and more batches fail as well──▶ Broken: the run ends

Results of a wrong shape are doubted from the first call on. One row for a whole batch is what a
single item would get too, so that only batches, or halves of them, can tell.

No waiting makes a wrong handler right, so no clock is needed. A few calls more are made before
a run ends for it, because a field that a tenth of the items lack raises ``KeyError`` in nearly
every batch, too.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto

from resumable_tasks.base.frozen import frozen


@frozen
class Trusted:
    """Failures are the items' or the service's."""


@frozen
class Doubted:
    """So many ``tries`` are still to be made, ``tried`` were: items by themselves, or halves.

    Once they and ``batches`` batches in a row have failed, the handler is wrong. ``shape``: what
    is doubted is that its results can ever be matched to a batch.
    """

    tries: int
    batches: int
    tried: int = 0
    shape: bool = False


@frozen
class Broken:
    """The handler is wrong; ``tried`` items by themselves, or halves, have failed as well."""

    tried: int
    shape: bool


State = Trusted | Doubted | Broken


class Order(Enum):
    """The order that follows from a step."""

    NOTHING = auto()
    TRY = auto()
    """Handle one item by itself; or, if it is the shape that is doubted, half a batch."""
    BEGIN = auto()
    """Begin one more batch."""
    HALVE = auto()
    """The handler works: what has failed has a bad item in it."""


def step(
    state: State, *, in_a_row: int, nothing_else: bool, has_worked: bool
) -> tuple[State, Order]:
    """The next state while no call succeeds, and the order that goes with it.

    ``in_a_row`` batches have failed one after the other, ``nothing_else`` is left to be handled,
    the handler ``has_worked`` before in this run.
    """
    match state:
        case Doubted(tries=tries) if tries:
            return replace(state, tries=tries - 1, tried=state.tried + 1), Order.TRY
        case Doubted() if nothing_else and has_worked:
            return Trusted(), Order.HALVE
        case Doubted() if nothing_else or in_a_row >= state.batches:
            return Broken(state.tried, state.shape), Order.NOTHING
        case Doubted():
            return state, Order.BEGIN
    return state, Order.NOTHING
