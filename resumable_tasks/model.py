"""The records that travel between the modules: frozen, slotted, free of behaviour."""

from __future__ import annotations

from collections.abc import Mapping
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
class Batch:
    """Up to ``batch_size`` keyed items for one call of the handler.

    ``number`` counts the batches of this run; ``lines`` are the canonical keys, newline-joined,
    in the order of ``keys`` and ``items``.
    """

    number: int
    keys: list[Key]
    lines: bytes
    items: Rows

    @property
    def id(self) -> str:
        """A digest of the keys: the same in every run that makes a batch of the same items."""
        return blake2b(self.lines, digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.keys)


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
    ``time`` is UTC in ISO 8601.
    """

    key: Key
    error: str
    message: str
    attempts: int = 1
    batch: str = ""
    time: str = ""
    traceback: str = ""


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
    handler. ``dropped`` is a batch that was never started because the run is stopping; ``fatal``
    is an exception that is no failure of the batch but ends the run.
    """

    batch: Batch
    done: bytes = b""
    completed: int = 0
    table: pa.Table | None = None
    shard: Shard | None = None
    schema: pa.Schema | None = None
    failures: tuple[Failure, ...] = ()
    seconds: float = 0.0
    dropped: bool = False
    fatal: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Commit:
    """One record of the journal: what a driver has added to the checkpoint in one step.

    ``kind``: ``claim`` (a driver begins its tenure), ``commit`` (keys and failures), ``close``
    (a run has ended), ``repair`` (keys whose shards are damaged are missing again), ``lost``
    (stands where a damaged record stood). ``number``, ``previous`` and ``checksum`` are set by
    the journal when it is appended. ``schema`` is the unified schema of the results from here
    on, where it has changed. ``info`` holds what belongs to the kind alone.

    What is ``retracted`` is so before ``keys`` are completed: a commit that does items anew takes
    back all keys of the shards that hold their old rows, and completes them all again.
    ``fingerprints`` are newline-joined and parallel to ``keys``, empty where a key has none;
    ``adopted`` are keys that were completed without one, and have one from here on.
    """

    kind: Literal["claim", "commit", "close", "repair", "lost"]
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
