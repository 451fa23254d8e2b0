"""Pages of a table's rows → batches, in memory that does not grow with the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from typing import Any

from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.sql.claims import Claims
from resumable_tasks.errors import InvalidKey
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planner
from resumable_tasks.task.options import JobOptions

_MOST_ROWS = 1_000


def page_size(options: JobOptions) -> int:
    """Rows a page: whole batches, enough for all workers, few enough to be left to others."""
    size = options.batch_size
    return size * max(1, min(2 * options.most_at_once, _MOST_ROWS // size))


class TablePlanner(Planner):
    """Batches of the rows that are left. A key is in the table once, so none is remembered."""

    def __init__(
        self,
        scheme: KeyScheme,
        options: JobOptions,
        claims: Claims,
        found: int,
        set_aside: Set[bytes] = frozenset(),
    ) -> None:
        super().__init__(
            scheme,
            options.batch_size,
            State().done,
            batch_format=options.batch_format,
            set_aside=set_aside,
        )
        self._claims = claims
        self.total = self.skipped = found

    def batches(self, items: Any) -> Iterator[Batch]:
        """Batches of the table's rows; an empty one says that there is none for now."""
        for page in self._claims.pages():
            if page:
                # A page at a time: what is claimed must not wait for others to fill its batch.
                yield from self._batches_of(page)
            else:
                yield Batch(self.next_number(), [], b"", [])
        self.cut_short = self._claims.cut_short

    def _batches_of(self, page: list[dict[str, Any]]) -> Iterator[Batch]:
        try:
            yield from self._row_batches(page)
        except InvalidKey as error:
            # Which of the rows, the key itself says best.
            spec = self._claims.spec
            names = ", ".join(spec.keys)
            raise InvalidKey(
                f"a row of table {spec.table} has no usable key ({names}): {error}. Mend it, or "
                "leave it out by SqlCheckpoint(where=…)"
            ) from None

    def _admit(self, lines: list[bytes], items: Any) -> Sequence[int]:
        self.total += len(lines)
        every = range(len(lines))
        return self._without_set_aside(lines, every) if self._set_aside else every
