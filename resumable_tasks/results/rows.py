"""Selections of committed rows: in memory, in order, of some items only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.checkpoint.form import CommittedRows
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.walk import Seen
from resumable_tasks.results.files import TARGET_BYTES

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rows to publish, and how: see `resumable_tasks.results.publish.publish`."""

    ordered: bool = False
    positions: Seen | None = None
    given: Seen | None = None
    target_bytes: int = TARGET_BYTES

    def of(self, rows: CommittedRows) -> CommittedRows:
        """The rows of the wanted items."""
        return rows if self.given is None else given_rows(rows, self.given)

    def tables(self, rows: CommittedRows) -> Iterator[pa.Table]:
        """These rows in pieces, in the wanted order."""
        return iter([ordered_table(rows, self.positions)]) if self.ordered else rows.tables()


def table(rows: CommittedRows) -> pa.Table:
    """All rows in memory, in commit order."""
    import pyarrow as pa

    parts = list(rows.tables())
    return pa.concat_tables(parts) if parts else rows.schema.empty_table()


def ordered_table(rows: CommittedRows, positions: Seen | None) -> pa.Table:
    """All rows in memory: in the order of this run's items, then those of other items by key.

    Without positions all rows are sorted by key. Integers come before strings.
    """
    from resumable_tasks.items import arrow

    found = table(rows)
    if found.num_rows == 0:
        return found
    lines = KeyScheme.of(rows.key).lines_of(found, positions or ())
    order: list[tuple[Any, ...]] = []
    for at, (line, key) in enumerate(zip(lines, keys.parse_lines(keys.join(lines)), strict=True)):
        position = positions.get(line) if positions is not None else None
        order.append((1, keys.sortable(key), at) if position is None else (0, position, at))
    return arrow.taken(found, [entry[-1] for entry in sorted(order)])


def given_rows(rows: CommittedRows, given: Seen) -> CommittedRows:
    """Only the rows of these items."""
    import pyarrow as pa

    scheme = KeyScheme.of(rows.key)

    def tables() -> Iterator[pa.Table]:
        for part in rows.tables():
            lines = scheme.lines_of(part, given)
            yield part.filter(pa.array([line in given for line in lines], pa.bool_()))

    return replace(rows, tables=tables, pieces=(), after=None)
