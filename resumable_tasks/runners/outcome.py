"""What a batch comes back with from a runner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import Key

if TYPE_CHECKING:
    import pyarrow as pa

ResultsMode = Literal["one", "many", "none"]


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
