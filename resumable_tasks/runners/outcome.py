"""The outcomes that a runner returns for a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import clean, count
from resumable_tasks.items.batch import Batch, ErrorKind
from resumable_tasks.items.keys import Key, shown, written
from resumable_tasks.runners.values.plaintable import PlainTable, arrow_table

if TYPE_CHECKING:
    import pyarrow as pa

ResultsMode = Literal["one", "many", "none"]


@frozen
class CurrentBatch:
    """The batch that a handler is handling.

    ``id`` is the same whenever the same items are handled together; an item's key never changes.
    Use them as idempotency keys for external effects. ``attempt`` counts from 1 in this run.
    """

    id: str
    keys: tuple[Key, ...]
    attempt: int
    _take: Callable[[Mapping[str, int | None], Mapping[str, str] | None], None] | None = field(
        default=None, repr=False, compare=False
    )

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy in another process has the data only: reports are taken where the call was made.
        return CurrentBatch, (self.id, self.keys, self.attempt)

    def report(
        self,
        *,
        tokens: int | None = None,
        input_tokens: int | None = None,
        bytes: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Correct what this call counts for in ``rate_limit=``, once its answer has arrived.

        Reports of one call add up: make one for each answer of the service. Until the call ends it
        counts for at least its estimate. Usage above the estimate delays later calls; reports
        improve the estimates, also for the next run. A report that concerns no rate does nothing.
        Safe in any thread of this process.

        Args:
            tokens: input and output tokens together, from the answer's ``usage``.
            input_tokens: the input tokens among them.
            bytes: bytes sent, for a rate of bytes.
            headers: headers of the answer. If the service reports less remaining quota than the
                next call needs, calls wait until there is more; with ``rate_limit="auto"`` the run
                keeps to its limits (``x-ratelimit-…``, ``anthropic-ratelimit-…``, ``retry-after``).

        Raises:
            UsageError: a value is neither a number from 0 nor None.
        """
        if self._take is not None:
            self._take({"tokens": tokens, "input_tokens": input_tokens, "bytes": bytes}, headers)


@frozen
class ItemFailure:
    """A result that fails one item instead of the whole batch.

    The handler returns it among its results. ``key`` is the item's key, ``error`` an exception or a
    message.
    """

    key: Key
    error: BaseException | str


Parked = tuple[Key, Sequence[Mapping[str, Any]], BaseException]
"""An item whose result is kept but does not fit the table: its key, all its rows, and why."""


@frozen
class Failure:
    """An item that failed, as recorded in the journal.

    ``attempts`` counts the calls with the item alone (with ``isolate=False``, with its batch), over
    all runs. ``error_of`` is "batch" if the call that raised the error had other items too.
    ``error`` is the name of the exception's class, ``batch`` the id of the batch it failed in,
    ``time`` is UTC in ISO 8601. ``item`` is the item itself, as JSON, if the job has
    ``Failing(keep_items=True)``.

    ``rows`` is set if the item has not failed but is *parked*: its result does not fit the table.
    They are all rows of the item, complete, in the encoding of
    `resumable_tasks.runners.values.encoding`. ``fingerprint`` is then that of the handled item, -1
    if none was taken.

    ``position`` is set if the item has no usable key, or the key of another item: its position
    among the items, from 0, which ``key`` then contains.
    """

    key: Key
    error: str
    message: str
    attempts: int = 1
    batch: str = ""
    time: str = ""
    traceback: str = ""
    item: Any = None
    error_of: Literal["item", "batch"] = "item"
    rows: tuple[Any, ...] | None = None
    position: int | None = None
    fingerprint: int = -1

    def __repr__(self) -> str:
        state = "parked, " if self.parked else ""
        tries = count(self.attempts, "attempt")
        error, message = clean(self.error, 80), clean(self.message, 200)
        return f"<Failure of {shown(self.key)}: {error}: {message} ({state}{tries})>"

    def _repr_html_(self) -> str:
        from resumable_tasks.base.html import lines_of, table

        names = ("key", "error", "message", "attempts", "batch", "time", "item")
        values = {name: getattr(self, name) for name in names} | {"key": written(self.key)}
        rows = [(name, value) for name, value in values.items() if value not in (None, "")]
        return table("parked" if self.parked else "failed", rows) + lines_of(self.traceback)

    @property
    def parked(self) -> bool:
        """True if the item's result is kept until it fits the table."""
        return self.rows is not None


@frozen
class Shard:
    """An immutable Parquet file of the checkpoint, as described by the commit that names it.

    ``path`` is relative to the checkpoint. ``checksum``: the BLAKE2b-128 of the whole file, as
    ``b2sum -l 128`` prints it. ``keys``: how many of the commit's keys have their rows here; keys
    come in the order in which the commit names its shards.
    """

    path: str
    rows: int
    bytes: int
    checksum: str
    keys: int


TOLD, RATE, ADAPTIVE, RETRIES = "told", "rate", "adaptive", "retries"
WRITE, START = "write", "start"
SERVICE = "service"


@frozen
class Times:
    """The number and the duration of the handler's calls with one batch.

    ``seconds``: the time in the handler, over all calls. ``began`` and ``ended``: of the last call,
    in monotonic seconds of this machine. ``calls``: more than 1 if the batch was retried or told to
    wait. ``failed``: the error and the seconds of each call before the last. ``waits``: the seconds
    outside the calls, by reason: `TOLD` to wait by the service, the job's own `RATE`, the
    `ADAPTIVE` limit, pauses before `RETRIES`, the `WRITE` of rows by a worker, the `START` of a
    worker.
    """

    seconds: float = 0.0
    began: float = 0.0
    ended: float = 0.0
    calls: int = 0
    failed: tuple[tuple[str, float], ...] = ()
    waits: Mapping[str, float] | None = None

    def after(self, earlier: Times) -> Times:
        """Return these times with the earlier calls of the same batch added."""
        return replace(
            self,
            seconds=earlier.seconds + self.seconds,
            calls=earlier.calls + self.calls,
            failed=earlier.failed + self.failed,
        )


@frozen
class Done:
    """The handler returned, and its results were matched to the batch's items.

    ``done``: the canonical keys that are complete, newline-joined; ``completed``: their number.
    Their rows, of this ``schema``, are ``unwritten`` (see `table`) or in ``shard``, written by a
    remote worker; all three are None if there are no rows. If the checkpoint takes rows as dicts,
    they are in ``rows`` instead, each with its key.

    ``failures``: the items that failed. ``left_out``: the positions in the batch of items that
    failed because the handler returned no row for them; ``left_by``: the error that ended the call
    before it reached those items. ``settles``: the token of the submission that this is the result
    of; ``rest``: the items that it left undone. ``cost`` is in the unit of the job's ``cost``, NaN
    if it is unknown.
    """

    batch: Batch
    done: bytes = b""
    completed: int = 0
    unwritten: pa.Table | PlainTable | None = None
    shard: Shard | None = None
    schema: pa.Schema | None = None
    failures: tuple[Failure, ...] = ()
    left_out: tuple[int, ...] = ()
    cost: float = 0.0
    times: Times = Times()
    rows: Sequence[Mapping[str, Any]] | None = None
    settles: str = ""
    rest: Rest | None = None
    left_by: ErrorKind | None = None

    @property
    def table(self) -> pa.Table | None:
        """The unwritten rows as an Arrow table; None if there are none."""
        return arrow_table(self.unwritten)

    @property
    def tells(self) -> bool:
        """True if there is anything to commit."""
        return bool(self.completed or self.failures or self.settles or self.cost)


@frozen
class Rest:
    """The items of a batch, by their canonical keys, that must be sent to a service again.

    ``parts``: the number of batches to split them into. ``rounds``: as in their `Part`.
    """

    batch: Batch
    lines: tuple[bytes, ...]
    parts: int = 1
    rounds: int = 0


@frozen
class Failed:
    """The batch failed as a whole, after its retries: ``failures`` has one for each item."""

    batch: Batch
    error: ErrorKind
    failures: tuple[Failure, ...]
    cost: float = 0.0
    times: Times = Times()

    def settled(self) -> Done:
        """Return the outcome to commit: all items of the batch have failed."""
        return Done(self.batch, failures=self.failures, cost=self.cost, times=self.times)


@frozen
class Dropped:
    """The batch was not handled, because the run stops.

    ``why``: set if this batch is the reason for the stop. ``cost``: of the calls that failed
    before.
    """

    batch: Batch
    why: str = ""
    cost: float = 0.0


@frozen
class Fatal:
    """An error that is not the items' fault and ends the run."""

    batch: Batch
    error: BaseException


Outcome = Done | Failed | Dropped | Fatal
"""The outcome that a runner returns for a batch."""


@frozen
class CallOutcome:
    """One call of the handler, passed to a callable ``cost=``, which returns what the call cost.

    ``returned`` is everything the handler returned, even if it cannot be stored: compute the cost
    from this. None if the call raised. ``table`` has the stored rows (None if there are none),
    ``failures`` the failed items: all items if the call raised. ``seconds`` is the time in the
    handler.
    """

    batch: Batch
    table: pa.Table | None
    failures: tuple[Failure, ...]
    seconds: float
    returned: Any = None


Cost = str | Callable[[CallOutcome], float]
"""The cost of calls: the name of a column of the results, or a callable on a call's outcome."""
