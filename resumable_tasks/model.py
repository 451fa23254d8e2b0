"""The records that travel between the modules: frozen, slotted, free of behaviour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.keys import Key

if TYPE_CHECKING:
    import pyarrow as pa

ResultsMode = Literal["one", "many", "none"]
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


@dataclass(frozen=True, slots=True)
class CurrentBatch:
    """What a handler may know of the batch it is handling.

    ``id`` is the same whenever the same items are handled together, ``key`` of an item always:
    use them as idempotency keys of effects outside. ``attempt`` counts from 1 in this run.
    """

    id: str
    keys: tuple[Key, ...]
    attempt: int


@dataclass(frozen=True, slots=True)
class ItemFailure:
    """A handler puts this among its results to fail one item and not its whole batch.

    ``key`` is the item's key, ``error`` an exception or a message.
    """

    key: Key
    error: BaseException | str


@dataclass(frozen=True, slots=True)
class Failure:
    """An item that failed, as the journal keeps it. ``attempts`` counts over all runs.

    ``error`` is the name of the exception's class, ``batch`` the id of the batch it failed in,
    ``time`` is UTC in ISO 8601. ``item`` is the item itself, as JSON has it, where the job says
    ``keep_failed_items=True``.
    """

    key: Key
    error: str
    message: str
    attempts: int = 1
    batch: str = ""
    time: str = ""
    traceback: str = ""
    item: Any = None


@dataclass(frozen=True, slots=True)
class Shard:
    """An immutable Parquet file of the checkpoint, as the commit that names it describes it.

    ``path`` is relative to the checkpoint; ``checksum`` is the BLAKE2b-128 of the whole file, as
    ``b2sum -l 128`` prints it; ``keys`` is how many of the commit's keys have their rows here, in
    the order in which the commit names its shards.
    """

    path: str
    rows: int
    bytes: int
    checksum: str
    keys: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a batch came back with.

    ``done`` are the canonical keys that are complete, newline-joined, ``completed`` how many.
    Their rows, of this ``schema``, are in ``table`` (not yet written) or in ``shard`` (written by
    a remote worker); all three are None if there are no rows. ``seconds`` is the time in the
    handler, ``began`` and ``ended`` (monotonic seconds of this machine) are those of its last
    call. ``raised`` is the class of the error that the whole batch has failed with, if it has,
    ``transient`` whether that may be otherwise at another time, and ``outage`` whether it looks
    like a service's. ``cost`` is in the unit of the job's ``cost``, NaN if
    it could not be had. ``dropped`` is a batch that was not handled because the run is stopping,
    or is to stop because of this batch: ``why_dropped`` says why. ``fatal`` is an exception that
    is no failure of the batch but ends the run.
    """

    batch: Batch
    done: bytes = b""
    completed: int = 0
    table: pa.Table | None = None
    shard: Shard | None = None
    schema: pa.Schema | None = None
    failures: tuple[Failure, ...] = ()
    seconds: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    raised: str = ""
    transient: bool = False
    outage: bool = False
    cost: float = 0.0
    dropped: bool = False
    why_dropped: str = ""
    fatal: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """One record of the journal: what a driver has added to the checkpoint in one step.

    ``kind``: ``claim`` (a driver begins its tenure), ``commit`` (keys and failures), ``close``
    (a run has ended), ``repair`` (keys whose shards are damaged are missing again), ``lost``
    (stands where a damaged record stood), ``release`` (failures whose attempts are forgotten).
    ``number``, ``previous`` and ``checksum`` are set by the journal when it is appended.
    ``schema`` is the unified schema of the results from here on, where it has changed. ``info``
    holds what belongs to the kind alone.

    What is ``retracted`` is so before ``keys`` are completed: a commit that does items anew takes
    back all keys of the shards that hold their old rows, and completes them all again.
    ``fingerprints`` are newline-joined and parallel to ``keys``, empty where a key has none;
    ``adopted`` are keys that were completed without one, and have one from here on.
    """

    kind: Literal["claim", "commit", "close", "repair", "lost", "release"]
    epoch: int
    run: str
    number: int = -1
    time: str = ""
    nonce: str = ""
    previous: str = ""
    checksum: str = ""
    keys: bytes = b""
    key_count: int = 0
    shards: tuple[Shard, ...] = ()
    schema: str | None = None
    failures: tuple[Failure, ...] = ()
    retracted: bytes = b""
    fingerprints: bytes = b""
    adopted: bytes = b""
    adopted_fingerprints: bytes = b""
    info: Mapping[str, Any] = field(default_factory=dict)
