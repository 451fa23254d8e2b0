"""Takes items from their source: a few at a time, but many while all are completed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from time import monotonic
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.signals import read

if TYPE_CHECKING:
    import pyarrow as pa

# The most items skipped at once, so that they fit a processor's cache; for Arrow more, because it
# makes no objects. Slow sources return what they have after a few hundredths of a second.
_MOST_AT_ONCE, MOST_OF_ARROW, _PIECE, _SLOW_SECONDS = 512, 16_384, 64, 0.05

Take = Callable[..., Any]
"""Takes up to the given number of items; returns an empty sequence at the end."""


class Listed:
    """Takes the items of an iterable in lists; raises its error after the items before it."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._source = iter(items)
        self._raised: Exception | None = None

    def take(self, most: int) -> list[Any]:
        """Return up to ``most`` items, fewer if they come slowly, none at the end."""
        if self._raised is not None:
            raise self._raised
        found: list[Any] = []
        began = monotonic()
        try:
            while left := most - len(found):
                before = len(found)
                found.extend(islice(self._source, min(left, _PIECE)))
                if len(found) == before or monotonic() - began > _SLOW_SECONDS:
                    break
        except Exception as error:
            if not found:
                raise
            self._raised = error
        return found


class Ahead:
    """Takes items; while all are completed, skips more and more of them at once."""

    def __init__(
        self, take: Callable[[int], Any], skip: Callable[[Any], bool], at_once: int
    ) -> None:
        self._at_once = at_once or _MOST_AT_ONCE
        self._take = take
        self._skip = skip
        self._size = 0
        # The items read but not skipped, and how many of them were returned already.
        self._rest: Any = ()
        self._at = 0

    def take(self, most: int, *_: Any) -> Any:
        while self._at >= len(self._rest):
            found = read(partial(self._take, self._size or most))
            if not len(found):
                return found
            if self._skip(found):
                self._size = min(2 * max(most, len(found)), self._at_once)
            else:
                self._rest, self._at, self._size = found, 0, 0
        start, self._at = self._at, self._at + most
        if isinstance(self._rest, list):
            return self._rest[start : self._at]
        return self._rest.slice(start, most)


def slices(record_batches: Iterator[pa.RecordBatch]) -> Callable[..., Any]:
    """Return a function that takes up to ``most`` further rows, from one record batch at a time."""
    rest: Any = ()

    def take(most: int, *_: Any) -> Any:
        nonlocal rest
        while not len(rest):
            rest = next(record_batches, None)
            if rest is None:
                rest = ()
                return ()
        taken, rest = rest.slice(0, most), rest.slice(most)
        return taken

    return take
