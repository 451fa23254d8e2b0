"""A batch: keyed items for one call of the handler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from resumable_tasks.items.keys import Key

Rows = Any
"""What a handler is given: a list of items, or a ``pyarrow.RecordBatch``."""


@dataclass(frozen=True, slots=True)
class Part:
    """Why some items of a batch are handled again, as a batch of their own.

    ``root`` is the number of the batch that was planned, ``attempts`` how often it was tried, and
    ``error`` the class of the error it failed with: a part of it that fails with the same one is
    not retried.
    """

    root: int
    attempts: int
    error: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Up to ``batch_size`` keyed items for one call of the handler.

    ``number`` counts the batches of this run; ``lines`` are the canonical keys, newline-joined,
    in the order of ``keys`` and ``items``. ``part_of`` says why it is handled again, if it is.
    """

    number: int
    keys: list[Key]
    lines: bytes
    items: Rows
    part_of: Part | None = None

    @property
    def id(self) -> str:
        """A digest of the keys: the same in every run that makes a batch of the same items."""
        return blake2b(self.lines, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def slice(self, start: int, stop: int, number: int, part_of: Part | None) -> Batch:
        """Some of its items in a row, as a batch of their own."""
        lines = self.lines.split(b"\n")[start:stop]
        # Record batches have a ``slice`` of their own, which copies nothing.
        items = (
            self.items[start:stop]
            if isinstance(self.items, list)
            else self.items.slice(start, stop - start)
        )
        return Batch(number, self.keys[start:stop], b"\n".join(lines), items, part_of)

    def choose(self, indexes: Sequence[int], number: int, part_of: Part) -> Batch:
        """Some of its items, by their indexes, as a batch of their own."""
        lines = self.lines.split(b"\n")
        items = (
            [self.items[at] for at in indexes]
            if isinstance(self.items, list)
            else self.items.take(list(indexes))
        )
        return Batch(
            number,
            [self.keys[at] for at in indexes],
            b"\n".join(lines[at] for at in indexes),
            items,
            part_of,
        )
