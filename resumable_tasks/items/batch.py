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
"""The items passed to a handler: a list, or a ``pyarrow.RecordBatch``."""


class Cause(Enum):
    """The origin of an error, as far as it determines what happens next."""

    RAISED = "raised"
    """The handler raised it, or returned results that do not match the batch."""
    LEFT_OUT = "left out"
    """The handler returned no row for an item."""
    WORKER_LOST = "worker lost"
    """The process that handled the batch died."""
    STOPPED = "stopped"
    """The run stops, and the handler did not reach these items."""


@frozen
class ErrorKind:
    """The facts about an error that are kept after the exception is gone.

    ``name``: the name of its class. ``transient``: the same call may succeed later. ``outage``: the
    error looks like a failure of the service, not of an item. ``shape``: the results cannot be
    matched to the batch, for example because there are too few rows. ``environment``: the program's
    environment is at fault, not an item.
    """

    name: str
    cause: Cause = Cause.RAISED
    transient: bool = False
    outage: bool = False
    shape: bool = False
    environment: bool = False


@frozen
class Part:
    """Why some items of a batch are handled again, as a separate batch.

    ``root``: the number of the planned batch. ``error``: the error it failed with; if the part
    fails with the same error, it is not retried. None: the items were not at fault, and the batch
    is handled again unchanged. ``rounds``: how often a service has left these items undone.
    """

    root: int
    error: ErrorKind | None
    rounds: int = 0


@frozen
class Batch:
    """Up to ``batch_size`` keyed items for one call of the handler.

    ``number`` counts the batches of this run. ``lines``: the canonical keys, newline-joined.
    ``keys``, ``lines``, ``items``, ``fingerprints`` and ``weights`` have the same order; the last
    two are empty if the job does not use them. ``part_of``: why the batch is handled again, or
    None. ``suspects``: all items failed alone in an earlier run. ``trace``: the headers that link
    the spans of its calls, in any process, to its own span (W3C Trace Context), or None.
    ``submission``: the submission of an earlier run; the batch then has keys but no items.
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
        """A digest of the keys; the same in every run for a batch of the same items."""
        return blake2b(self.lines, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)

    def slice(self, start: int, stop: int, number: int, part_of: Part | None) -> Batch:
        """Return a range of its items as a separate batch."""
        lines = self.lines.split(b"\n")[start:stop]
        items = _sliced(self.items, start, stop)
        keys, found = self.keys[start:stop], self.fingerprints[start:stop]
        return Batch(
            *(number, keys, b"\n".join(lines), items, part_of, self.suspects, found),
            weights=self.weights[start:stop],
        )

    def choose(self, indexes: Sequence[int], number: int, part_of: Part | None) -> Batch:
        """Return the items at these indexes as a separate batch."""
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
    """Consecutive items with their keys, before they become a batch.

    ``lines`` are the canonical keys, ``items`` a list or a ``pyarrow.RecordBatch``;
    ``fingerprints`` and ``weights`` are empty if the job does not use them.
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
        """Yield consecutive parts: the first of up to ``first`` items, others of up to ``size``."""
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
        """Join chunks whose items have the same type."""
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
    # ``slice`` of a record batch copies nothing.
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
    except pa.ArrowInvalid:  # the joined text is too long for one array
        from resumable_tasks.items import arrow

        return pa.concat_batches([arrow.with_large_offsets(batch) for batch in items])
