"""Short displays of results and failures for notebooks and terminals, escaped, without rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

from resumable_tasks.base.html import table
from resumable_tasks.base.text import clean, count, duration, without_secrets
from resumable_tasks.items.keys import written
from resumable_tasks.runners.outcome import Failure

if TYPE_CHECKING:
    from resumable_tasks.results.result import RunResult

_MOST_KINDS, _MOST_FAILURES = 10, 20


class Failures(tuple[Failure, ...]):
    """The failures of a run: a tuple that displays itself by kinds of error."""

    __slots__ = ()

    def __repr__(self) -> str:
        if len(self) <= _MOST_KINDS:
            return super().__repr__()
        found = (f"{number:,} × {clean(error, 80)}" for error, number, _ in kinds(self))
        return f"<{count(len(self), 'failure')}: {', '.join(found)}>"

    def _repr_html_(self) -> str:
        some = self[:_MOST_FAILURES]
        rows = [(written(each.key), each.error, each.message, each.attempts) for each in some]
        more = f", the first {len(some)}" if len(some) < len(self) else ""
        title = f"{count(len(self), 'failure')}{more}"
        shown = table(title, rows, ("key", "error", "message", "attempts"))
        return shown + (_by_kind(self) if more else "")


def kinds(failures: Iterable[Failure]) -> list[tuple[str, int, Failure]]:
    """The most frequent classes of error, each with its number of failures and the first one."""
    first: dict[str, Failure] = {}
    numbers: Counter[str] = Counter()
    for failure in failures:
        first.setdefault(failure.error, failure)
        numbers[failure.error] += 1
    return [(error, number, first[error]) for error, number in numbers.most_common(_MOST_KINDS)]


def brief(result: RunResult) -> str:
    """``<RunResult classify: 1,710 of 1,713 items done, 3 failed; checkpoint …>``"""
    text = f"{result.job}: {result.summary}"
    if result.remaining is not None:
        text += f"; {result.remaining} remain"
    return f"<RunResult {clean(without_secrets(f'{text}; checkpoint {result.checkpoint}'))}>"


def as_html(result: RunResult) -> str:
    """The nonzero counts of a result, and its failures by kinds of error, as HTML."""
    numbers = {
        "items": result.total,
        "resumed": result.skipped,
        "new": result.completed,
        "failed": result.failed,
        "with a service": result.out,
        "parked": result.parked,
        "quarantined": result.quarantined,
        "duplicates": result.duplicates,
        "changed": result.changed,
        "batches retried": result.retried,
    }
    rows: list[tuple[str, object]] = [
        (name, f"{number:,}") for name, number in numbers.items() if number
    ]
    rows.append(("time", duration(result.seconds)))
    if result.cost is not None:
        rows.append(("cost", f"{result.cost:,.4g}"))
    if result.remaining is not None:
        rows.append(("remaining", result.remaining))
    if result.bound_by is not None:
        rows.append(("bound by", result.bound_by.sentence))
    rows.append(("checkpoint", result.checkpoint))
    return table(result.job, rows) + _by_kind((*result.failures, *result.parked_items))


def _by_kind(failures: tuple[Failure, ...]) -> str:
    rows = [
        (f"{number:,}", error, first.message, written(first.key))
        for error, number, first in kinds(failures)
    ]
    return table("errors", rows, ("items", "error", "message", "for example")) if rows else ""
