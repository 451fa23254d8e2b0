"""A batch: keyed items for one call of the handler."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.hashes import blake2b
from resumable_tasks.items.keys import Key

if TYPE_CHECKING:
    from resumable_tasks.items.submission import Submission
    from resumable_tasks.items.weights import Weight

Rows = Any
"""What a handler is given: a list of items, or a ``pyarrow.RecordBatch``."""


class Cause(Enum):
    """The origin of an error, as far as it decides what is done next."""

    RAISED = "raised"
    """The handler raised it, or returned what does not match its batch."""
    LEFT_OUT = "left out"
    """The handler returned no row for an item."""
    WORKER_LOST = "worker lost"
    """The process that handled the batch died."""
    STOPPED = "stopped"
    """The run stops: the handler has not come to these items."""


@frozen
class ErrorKind:
    """The facts about an error that outlive the exception itself.

    ``name`` is the name of its class. ``transient``: the same call may succeed at another time.
    ``outage``: the error looks like a service's, and not like an item's. ``shape``: what the
    handler returned has a form that cannot be matched to a batch, such as too few rows.
    ``environment``: nothing of the item is at fault, but what the program was started in.
    """

    name: str
    cause: Cause = Cause.RAISED
    transient: bool = False
    outage: bool = False
    shape: bool = False
    environment: bool = False


@frozen
class Part:
    """Why some items of a batch are handled again, as a batch of their own.

    ``root`` is the number of the batch that was planned.
    ``error`` is what it failed with: a part of it that fails with the same one is not retried.
    None: its items were not at fault, and it is handled again as it was. ``rounds`` is how often a
    service was given its items before, and has left them undone.
    """

    root: int
    error: ErrorKind | None
    rounds: int = 0


@frozen
class Batch:
    """Up to ``batch_size`` keyed items for one call of the handler.

    ``number`` counts the batches of this run; ``lines`` are the canonical keys, newline-joined,
    in the order of ``keys`` and ``items``, as are the ``fingerprints`` of the items, empty where
    none are taken. ``part_of`` says why it is handled again, if it is. ``suspects``: all of its
    items have failed by themselves in an earlier run. ``trace``: the headers by which the spans of
    its calls find its own span in any process (W3C Trace Context); None where nothing is traced.
    ``submission``: what an earlier run has made of it; the items are not known then, only the keys.
    ``weights``: of its items, empty where nobody asks for them.
    """

    number: int
    keys: list[Key]
    lines: bytes
    items: Rows
    part_of: Part | None = None
    suspects: bool = False
    fingerprints: Sequence[int] = ()
    trace: Mapping[str, str] | None = None
    submission: Submission | None = None
    weights: Sequence[Weight] = ()

    @property
    def id(self) -> str:
        """A digest of the keys: the same in every run that makes a batch of the same items."""
        return blake2b(self.lines, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def slice(self, start: int, stop: int, number: int, part_of: Part | None) -> Batch:
        """Some of its items in a row, as a batch of their own."""
        lines = self.lines.split(b"\n")[start:stop]
        items = _sliced(self.items, start, stop)
        keys, found = self.keys[start:stop], self.fingerprints[start:stop]
        return Batch(
            *(number, keys, b"\n".join(lines), items, part_of, self.suspects, found),
            weights=self.weights[start:stop],
        )

    def choose(self, indexes: Sequence[int], number: int, part_of: Part | None) -> Batch:
        """Some of its items, by their indexes, as a batch of their own."""
        lines = self.lines.split(b"\n")
        items = _chosen(self.items, indexes)
        return Batch(
            number,
            [self.keys[at] for at in indexes],
            b"\n".join(lines[at] for at in indexes),
            items,
            part_of,
            self.suspects,
            [self.fingerprints[at] for at in indexes] if self.fingerprints else (),
            weights=[self.weights[at] for at in indexes] if self.weights else (),
        )


@frozen
class Chunk:
    """Consecutive items with their keys, before they are a batch.

    ``lines`` are the canonical keys, ``items`` a list or a ``pyarrow.RecordBatch``;
    ``fingerprints`` and ``weights`` are empty where none are taken.
    """

    keys: list[Key]
    lines: list[bytes]
    fingerprints: Sequence[int]
    items: Rows
    weights: Sequence[Weight] = ()

    def __len__(self) -> int:
        return len(self.lines)

    def choose(self, indexes: Sequence[int]) -> Chunk:
        """Return the items at these indexes, in this order."""
        every = range(len(self.lines))
        if indexes == every or list(indexes) == list(every):
            return self
        return Chunk(
            [self.keys[at] for at in indexes],
            [self.lines[at] for at in indexes],
            [self.fingerprints[at] for at in indexes] if self.fingerprints else (),
            _chosen(self.items, indexes),
            [self.weights[at] for at in indexes] if self.weights else (),
        )

    def pieces(self, first: int, size: int) -> Iterator[Chunk]:
        """Consecutive parts: one of up to ``first`` items, and others of up to ``size``."""
        if len(self) <= first:
            yield self
            return
        for start, stop in pairwise([0, *range(first, len(self), size), len(self)]):
            yield Chunk(
                self.keys[start:stop],
                self.lines[start:stop],
                self.fingerprints[start:stop],
                _sliced(self.items, start, stop),
                self.weights[start:stop],
            )

    @classmethod
    def joined(cls, chunks: Sequence[Chunk]) -> Chunk:
        """Join chunks of one kind of items."""
        if len(chunks) == 1:
            return chunks[0]
        return cls(
            [key for chunk in chunks for key in chunk.keys],
            [line for chunk in chunks for line in chunk.lines],
            [fingerprint for chunk in chunks for fingerprint in chunk.fingerprints],
            _joined([chunk.items for chunk in chunks]),
            [weight for chunk in chunks for weight in chunk.weights],
        )


def _sliced(items: Rows, start: int, stop: int) -> Rows:
    # Record batches have a ``slice`` of their own, which copies nothing.
    return items[start:stop] if isinstance(items, list) else items.slice(start, stop - start)


def _chosen(items: Rows, indexes: Sequence[int]) -> Rows:
    if isinstance(items, list):
        return [items[at] for at in indexes]
    return items.take(list(indexes)) if len(indexes) else items.slice(0, 0)


def _joined(items: list[Any]) -> Rows:
    if isinstance(items[0], list):
        return [item for some in items for item in some]
    import pyarrow as pa

    try:
        return pa.concat_batches(items)
    except pa.ArrowInvalid:  # the text of all is too long for one array
        from resumable_tasks.items import arrow

        return pa.concat_batches([arrow.with_large_offsets(batch) for batch in items])
