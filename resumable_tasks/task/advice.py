"""Whether a checkpoint is worth it, in which form, and in what pieces; and what a run warns of.

The thresholds are rules of thumb, each with its number here and its reason in
``docs/design/0010-snapshot-import-advice.md``. Nothing is decided by them but what is said.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from resumable_tasks.base.text import duration
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys

Form = Literal["journal", "column", "snapshot"]

MANY_ITEMS, SLOW_SECONDS = 20, 5.0
LONG_JOB_SECONDS = 600.0
MOST_OVERHEAD = 0.01
# Where handlers are quick, a run has out what they handle in this time, in so many batches at
# most; these are the numbers of `window`.
OUT_SECONDS, MOST_BATCHES_OUT = 0.008, 256
# No number that is given is larger, so that none that is made of them is no number any more.
_MOST = 10**18
# Items that take less take no time.
_LEAST_SECONDS = 1e-15
# Two durable files and the encoding of their rows, on a slow disk; see docs/performance.md.
COMMIT_SECONDS = 0.003
# How long a batch of more than one item may take before the run says so, and what it proposes.
LONG_BATCH_SECONDS, GOOD_BATCH_SECONDS = 1_800.0, 300.0
# So many completed keys, and so many items of which none is among them, are no accident.
MANY_KEYS = 50


@dataclass(frozen=True, slots=True)
class Loss:
    """What is done again after a crash; ``seconds`` are those of the handler, all calls summed."""

    items: float
    seconds: float
    cost: float

    def __str__(self) -> str:
        items = f"{self.items:,.1f}".removesuffix(".0")
        text = f"{items} item{'s' * (items != '1')}, {duration(self.seconds)} of work"
        return text + (f", a cost of {self.cost:,.4g}" if self.cost else "")


@dataclass(frozen=True, slots=True)
class Advice:
    """What `advise` says; ``str()`` of it is the text.

    ``checkpoint``: whether to keep one, for these ``reasons``. ``form``: which. ``batch_size``
    items a batch (with ``"snapshot"``: steps from one save to the next), which is a commit each
    ``commit_seconds``, at an ``overhead`` of this share. ``without`` and ``with_checkpoint`` are
    what a crash costs at the worst moment and on average. ``notes`` are what else to see to.
    """

    checkpoint: bool
    reasons: tuple[str, ...]
    form: Form
    batch_size: int
    commit_seconds: float
    overhead: float
    without: tuple[Loss, Loss]
    with_checkpoint: tuple[Loss, Loss]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = ["keep a checkpoint:" if self.checkpoint else "no checkpoint is needed:"]
        lines += [f"  - {reason}" for reason in self.reasons]
        lines.append("a crash costs, at the worst moment and on average:")
        lines += [f"  without  {self.without[0]}; {self.without[1]}"]
        lines += [f"  with     {self.with_checkpoint[0]}; {self.with_checkpoint[1]}"]
        lines.append(f"form: {_FORMS[self.form]}")
        size = "every" if self.form == "snapshot" else "batch_size"
        lines.append(
            f"{size}={self.batch_size}: a commit about every {_seconds(self.commit_seconds)}, at "
            f"an overhead of {self.overhead:.2%}"
        )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


_FORMS: dict[Form, str] = {
    "journal": "the append-only journal of resumable_task",
    "column": "a column of the table that the items are in, set in the same transaction as "
    "their results",
    "snapshot": "a Snapshot, since the state is a structure",
}


def advise(
    items: int,
    seconds_per_item: float,
    *,
    external_api: bool = False,
    cost_per_item: float = 0.0,
    idempotent: bool = True,
    in_table: bool = False,
    structure: bool = False,
    concurrency: int = 4,
    max_loss: float | None = None,
) -> Advice:
    """Whether to keep a checkpoint of a job, in which form, and how often to commit.

    Args:
        items: how many there are.
        seconds_per_item: of the handler, for one of them.
        external_api: the handler calls a service with limits or a price.
        cost_per_item: what an item costs, in any unit.
        idempotent: the job as a whole can be run again without harm.
        in_table: the items are rows of a database's table.
        structure: what is to be remembered is no set of keys, but such as a cursor or sums.
        concurrency: batches at once.
        max_loss: the most that a crash may cost: in the unit of ``cost_per_item`` if that is
            given, else in seconds of work.

    Raises `UsageError` for a number that cannot be.
    """
    for name, value, least in (("items", items, 0), ("concurrency", concurrency, 1)):
        if type(value) is not int or not least <= value <= _MOST:
            raise UsageError(
                f"{name}={keys.shorten(value)} is no whole number from {least} to 1e18"
            )
    given = {"seconds_per_item": seconds_per_item, "cost_per_item": cost_per_item}
    for name, number in given.items():
        if type(number) not in (int, float) or not 0 <= number <= _MOST:
            raise UsageError(f"{name}={keys.shorten(number)} is no number from 0 to 1e18")
    if max_loss is not None and not (type(max_loss) in (int, float) and 0 < max_loss <= _MOST):
        raise UsageError(f"max_loss={keys.shorten(max_loss)} is no number above 0, up to 1e18")
    if in_table and structure:
        raise UsageError("in_table and structure exclude each other: what is to be remembered?")
    form: Form = "column" if in_table else "snapshot" if structure else "journal"
    at_once = 1 if form == "snapshot" else max(1, min(concurrency, items))
    if seconds_per_item < _LEAST_SECONDS:
        seconds_per_item = 0.0

    def out(size: int) -> float:
        """How many items of such batches can be lost: out, and not yet committed."""
        if form == "snapshot":
            return min(items, size)
        quick = at_once * OUT_SECONDS / seconds_per_item if seconds_per_item else math.inf
        return min(items, max(2 * at_once * size, min(MOST_BATCHES_OUT * size, quick)))

    reasons = _reasons(items, seconds_per_item, external_api or cost_per_item > 0, idempotent)
    each = seconds_per_item / at_once
    size, notes = _batch_size(items, each, at_once), list[str]()
    unit = cost_per_item or seconds_per_item
    if max_loss is not None and unit > 0:
        size = _bounded(size, lambda size: out(size) * unit, max_loss, at_once, notes)
    if items and _overhead(size, each) >= MOST_OVERHEAD:
        notes.append("commits cannot be kept under 1 % of the time here")
    if items == 1 and form != "snapshot":
        notes.append(
            "one item cannot be divided, and is done again as a whole: a Snapshot keeps what lies "
            "in between"
        )
    if external_api and size == 1 and items > 1 and form != "snapshot":
        notes.append("a larger batch_size is better if one call can take several items")
    if external_api or not idempotent:
        notes.append(
            "the items of a batch that a crash has cut off are handled again: give the service "
            "their keys as idempotency keys"
        )

    def loss(count: float) -> Loss:
        return Loss(count, count * seconds_per_item, count * cost_per_item)

    worst = out(size)
    return Advice(
        checkpoint=bool(reasons),
        reasons=tuple(reasons)
        or (f"it is done again in {duration(items * each)}: run it again instead",),
        form=form,
        batch_size=size,
        commit_seconds=size * each,
        overhead=_overhead(size, each),
        without=(loss(items), loss(items / 2)),
        with_checkpoint=(loss(worst), loss(min(items / 2, at_once * size / 2))),
        notes=tuple(notes),
    )


def _reasons(items: int, seconds: float, outside: bool, idempotent: bool) -> list[str]:
    reasons = []
    if items >= MANY_ITEMS and seconds >= SLOW_SECONDS:
        reasons.append(f"{items:,} items of {_seconds(seconds)} each")
    if items * seconds >= LONG_JOB_SECONDS:
        reasons.append(f"{duration(items * seconds)} of work in all")
    if outside and items:
        reasons.append("calls to the outside have limits or a price")
    if not idempotent and items:
        reasons.append("run again as a whole, it would do harm")
    return reasons


def _batch_size(items: int, each: float, at_once: int) -> int:
    """The smallest batch whose commits cost less than a hundredth: it loses the least."""
    wanted = COMMIT_SECONDS / MOST_OVERHEAD
    # What only rounding keeps under a hundredth does not count.
    size = math.floor(wanted / each * (1 + 1e-12)) + 1 if each > 0 else items
    return max(1, min(size, math.ceil(items / at_once)))


def _bounded(
    size: int, loss: Callable[[int], float], max_loss: float, at_once: int, notes: list[str]
) -> int:
    """The largest batch up to ``size`` that loses no more than is allowed, which grows with it."""
    if loss(1) > max_loss * (1 + 1e-9):
        remedy = "lower the concurrency" if at_once > 1 else "make the items themselves smaller"
        notes.append(
            f"even batches of one item can cost {loss(1):,.4g} at {at_once} at once, more than "
            f"{max_loss:,.4g}: {remedy}"
        )
        return 1
    fits, above = 1, size + 1
    while above - fits > 1:
        middle = (fits + above) // 2
        if loss(middle) <= max_loss * (1 + 1e-9):
            fits = middle
        else:
            above = middle
    if fits < size:
        notes.append("the loss that is allowed wants smaller batches than the overhead does")
    return fits


def _seconds(seconds: float) -> str:
    """As `duration` has it, from a minute on: what is shorter has no use for a clock."""
    return duration(seconds) if seconds >= 60 else f"{seconds:.3g} s"


def _overhead(size: int, each: float) -> float:
    return COMMIT_SECONDS / (size * each) if each > 0 and size else 0.0
