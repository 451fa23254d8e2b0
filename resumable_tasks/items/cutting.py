"""Batches of so many items, and of so much weight."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from resumable_tasks.base import log
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Chunk
from resumable_tasks.items.weights import Weight


class MaxWeight(NamedTuple):
    """The limit of a batch's weight: how much, of what, and as it was given."""

    most: float
    measure: Callable[[Weight], float]
    given: object


class Filling:
    """The batch that is being filled. ``count`` items are in it.

    With a limit of weight no batch is heavier, but for one of a single item; and each one that is
    given out because the next item does not fit has half of it at least: of the two, the heavier
    goes, and the other stays.
    """

    def __init__(self, limit: MaxWeight | None) -> None:
        self._limit = limit
        self._chunks: list[Chunk] = []
        self._weight = 0.0
        self._warned = False
        self.count = 0

    def add(self, chunk: Chunk) -> Iterable[Chunk]:
        """Take these items in; the batches that are full by their weight."""
        if self._limit is not None:
            return self._cut(chunk, self._limit)
        if len(chunk):
            self._chunks.append(chunk)
            self.count += len(chunk)
        return ()

    def _cut(self, chunk: Chunk, limit: MaxWeight) -> Iterator[Chunk]:
        fitting: list[int] = []  # of this chunk, in the batch that is being filled
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
        """The batch as it is now; the next one is begun."""
        taken = Chunk.joined(self._chunks)
        self._chunks, self.count, self._weight = [], 0, 0.0
        return taken

    def pieces(self, chunk: Chunk) -> Iterator[Chunk]:
        """All of these items in batches, of which nothing is kept."""
        yield from self.add(chunk)
        if self.count:
            yield self.take()

    def _warn(self, line: bytes, weight: float, limit: MaxWeight) -> None:
        if not self._warned:
            self._warned = True
            log.warning(
                "the item %s weighs %s, above max_weight=%r: it is handled alone, and so are "
                "others like it",
                keys.shown(keys.parse(line)),
                f"{weight:,.0f}",
                limit.given,
            )
