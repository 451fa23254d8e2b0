"""Results that the checkpoint refuses: which items they are of, without one more call.

They are paid for. So the rows of a batch are halved, and not the batch, until those that are
refused stand alone; the others are committed, and those are parked: kept as they are.
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

# So many batches in a row, of so many items, of which nothing could be stored: the next ones will
# fare no better.
_BATCHES, _ITEMS = 5, 30


class Refused:
    """Adds outcomes to a unit, as far as the checkpoint takes their rows; the rest is parked.

    ``hopeless`` says why the run should end: nothing that is handled can be stored. With a
    ``pause_after`` of None it never should.
    """

    def __init__(self, checkpoint: Checkpoint, work: Work, pause_after: int | None) -> None:
        self._checkpoint = checkpoint
        self._work = work
        self._never = pause_after is None
        self._batches = self._items = 0
        self.hopeless: str | None = None

    def add(self, unit: Unit, outcome: Done) -> list[Done]:
        """Add the outcome, or parts of it; these as they will be committed.

        What has been set apart from the other rows of its batch may fit the checkpoint all the
        same, and better than those.
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
        """Add the rows of items that are to be parked, as far as they fit; park the others."""
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
        """Add the outcome with its rows parked, since another writer does not let go of them."""
        why = (
            f"another writer has not let go of the rows of batch {outcome.batch.id}; the next run "
            "takes the result over"
        )
        return [unit.add(self._parked(outcome, ResultConflict(why)))]

    def _count(self, added: list[Done]) -> None:
        """Nothing of a batch could be stored: one more, in a row?"""
        if any(done.completed for done in added):
            self._batches = self._items = 0
            return
        if parked := [each for done in added for each in done.failures if each.parked]:
            self._batches += 1
            self._items += len(parked)
            if self._batches >= _BATCHES and self._items >= _ITEMS and not self._never:
                self.hopeless = (
                    f"nothing of {self._batches} batches in a row could be stored; what the "
                    f"handler returned is kept: {parked[-1].message}"
                )

    def _parked(self, outcome: Done, error: ResultConflict) -> Done:
        """The outcome with its items parked, because of this error."""
        rows = _rows_by_key(outcome, self._work.scheme)
        parked: list[Parked] = [(key, rows[key], error) for key in keys.parse_lines(outcome.done)]
        found = outcome.failures + failures.parked(outcome.batch, parked, 1)
        return replace(
            outcome, done=b"", completed=0, unwritten=None, schema=None, rows=None, failures=found
        )


def add_what_fits(
    unit: Unit, checkpoint: Checkpoint, scheme: KeyScheme, outcome: Done
) -> tuple[list[Done], list[tuple[Done, ResultConflict]]]:
    """Add the outcome, or parts of it: those that were added, and those that were refused."""
    try:
        return [unit.add(outcome)], []
    except ResultConflict as error:
        if outcome.shard is not None:  # a worker's rows: from here on they are the driver's
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
    # What is of the batch as a whole goes with the first half.
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
    """Columns without a value have no type that could be in the way."""
    import pyarrow as pa

    for at, column in enumerate(table.columns):
        if column.null_count == len(column):
            table = table.set_column(at, table.column_names[at], pa.nulls(len(column)))
    return table


def _rows_by_key(outcome: Done, scheme: KeyScheme) -> dict[keys.Key, list[dict[str, object]]]:
    """The rows of each item of an outcome, as the encoding of parked rows takes them."""
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
    """The rows as dicts; moments finer than Python has them stay Arrow's."""
    columns = {
        name: list(column) if "[ns" in str(column.type) else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
