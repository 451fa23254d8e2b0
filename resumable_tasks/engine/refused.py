"""Finds the items whose results the checkpoint refuses, without another call.

The results are paid for. So the rows of the batch are halved, not the batch, until the refused rows
are isolated. The other rows are committed; the refused ones are parked, that is, kept unchanged.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from resumable_tasks.checkpoint.form import Checkpoint, Unit
from resumable_tasks.errors import ResultConflict
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners import failures
from resumable_tasks.runners.handle import Work
from resumable_tasks.runners.match import match
from resumable_tasks.runners.outcome import Done, Failure, Parked, Times

if TYPE_CHECKING:
    import pyarrow as pa

# After this many batches in a row, with this many items, of which nothing could be stored, further
# calls would be wasted.
_BATCHES, _ITEMS = 5, 30


class Refused:
    """Adds outcomes to a unit; parks the rows that the checkpoint refuses.

    ``hopeless``: the reason to end the run because no result can be stored, or None. With
    ``pause_after=None`` it is always None.
    """

    def __init__(self, checkpoint: Checkpoint, work: Work, pause_after: int | None) -> None:
        self._checkpoint = checkpoint
        self._work = work
        self._never = pause_after is None
        self._batches = self._items = 0
        self.hopeless: str | None = None

    def add(self, unit: Unit, outcome: Done) -> list[Done]:
        """Add the outcome, in parts if needed; return the parts as they will be committed.

        Rows that did not fit the other rows of their batch may still fit the checkpoint, perhaps
        better than those, so they are tried too.
        """
        apart, bare = tuple(failure for failure in outcome.failures if failure.parked), outcome
        if apart:
            others = tuple(failure for failure in outcome.failures if not failure.parked)
            bare = replace(outcome, failures=others)
        found, refused = add_what_fits(unit, self._checkpoint, self._work.scheme, bare)
        found += [unit.add(self._parked(each, error)) for each, error in refused]
        if apart:
            found += self._add_apart(unit, outcome, apart)
        self._count(found)
        return found

    def _add_apart(self, unit: Unit, outcome: Done, apart: tuple[Failure, ...]) -> list[Done]:
        """Add the rows of items to be parked if they fit after all; park the others."""
        places = {key: at for at, key in enumerate(outcome.batch.keys)}
        indexes = [places[failure.key] for failure in apart]
        batch = outcome.batch.choose(indexes, outcome.batch.number, outcome.batch.part_of)
        from resumable_tasks.runners.values.encoding import decode

        rows = [decode(row) for failure in apart for row in failure.rows or ()]
        matched = match(
            rows, batch, self._work.scheme, self._work.results, self._checkpoint.columns
        )
        found: list[Done] = []
        table = matched.unwritten
        if table is not None:
            done = Done(batch, matched.done, matched.completed, table, schema=table.schema)
            found, _ = add_what_fits(unit, self._checkpoint, self._work.scheme, done)
        stored = {key for done in found for key in keys.parse_lines(done.done)}
        left = tuple(failure for failure in apart if failure.key not in stored)
        return [*found, unit.add(Done(outcome.batch, failures=left))] if left else found

    def park(self, unit: Unit, outcome: Done) -> list[Done]:
        """Add the outcome with its rows parked, because another writer does not release them."""
        why = (
            f"another writer has not released the rows of batch {outcome.batch.id}; the next run "
            "takes the result over"
        )
        return [unit.add(self._parked(outcome, ResultConflict(why)))]

    def _count(self, added: list[Done]) -> None:
        """Count batches in a row of which nothing could be stored; set ``hopeless`` if too many."""
        if any(done.completed for done in added):
            self._batches = self._items = 0
            return
        if parked := [each for done in added for each in done.failures if each.parked]:
            self._batches += 1
            self._items += len(parked)
            if self._batches >= _BATCHES and self._items >= _ITEMS and not self._never:
                self.hopeless = (
                    f"{self._batches} batches in a row could not be stored at all; their results "
                    f"are kept: {parked[-1].message}"
                )

    def _parked(self, outcome: Done, error: ResultConflict) -> Done:
        """Return the outcome with its items parked because of this error."""
        rows = _rows_by_key(outcome, self._work.scheme)
        parked: list[Parked] = [(key, rows[key], error) for key in keys.parse_lines(outcome.done)]
        found = outcome.failures + failures.parked(outcome.batch, parked, 1)
        return replace(
            outcome, done=b"", completed=0, unwritten=None, schema=None, rows=None, failures=found
        )


def add_what_fits(
    unit: Unit, checkpoint: Checkpoint, scheme: KeyScheme, outcome: Done
) -> tuple[list[Done], list[tuple[Done, ResultConflict]]]:
    """Add the outcome, in parts if needed; return the added and the refused parts."""
    try:
        return [unit.add(outcome)], []
    except ResultConflict as error:
        if outcome.shard is not None:  # the worker wrote the rows; the driver writes them anew
            outcome = replace(outcome, unwritten=checkpoint.rows_of(outcome), shard=None)
        elif outcome.completed < 2:
            return [], [(outcome, error)]
    added: list[Done] = []
    refused: list[tuple[Done, ResultConflict]] = []
    for half in _halves(outcome, scheme):
        fits, not_these = add_what_fits(unit, checkpoint, scheme, half)
        added += fits
        refused += not_these
    return added, refused


def _halves(outcome: Done, scheme: KeyScheme) -> list[Done]:
    lines = list(keys.split(outcome.done))
    middle = len(lines) // 2
    # Facts about the whole batch (failures, times, cost) go with the first half.
    rest = replace(outcome, failures=(), times=Times(), cost=0.0)
    each = [(outcome, lines[:middle]), (rest, lines[middle:])]
    return [_part(done, part, scheme) for done, part in each if part]


def _part(outcome: Done, lines: list[bytes], scheme: KeyScheme) -> Done:
    table, rows = outcome.table, outcome.rows
    wanted = set(lines)
    if rows is not None:
        found = scheme.lines_of(rows, wanted)
        rows = [row for row, line in zip(rows, found, strict=True) if line in wanted]
    if table is not None:
        import pyarrow as pa

        here = [line in wanted for line in scheme.lines_of(table, wanted)]
        table = table.filter(pa.array(here, pa.bool_()))
        table = _retyped(table) if table.num_rows else None
    return replace(
        outcome,
        done=keys.join(lines),
        completed=len(lines),
        unwritten=table,
        schema=table.schema if table is not None else None,
        rows=rows,
    )


def _retyped(table: pa.Table) -> pa.Table:
    """Return the table with columns that hold only nulls retyped to null, which fits any type."""
    import pyarrow as pa

    for at, column in enumerate(table.columns):
        if column.null_count == len(column):
            table = table.set_column(at, table.column_names[at], pa.nulls(len(column)))
    return table


def _rows_by_key(outcome: Done, scheme: KeyScheme) -> dict[keys.Key, list[dict[str, object]]]:
    """Return the rows of each item of an outcome, in the form that parked rows are encoded from."""
    rows: dict[keys.Key, list[dict[str, object]]] = {
        key: [] for key in keys.parse_lines(outcome.done)
    }
    found = outcome.rows if outcome.rows is not None else outcome.table
    if found is not None:
        lines = scheme.lines_of(found, set(keys.split(outcome.done)))
        plain = found if outcome.rows is not None else _plain_rows(found)
        for line, row in zip(lines, plain, strict=True):
            rows[keys.parse(line)].append(row)
    return rows


def _plain_rows(table: pa.Table) -> list[dict[str, object]]:
    """Return the rows as dicts; nanosecond values, too fine for Python's types, stay Arrow's."""
    columns = {
        name: list(column) if "[ns" in str(column.type) else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
