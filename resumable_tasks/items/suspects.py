"""Puts items that failed before into separate batches, so that no good item fails with them."""

from __future__ import annotations

from collections.abc import Callable

from resumable_tasks.items.batch import Chunk

Suspected = Callable[[bytes], bool]
"""True if the item with this key failed alone in an earlier run."""


class SuspectsApart:
    """Removes suspects from the planned items, and keeps them until they fill a batch."""

    def __init__(self, suspected: Suspected | None, size: int) -> None:
        self._suspected = suspected
        self._size = size
        self._kept: list[Chunk] = []

    def take_out(self, chunk: Chunk) -> Chunk:
        """Return the chunk without its suspects, which are kept."""
        if self._suspected is None:
            return chunk
        apart = {at for at, line in enumerate(chunk.lines) if self._suspected(line)}
        if not apart:
            return chunk
        self._kept.append(chunk.choose(sorted(apart)))
        return chunk.choose([at for at in range(len(chunk)) if at not in apart])

    @property
    def any(self) -> bool:
        """True if any suspects are kept."""
        return bool(self._kept)

    def next_chunk(self, *, all_there_are: bool = False) -> Chunk | None:
        """Return the suspects of one batch, or None if there are too few.

        ``all_there_are``: return fewer than a batch too.
        """
        if not self._kept:
            return None
        count = sum(map(len, self._kept))
        if count < self._size and not all_there_are:
            return None
        every = Chunk.joined(self._kept)
        self._kept = [every.choose(range(self._size, count))] if count > self._size else []
        return every.choose(range(min(self._size, count)))
