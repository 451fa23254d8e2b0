"""Parked results → rows, once they fit the table. The handler is not called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.checkpoint.form import Checkpoint, GaveWay
from resumable_tasks.engine.again import until_written
from resumable_tasks.engine.refused import add_what_fits
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.match import match
from resumable_tasks.runners.outcome import Done, Failure, ResultsMode
from resumable_tasks.runners.values.encoding import decode

Convert = Callable[[dict[str, Any]], dict[str, Any]]
"""Converts a parked row to one that fits the table."""

_AT_ONCE = 1_000


def accept(
    checkpoint: Checkpoint,
    scheme: KeyScheme,
    results: ResultsMode,
    convert: Convert | None = None,
) -> int:
    """Commit the parked results that fit the table now; return the number of their items.

    Each commit is durable before the next begins. Results that still do not fit stay parked
    unchanged, and so do items for whose rows ``convert`` raises.
    """
    waiting = checkpoint.parked()
    groups = (waiting[at : at + _AT_ONCE] for at in range(0, len(waiting), _AT_ONCE))
    return sum(_accept_or_each(checkpoint, scheme, results, some, convert) for some in groups)


def _accept_or_each(
    checkpoint: Checkpoint,
    scheme: KeyScheme,
    results: ResultsMode,
    some: Sequence[Failure],
    convert: Convert | None,
) -> int:
    """Accept these items, one by one if another writer holds some; only those stay parked."""
    write = partial(_accept, checkpoint, scheme, results, some, convert)
    try:
        return until_written(write, lambda: False)
    except GaveWay as other:
        if len(some) > 1:
            each = ([item] for item in some)
            return sum(_accept_or_each(checkpoint, scheme, results, it, convert) for it in each)
        log.warning("key %s stays parked for now: %s", keys.shown(some[0].key), other)
        return 0


def _accept(
    checkpoint: Checkpoint,
    scheme: KeyScheme,
    results: ResultsMode,
    some: Sequence[Failure],
    convert: Convert | None,
) -> int:
    rows: dict[keys.Key, list[dict[str, Any]]] = {}
    for item in some:
        try:
            rows[item.key] = [_row(scheme, item, row, convert) for row in item.rows or ()]
        except Exception as error:  # noqa: BLE001 - convert= is user code, and fails one item only
            log.warning("key %s stays parked: %r", keys.shown(item.key), error)
    if not rows:
        return 0
    batch = Batch(
        checkpoint.planner.next_number(),
        list(rows),
        keys.join(map(keys.canonical, rows)),
        [],
        # The fingerprints from when the items were handled, so that older rows of a changed item
        # are replaced.
        fingerprints=[item.fingerprint for item in some if item.key in rows],
    )
    returned = [row for each in rows.values() for row in each]
    matched = match(returned, batch, scheme, results, checkpoint.columns)
    if not matched.completed:
        return 0
    table = matched.unwritten
    schema = table.schema if table is not None else None
    done = Done(batch, matched.done, matched.completed, table, schema=schema, rows=matched.rows)
    with checkpoint.begin() as unit:
        added, _ = add_what_fits(unit, checkpoint, scheme, done)
        return unit.commit().completed if added else 0


def _row(scheme: KeyScheme, item: Failure, encoded: Any, convert: Convert | None) -> dict[str, Any]:
    row = decode(encoded)
    row = convert(row) if convert is not None else row
    return {**dict(zip(scheme.columns, scheme.values(item.key), strict=True)), **row}
