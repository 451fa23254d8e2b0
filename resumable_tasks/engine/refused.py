"""Results that the checkpoint refuses: which items they are of, without one more call.

They are paid for. So the rows of a batch are halved, and not the batch, until those that are
refused stand alone; the others are kept.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from resumable_tasks.checkpoint.form import Unit
from resumable_tasks.errors import ResultConflict
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners import failures
from resumable_tasks.runners.outcome import Done, Times

if TYPE_CHECKING:
    import pyarrow as pa

# So many batches in a row, of so many items, of which nothing could be kept: the next ones will
# fare no better.
_BATCHES, _ITEMS = 5, 30


class Refused:
    """Adds outcomes to a unit, as far as the checkpoint takes their rows.

    ``hopeless`` says why the run should end: all that is handled is refused. With a
    ``pause_after`` of None it never should.
    """

    def __init__(self, scheme: KeyScheme, pause_after: int | None) -> None:
        self._scheme = scheme
        self._never = pause_after is None
        self._batches = self._items = 0
        self.hopeless: str | None = None

    def add(self, unit: Unit, outcome: Done) -> list[Done]:
        """Add the outcome, or parts of it; these as they will be committed.

        Raises `ResultConflict` where rows do not fit that a worker has written to a shard.
        """
        try:
            found = self._add(unit, outcome)
        except ResultConflict as error:
            self._count(outcome, str(error))
            raise
        if any(each.completed for each in found):
            self._batches = self._items = 0
        elif outcome.completed and found[-1].failures:
            self._count(outcome, found[-1].failures[-1].message)
        return found

    def _count(self, outcome: Done, why: str) -> None:
        self._batches += 1
        self._items += outcome.completed
        if self._batches >= _BATCHES and self._items >= _ITEMS and not self._never:
            self.hopeless = f"the results of {self._batches} batches in a row were refused: {why}"

    def _add(self, unit: Unit, outcome: Done) -> list[Done]:
        try:
            return [unit.add(outcome)]
        except ResultConflict as error:
            if outcome.completed and outcome.shard is not None:
                raise
            if outcome.completed < 2 or self.hopeless:
                return [unit.add(_refused(outcome, error))]
        return [each for half in self._halves(outcome) for each in self._add(unit, half)]

    def _halves(self, outcome: Done) -> list[Done]:
        lines = list(keys.split(outcome.done))
        middle = len(lines) // 2
        # What is of the batch as a whole goes with the first half.
        rest = replace(outcome, failures=(), times=Times(), cost=0.0)
        return [
            self._part(outcome, lines[:middle]),
            self._part(rest, lines[middle:]),
        ]

    def _part(self, outcome: Done, lines: list[bytes]) -> Done:
        table = outcome.table
        if table is not None:
            import pyarrow as pa

            wanted = set(lines)
            here = [line in wanted for line in self._scheme.lines_of(table, wanted)]
            table = table.filter(pa.array(here, pa.bool_()))
            table = _retyped(table) if table.num_rows else None
        return replace(
            outcome,
            done=keys.join(lines),
            completed=len(lines),
            table=table,
            schema=table.schema if table is not None else None,
        )


def _retyped(table: pa.Table) -> pa.Table:
    """Columns without a value have no type that could be in the way."""
    import pyarrow as pa

    for at, column in enumerate(table.columns):
        if column.null_count == len(column):
            table = table.set_column(at, table.column_names[at], pa.nulls(len(column)))
    return table


def _refused(outcome: Done, error: ResultConflict) -> Done:
    """The outcome with its items failed by this error."""
    done = [(key, error) for key in keys.parse_lines(outcome.done)]
    failed = outcome.failures + failures.records(outcome.batch, done, 1)
    return replace(outcome, done=b"", completed=0, table=None, schema=None, failures=failed)
