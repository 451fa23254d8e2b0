"""Keeps the rows that a handler yielded before it failed: they are paid for."""

from __future__ import annotations

from typing import Any

from resumable_tasks.errors import MissingResult
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.match import carry_keys, match
from resumable_tasks.runners.outcome import ResultsMode
from resumable_tasks.runners.values.columns import Columns
from resumable_tasks.runners.values.frames import is_arrow, spread


def may_keep(gave: list[Any], scheme: KeyScheme, results: ResultsMode) -> bool:
    """True if these rows of a call can be kept without the rows that were still to come."""
    return results == "one" and carry_keys(gave, scheme)


class Kept:
    """The ``rows`` that failed calls with a batch have returned.

    Rows are kept if they carry the keys of their items and each item has one row; with several rows
    per item, some may be missing. ``left``: the batch of the other items, for the next call.
    """

    def __init__(
        self, batch: Batch, scheme: KeyScheme, results: ResultsMode, columns: Columns
    ) -> None:
        self._batch = batch
        self._how = (scheme, results, columns)
        self.rows: list[Any] = []
        self.left = batch

    def and_also(self, gave: Any) -> list[Any]:
        """Return the kept rows and those of one more call, as rows or as tables."""
        more = [gave] if is_arrow(gave) and type(gave) is not list else [*gave]
        if self.rows and more and is_arrow(self.rows) != is_arrow(more):
            return spread([*self.rows, *more])
        return [*self.rows, *more]

    def add(self, gave: Any) -> None:
        """Keep the rows that a call returned before it failed."""
        if type(gave) is not list or not may_keep(gave, *self._how[:2]):
            return
        try:
            rows = self.and_also(gave)
            matched = match(rows, self._batch, *self._how)
        except Exception:  # noqa: BLE001 - the rows match no items, and the call has failed anyway
            return
        missing = {key for key, error in matched.failed if isinstance(error, MissingResult)}
        places = [at for at, key in enumerate(self._batch.keys) if key in missing]
        if len(places) < len(self.left):
            self.rows = rows
            self.left = self._batch.choose(places, self._batch.number, self._batch.part_of)
