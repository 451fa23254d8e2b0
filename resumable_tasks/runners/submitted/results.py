"""The collected results of a submission → an outcome, and the items to submit again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import Any

from resumable_tasks.base import checks
from resumable_tasks.base.text import count
from resumable_tasks.errors import BadResult, UsageError
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.submission import Submission
from resumable_tasks.runners.handle import Call, Work
from resumable_tasks.runners.outcome import Done, ItemFailure, Times
from resumable_tasks.runners.submitted.protocol import Collected, NotReady, Undone
from resumable_tasks.runners.values import frames, plain

_SAFE = "The results stay with the service"
_FIX = "Fix collect and run again: nothing is submitted again"


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of a service to a submission.

    ``again``: the canonical keys of the items to submit again, because the service has not handled
    them, or because their answers are bad and may be asked for once more. ``why``: the service's
    reason for one item that it has not handled. ``outage``: the service refuses all work.
    """

    done: Done
    again: tuple[bytes, ...] = ()
    why: str = ""
    outage: bool = False


def answer_of(
    work: Work, batch: Batch, submission: Submission, collect: Callable[[], Any], asked: int
) -> Answer:
    """Collect the results and match them to the items of the batch.

    ``asked``: how often these items have been submitted, including this time. Raises the errors of
    ``collect``, and `BadResult` if the results cannot be matched to the items; the results are paid
    for and stay with the service.
    """
    whole, one = _whole(batch, submission), work.results == "one"
    at, began = time.monotonic(), time.perf_counter()
    returned = collect()
    seconds = time.perf_counter() - began
    collected = returned if isinstance(returned, Collected) else Collected(returned)
    if collected.cost is not None:  # the service reports the cost, so the rows need not
        _check_cost(collected.cost)
        work = replace(work, cost=None)
    entries, undone, bad = _told_apart(collected.results, asked <= work.retry.times)
    bad_lines = set(map(keys.canonical, bad))
    apart = bad_lines.union(keys.canonical(each.key) for each in undone)
    _check_known(apart, whole)
    if one and asked == 1 and not apart and _is_nothing(entries):
        # `collect` may filter too much, or a file may not be written yet: all may be paid for.
        raise NotReady(f"collect returned nothing at all for {count(len(whole), 'item')}")
    # With one row per item, an item with a row is done, even if it is also reported as undone.
    done = _matched(work, whole if one else _without(whole, apart), entries, asked)
    missing = [keys.canonical(done.batch.keys[at]) for at in done.left_out]
    done = _not_failed(done, missing)
    _check_not_twice(done, whole)
    again = missing if one else [*apart]
    cost = collected.cost
    if cost is None and work.cost is None and submission.cost is not None:
        charged = len(whole) - len(set(again) - bad_lines)
        cost = submission.cost * charged / len(whole)
    if whole is not batch:
        wanted = set(keys.split(batch.lines))
        done = _only(done, wanted, work)
        again = [line for line in again if line in wanted]
    return Answer(
        replace(
            done,
            batch=batch,
            cost=done.cost + (cost or 0.0),
            times=Times(seconds, at, time.monotonic(), 1),
        ),
        tuple(again),
        str(next((each.error for each in undone if each.error), "")),
        any(each.outage for each in undone),
    )


def _whole(batch: Batch, submission: Submission) -> Batch:
    """Return the batch as it was submitted, including items that were completed since."""
    if submission.left is None:
        return batch
    found = keys.parse_lines(submission.lines)
    return Batch(batch.number, found, submission.lines, [None] * len(found))


def _told_apart(results: Any, ask_again: bool) -> tuple[Any, list[Undone], list[keys.Key]]:
    """Separate rows and failures, unhandled items, and the keys to ask for again."""
    if not isinstance(results, Iterable) or isinstance(results, (str, bytes, dict)):
        return results, [], []
    if frames.is_arrow(results):
        return results, [], []
    entries = list(results)
    undone = [entry for entry in entries if type(entry) is Undone]
    bad = [
        entry.key
        for entry in entries
        if ask_again and type(entry) is ItemFailure and isinstance(entry.error, BadResult)
    ]
    if undone or bad:
        left = set(bad)
        entries = [
            entry
            for entry in entries
            if type(entry) is not Undone and not (type(entry) is ItemFailure and entry.key in left)
        ]
    return entries, undone, bad


def _is_nothing(entries: Any) -> bool:
    if isinstance(entries, (str, bytes, dict)):
        return False
    return hasattr(entries, "__len__") and not len(entries)


def _check_not_twice(done: Done, batch: Batch) -> None:
    """Raise `BadResult` if most items have two rows: then `collect` is wrong, not the items."""
    twice = [each for each in done.failures if each.parked and each.error == BadResult.__name__]
    if 2 * len(twice) > len(batch):
        more = len(twice) - 1
        raise BadResult(
            twice[0].message + (f" (and so have {count(more, 'more item')})" if more else ""),
            safe=_SAFE,
            remedy=_FIX,
        )


def _check_cost(cost: Any) -> None:
    if not checks.is_number(cost):
        raise UsageError(
            f"collect returned Collected(…, cost={keys.shorten(cost)}), which is not a cost",
            safe=_SAFE,
            remedy="Give a number from 0, or None if the cost is unknown",
        )


def _check_known(lines: set[bytes], batch: Batch) -> None:
    if lines and (foreign := lines.difference(keys.split(batch.lines))):
        raise BadResult(
            f"collect returned an Undone or an ItemFailure for key "
            f"{keys.shown(keys.parse(min(foreign)))}, which is not in its submission",
            safe=_SAFE,
            remedy=_FIX,
        )


def _without(batch: Batch, lines: set[bytes]) -> Batch:
    if not lines:
        return batch
    left = [at for at, line in enumerate(keys.split(batch.lines)) if line not in lines]
    return batch.choose(left, batch.number, batch.part_of)


def _matched(work: Work, batch: Batch, entries: Any, asked: int) -> Done:
    if not len(batch):
        return Done(batch)
    if entries == [] and work.results == "one":
        return Done(batch, left_out=tuple(range(len(batch))))
    entries = _keyed(work, entries)
    call = Call(work, batch, asked, strict=True)
    copy_context().run(call.begin)  # in a copy: it sets context variables for a handler
    outcome = call.returned(entries)
    if isinstance(outcome, Done):
        return outcome
    error = outcome.error
    if isinstance(error, BadResult) and not error.remedy:
        error.safe, error.remedy = _SAFE, _FIX
    raise error


def _keyed(work: Work, entries: Any) -> Any:
    """Return the entries. Raises `BadResult` for rows without a key: their order is arbitrary."""
    if frames.is_arrow(entries):
        entries = frames.to_arrow(entries)
    names: Any = getattr(entries, "column_names", None)
    if names is None and isinstance(entries, list):
        first: Any = next((each for each in entries if type(each) is not ItemFailure), {})
        names = first if isinstance(first, dict) else plain.fields_of(first)
    columns = work.scheme.columns
    if names and not set(columns) & set(names):
        raise BadResult(
            f"the rows that collect returned have no key column {', '.join(map(repr, columns))}, "
            "but a service may return them in any order: add the key of its item to each row",
            safe=_SAFE,
            remedy=_FIX,
        )
    return entries


def _not_failed(done: Done, lines: list[bytes]) -> Done:
    """Return the outcome without failures of items that the service merely left out."""
    if not lines:
        return done
    left_out = set(lines)
    failures = tuple(
        failure for failure in done.failures if keys.canonical(failure.key) not in left_out
    )
    return replace(done, failures=failures, left_out=())


def _only(done: Done, wanted: set[bytes], work: Work) -> Done:
    """Return the part of an outcome that concerns these items."""
    lines = [line for line in keys.split(done.done) if line in wanted]
    table = done.table
    if table is not None:
        import pyarrow as pa

        here = [line in wanted for line in work.scheme.lines_of(table, wanted)]
        table = table.filter(pa.array(here, pa.bool_()))
        table = table if table.num_rows else None
    return replace(
        done,
        done=keys.join(lines),
        completed=len(lines),
        unwritten=table,
        schema=None if table is None else table.schema,
        failures=tuple(each for each in done.failures if keys.canonical(each.key) in wanted),
    )
