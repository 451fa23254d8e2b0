"""Makes batches from pages of a table's rows, in memory that does not grow with the table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from resumable_tasks.checkpoint.form import Job
from resumable_tasks.checkpoint.sql.claims import Claims
from resumable_tasks.errors import InvalidKey
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.items.plan import WAITING, Planner, Planning, Waiting
from resumable_tasks.items.suspects import Suspected

Row = dict[str, Any]
T = TypeVar("T")

_MOST_ROWS = 1_000


def page_size(job: Job) -> int:
    """Rows per page: whole batches, enough for all workers, but leaving rows to other runs."""
    size = job.planning.batch_size
    return size * max(1, min(2 * job.at_once, _MOST_ROWS // size))


class TablePlanner(Planner):
    """Batches of the remaining rows. Remembers no keys, since the table has each key once.

    ``suspects`` returns the keys of a page's rows that failed before by an error of their own.
    """

    def __init__(
        self,
        planning: Planning,
        claims: Claims,
        found: int,
        set_aside: Set[bytes] = frozenset(),
        suspects: Callable[[Sequence[Row]], Set[bytes]] = lambda page: frozenset(),
    ) -> None:
        # A row without a usable key cannot be marked as failed; the user must exclude it by where=.
        super().__init__(replace(planning, on_bad_item="error"), KeyTable(), set_aside)
        self._claims = claims
        self._suspects_of = suspects
        self._suspects: Set[bytes] = frozenset()
        self.total = self.skipped = found

    def through(self, work: Callable[[], T]) -> T:
        """Call ``work``, which only reads, once the database answers, and return its result."""
        return self._claims.through(work)

    @property
    def row_bytes(self) -> float:
        """The approximate size of a row in bytes."""
        return self._claims.row_bytes

    def claim(self, these: Sequence[Any]) -> Set[Any]:
        """Claim these rows, in any order of keys. Returns the keys that are ours now."""
        return self._claims.take(these)

    def stop_when(self, stop: Callable[[], bool]) -> None:
        """Stop waiting for other runs' rows once ``stop`` returns true."""
        self._claims.stop = stop

    def stopping(self) -> bool:
        """True once waiting has been stopped."""
        return self._claims.stop()

    def batches(self, items: Any) -> Iterator[Batch | Waiting]:
        """Yield batches of the table's rows, and `WAITING` while there is none."""
        for page in self._claims.pages():
            if page:
                # A page at a time: claimed rows must not wait for rows of others to fill a batch.
                yield from self._batches_of(page)
            else:
                yield WAITING
        self.cut_short = self._claims.cut_short

    def _batches_of(self, page: list[Row]) -> Iterator[Batch]:
        self._suspects = self.through(partial(self._suspects_of, page))
        try:
            yield from self._row_batches(page)
        except InvalidKey as error:
            # The key identifies the row better than its position.
            spec = self._claims.spec
            names = ", ".join(spec.keys)
            raise InvalidKey(
                f"a row of table {spec.table} has no usable key ({names}): {error}. Correct it, or "
                "leave it out by SqlCheckpoint(where=…)"
            ) from None

    def _admit(self, lines: list[bytes], items: Any) -> Sequence[int]:
        self.total += len(lines)
        every = range(len(lines))
        return self._without_set_aside(lines, every) if self._set_aside else every

    def _suspected(self) -> Suspected | None:
        return self._suspects.__contains__ if self._suspects else None
