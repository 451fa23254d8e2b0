"""Results that the checkpoint refuses: which items they are of, without one more call.

They are paid for. So the rows of a batch are halved, and not the batch, until those that are
refused stand alone; the others are kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.checkpoint.form import CheckpointForm
from resumable_tasks.errors import InvalidKey, ResultConflict
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners import failures
from resumable_tasks.runners.outcome import Outcome

if TYPE_CHECKING:
    import pyarrow as pa

Accepted = tuple[list[Outcome], "pa.Schema | None"]

# So many batches in a row, of so many items, of which nothing could be kept: the next ones will
# fare no better.
_BATCHES, _ITEMS = 5, 30


class Conflicts:
    """Has outcomes accepted by the checkpoint, as far as they can be.

    ``hopeless`` says why the run should end: all that is handled is refused. With a
    ``pause_after`` of None it never should.
    """

    def __init__(
        self, checkpoint: CheckpointForm, scheme: KeyScheme, pause_after: int | None
    ) -> None:
        self._checkpoint = checkpoint
        self._scheme = scheme
        self._never = pause_after is None
        self._batches = self._items = 0
        self.hopeless: str | None = None

    def accept(
        self, outcome: Outcome, schema: pa.Schema | None, pending: Sequence[Outcome]
    ) -> Accepted:
        """The outcome, or parts of it, as they can be committed, and the schema with them.

        Raises `ResultConflict` where rows do not fit that a worker has written to a shard.
        """
        try:
            found, schema = self._accept(outcome, schema, pending)
        except ResultConflict as error:
            self._count(outcome, str(error))
            raise
        if any(each.completed for each in found):
            self._batches = self._items = 0
        elif outcome.completed and found[-1].failures:
            self._count(outcome, found[-1].failures[-1].message)
        return found, schema

    def _count(self, outcome: Outcome, why: str) -> None:
        self._batches += 1
        self._items += outcome.completed
        if self._batches >= _BATCHES and self._items >= _ITEMS and not self._never:
            self.hopeless = f"the results of {self._batches} batches in a row were refused: {why}"

    def _accept(
        self, outcome: Outcome, schema: pa.Schema | None, pending: Sequence[Outcome]
    ) -> Accepted:
        try:
            one, schema = self._checkpoint.accept(outcome, schema, pending)
        except ResultConflict as error:
            if outcome.completed and outcome.shard is not None:
                raise
            if outcome.completed < 2 or self.hopeless:
                one, schema = self._checkpoint.accept(_refused(outcome, error), schema, pending)
                return [one], schema
        else:
            return [one], schema
        found: list[Outcome] = []
        for half in self._halves(outcome):
            some, schema = self._accept(half, schema, [*pending, *found])
            found += some
        return found, schema

    def _halves(self, outcome: Outcome) -> list[Outcome]:
        lines = list(keys.split(outcome.done))
        middle = len(lines) // 2
        # What is of the batch as a whole goes with the first half.
        rest = replace(outcome, failures=(), seconds=0.0, cost=0.0)
        return [
            self._part(outcome, lines[:middle]),
            self._part(rest, lines[middle:]),
        ]

    def _part(self, outcome: Outcome, lines: list[bytes]) -> Outcome:
        table = outcome.table
        if table is not None:
            table = table.filter(self._mask(table, set(lines)))
            table = _retyped(table) if table.num_rows else None
        return replace(
            outcome,
            done=keys.join(lines),
            completed=len(lines),
            table=table,
            schema=table.schema if table is not None else None,
        )

    def _mask(self, table: pa.Table, wanted: set[bytes]) -> pa.Array:
        """Which rows are of these keys."""
        import pyarrow as pa

        columns = [table.column(name).to_pylist() for name in self._scheme.columns]
        each: Iterable[Any] = zip(*columns, strict=True) if self._scheme.composite else columns[0]
        return pa.array([_is_among(key, wanted) for key in each], pa.bool_())


def _is_among(key: Any, wanted: set[bytes]) -> bool:
    try:
        if keys.canonical(key) in wanted:
            return True
    except InvalidKey:
        pass
    # A tuple that a callable made stands in its column as its canonical text.
    return isinstance(key, str) and key.encode() in wanted


def _retyped(table: pa.Table) -> pa.Table:
    """Columns without a value have no type that could be in the way."""
    import pyarrow as pa

    for at, column in enumerate(table.columns):
        if column.null_count == len(column):
            table = table.set_column(at, table.column_names[at], pa.nulls(len(column)))
    return table


def _refused(outcome: Outcome, error: ResultConflict) -> Outcome:
    """The outcome with its items failed by this error."""
    done = [(key, error) for key in keys.parse_lines(outcome.done)]
    failed = outcome.failures + failures.records(outcome.batch, done, 1)
    return replace(outcome, done=b"", completed=0, table=None, schema=None, failures=failed)
