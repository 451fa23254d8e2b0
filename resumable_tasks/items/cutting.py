"""Cuts items into batches by number and by weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from resumable_tasks.base import log
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Chunk
from resumable_tasks.items.weights import Weight


class MaxWeight(NamedTuple):
    """The limit of a batch's weight: the value, the measure, and the option as given."""

    most: float
    measure: Callable[[Weight], float]
    given: object


class Filling:
    """The batch that is being filled; it has ``count`` items so far.

    With a weight limit, no batch is heavier than the limit, except a single item that is heavier.
    When the next item does not fit, the heavier of the two (the batch or that item) is returned and
    the other is kept, so that every batch returned this way is at least half full.
    """

    def __init__(self, limit: MaxWeight | None) -> None:
        self._limit = limit
        self._chunks: list[Chunk] = []
        self._weight = 0.0
        self._warned = False
        self.count = 0

    def add(self, chunk: Chunk) -> Iterable[Chunk]:
        """Add these items; return the batches that have become full by weight."""
        if self._limit is not None:
            return self._cut(chunk, self._limit)
        if len(chunk):
            self._chunks.append(chunk)
            self.count += len(chunk)
        return ()

    def _cut(self, chunk: Chunk, limit: MaxWeight) -> Iterator[Chunk]:
        fitting: list[int] = []  # indexes in this chunk that fit into the current batch
        for at, each in enumerate(chunk.weights):
            weight = limit.measure(each)
            if self._weight + weight <= limit.most:
                fitting.append(at)
                self._weight += weight
                continue
            if weight > limit.most:
                self._warn(chunk.lines[at], weight, limit)
            if weight > self._weight:
                yield chunk.choose([at])
                continue
            self._keep(chunk, fitting)
            yield self.take()
            fitting, self._weight = [at], weight
        self._keep(chunk, fitting)

    def _keep(self, chunk: Chunk, indexes: list[int]) -> None:
        if indexes:
            self._chunks.append(chunk.choose(indexes))
            self.count += len(indexes)

    def take(self) -> Chunk:
        """Return the batch as it is, and begin the next one."""
        taken = Chunk.joined(self._chunks)
        self._chunks, self.count, self._weight = [], 0, 0.0
        return taken

    def pieces(self, chunk: Chunk) -> Iterator[Chunk]:
        """Yield all of these items in batches; keep none."""
        yield from self.add(chunk)
        if self.count:
            yield self.take()

    def _warn(self, line: bytes, weight: float, limit: MaxWeight) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "item %s weighs %s, which is above max_weight=%r: it and other such items are "
                "handled alone",
                keys.shown(keys.parse(line)),
                f"{weight:,.0f}",
                limit.given,
            )
