"""Advises whether a checkpoint is worthwhile, in which form, and how often to commit.

The thresholds are rules of thumb. Their values are here, their reasons in
``docs/design/0010-snapshot-import-advice.md``. A run does not depend on them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from resumable_tasks.base.text import count, duration
from resumable_tasks.engine.window import MOST_BATCHES_OUT, OUT_SECONDS
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys

Form = Literal["journal", "column", "snapshot"]

MANY_ITEMS, SLOW_SECONDS = 20, 5.0
LONG_JOB_SECONDS = 600.0
MOST_OVERHEAD = 0.01
# The cost of a commit: two durable files and the encoding of rows, on a slow disk; see
# docs/performance.md.
COMMIT_SECONDS = 0.003
# The largest accepted number, so that every result stays finite.
_MOST = 10**18
# A shorter time per item counts as none.
_LEAST_SECONDS = 1e-15
# Tolerates values that exceed a bound only by rounding.
_ROUNDING = 1 + 1e-9


@dataclass(frozen=True, slots=True)
class Loss:
    """The work repeated after a crash; ``seconds`` sums the time of all handler calls."""

    items: float
    seconds: float
    cost: float

    def __str__(self) -> str:
        text = f"{count(self.items, 'item')}, {duration(self.seconds)} of work"
        return text + (f", at a cost of {self.cost:,.4g}" if self.cost else "")


@dataclass(frozen=True, slots=True)
class Advice:
    """The advice of `advise`; ``str()`` returns it as text.

    ``checkpoint``: whether to keep one, for these ``reasons``, and in which ``form``.
    ``batch_size`` is the number of items a batch (for ``"snapshot"``: of steps between two saves).
    It means a commit every ``commit_seconds`` and this share of ``overhead``. ``without`` and
    ``with_checkpoint`` are the costs of a crash at the worst moment and on average. ``notes`` give
    further hints.
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
            f"{size}={self.batch_size}: a commit about every {duration(self.commit_seconds)}, at "
            f"an overhead of {self.overhead:.2%}"
        )
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)


_FORMS: dict[Form, str] = {
    "journal": "the append-only journal of resumable_task",
    "column": "a column of the items' table, set in the same transaction as their results",
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
    """Advise whether a job needs a checkpoint, in which form, and how often to commit.

    Args:
        items: number of items.
        seconds_per_item: time the handler takes for one item.
        external_api: the handler calls a service with limits or a price.
        cost_per_item: what an item costs, in any unit.
        idempotent: the job as a whole can be run again without harm.
        in_table: the items are rows of a database table.
        structure: the state to remember is not a set of keys but a structure, such as a cursor or
            sums.
        concurrency: number of batches at the same time.
        max_loss: maximum cost of a crash: in the unit of ``cost_per_item`` if given, otherwise in
            seconds of work.

    Raises:
        UsageError: a number is out of its range, or ``in_table`` and ``structure`` are both set.
    """
    _check("items", items, 0, int)
    _check("concurrency", concurrency, 1, int)
    _check("seconds_per_item", seconds_per_item, 0, float)
    _check("cost_per_item", cost_per_item, 0, float)
    if max_loss is not None:
        _check("max_loss", max_loss, 0, float)
        if not max_loss:
            raise UsageError("max_loss=0 allows no loss at all: give a number above 0")
    if in_table and structure:
        raise UsageError("in_table and structure exclude each other", remedy="Give one of them")
    form: Form = "column" if in_table else "snapshot" if structure else "journal"
    at_once = 1 if structure else max(1, min(concurrency, items))
    if seconds_per_item < _LEAST_SECONDS:
        seconds_per_item = 0.0
    each = seconds_per_item / at_once
    # The smallest batch whose commits stay below the allowed overhead: a crash then loses least.
    wanted = COMMIT_SECONDS / MOST_OVERHEAD
    size = math.floor(wanted / each * (1 + 1e-12)) + 1 if each > 0 else items
    size = max(1, min(size, math.ceil(items / at_once)))
    # The number of items that may be submitted and not yet committed, per item of a batch; for
    # fast handlers, as many as `engine.window` allows.
    quick = at_once * OUT_SECONDS / seconds_per_item if seconds_per_item else math.inf

    def out(size: int) -> float:
        if structure:
            return min(items, size)
        return min(items, max(2 * at_once * size, min(MOST_BATCHES_OUT * size, quick)))

    notes = []
    unit = cost_per_item or seconds_per_item
    if max_loss is not None and out(size) * unit > max_loss * _ROUNDING:
        allowed = max_loss * _ROUNDING / unit
        most = 1 if structure else 2 * at_once
        if not structure and quick > allowed:
            most = max(most, MOST_BATCHES_OUT)
        size = max(1, math.floor(allowed / most))
        notes.append(_why_smaller(out(1) * unit, max_loss, at_once))
    overhead = COMMIT_SECONDS / (size * each) if each > 0 else 0.0
    if items and overhead >= MOST_OVERHEAD:
        notes.append("commits take more than 1 % of the time here")
    notes += _notes(items, size, structure, external_api, idempotent)
    reasons = _reasons(items, seconds_per_item, external_api or cost_per_item > 0, idempotent)

    def loss(count: float) -> Loss:
        return Loss(count, count * seconds_per_item, count * cost_per_item)

    return Advice(
        checkpoint=bool(reasons),
        reasons=tuple(reasons)
        or (f"the whole job takes {duration(items * each)}: run it again instead",),
        form=form,
        batch_size=size,
        commit_seconds=size * each,
        overhead=overhead,
        without=(loss(items), loss(items / 2)),
        with_checkpoint=(loss(out(size)), loss(min(items / 2, at_once * size / 2))),
        notes=tuple(notes),
    )


def _check(name: str, value: Any, least: int, kind: type) -> None:
    kinds = (int,) if kind is int else (int, float)
    if type(value) not in kinds or not least <= value <= _MOST:
        what = "whole number" if kind is int else "number"
        raise UsageError(
            f"{name}={keys.shorten(value)} is not a {what} from {least} to 1e18",
            remedy=f"Give {name}= a number in that range",
        )


def _why_smaller(least: float, max_loss: float, at_once: int) -> str:
    if least <= max_loss * _ROUNDING:
        return "max_loss requires smaller batches than the overhead alone would"
    remedy = "lower the concurrency" if at_once > 1 else "make the items themselves smaller"
    return (
        f"even batches of one item can cost {least:,.4g} at {at_once} at once, more than "
        f"{max_loss:,.4g}: {remedy}"
    )


def _notes(
    items: int, size: int, structure: bool, external_api: bool, idempotent: bool
) -> Iterator[str]:
    if items == 1 and not structure:
        yield (
            "one item cannot be divided and would be repeated as a whole: a Snapshot keeps its "
            "progress"
        )
    if external_api and size == 1 and items > 1 and not structure:
        yield "a larger batch_size is better if one call can take several items"
    if external_api or not idempotent:
        yield (
            "items of a batch that a crash interrupts are handled again: send their keys to the "
            "service as idempotency keys"
        )


def _reasons(items: int, seconds: float, outside: bool, idempotent: bool) -> list[str]:
    reasons = []
    if items >= MANY_ITEMS and seconds >= SLOW_SECONDS:
        reasons.append(f"{count(items, 'item')} of {duration(seconds)} each")
    if items * seconds >= LONG_JOB_SECONDS:
        reasons.append(f"{duration(items * seconds)} of work in all")
    if outside and items:
        reasons.append("external calls have limits or a price")
    if not idempotent and items:
        reasons.append("repeating the whole job would do harm")
    return reasons
