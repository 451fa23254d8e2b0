"""Is the handler itself wrong? A state machine.

::

    Trusted ──batches in a row fail with a programming error, or nothing works──▶ Doubted
    Doubted ──a call has succeeded──▶ Trusted
    Doubted ──single items and more batches fail as well──▶ Broken: the run ends

A wrong shape of results raises doubt from the first call on. It is tested with batches or halves of
them, never with single items: a handler that wrongly returns one row for a whole batch returns the
right number of rows for a single item.

Waiting does not repair a wrong handler, so no clock is needed. A few more calls are made before the
run ends, because a bad field in a tenth of the items also makes nearly every batch raise
``KeyError``.
"""

from __future__ import annotations

from dataclasses import replace
from enum import Enum, auto

from resumable_tasks.base.frozen import frozen


@frozen
class Trusted:
    """Failures are the fault of items or of the service."""


@frozen
class Doubted:
    """``tries`` single items (or halves) are still to be tried, ``tried`` have been.

    The handler is wrong once these and ``batches`` batches in a row have failed. ``shape``: the
    doubt is whether its results can be matched to any batch.
    """

    tries: int
    batches: int
    tried: int = 0
    shape: bool = False


@frozen
class Broken:
    """The handler is wrong; ``tried`` single items (or halves) have failed as well."""

    tried: int
    shape: bool


State = Trusted | Doubted | Broken


class Order(Enum):
    """What to do after a step."""

    NOTHING = auto()
    TRY = auto()
    """Handle one item alone, or half a batch if the shape is in doubt."""
    BEGIN = auto()
    """Begin one more batch."""
    HALVE = auto()
    """Halve the failed batches: the handler works, so they contain bad items."""


def step(
    state: State, *, in_a_row: int, nothing_else: bool, has_worked: bool
) -> tuple[State, Order]:
    """Return the next state, while no call succeeds, and what to do.

    ``in_a_row``: how many batches have failed in a row. ``nothing_else``: nothing else is left to
    handle. ``has_worked``: the handler has succeeded in this run.
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
