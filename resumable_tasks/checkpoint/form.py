"""The seam between a run and its checkpoint, for every form of checkpoint.

::

    place.open(job, opening) → Checkpoint
        checkpoint.planner                    the batches that are left
        with checkpoint.begin() as unit:      one commit: all of it, or nothing
            unit.add(outcome)                 may refuse rows; nothing is durable yet
            receipt = unit.commit()           durable on return
        checkpoint.end(…), checkpoint.close()
    place.reader() → Reader                   the rows of all runs, for others

The engine, a run and its result know nothing else about a checkpoint. A new form implements these
four classes; one class may play several parts. `resumable_tasks.testing.form_suite` tests that a
form keeps the contract.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from typing import TYPE_CHECKING, Any, Self, TypeVar

from resumable_tasks.base.clock import now
from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import command
from resumable_tasks.checkpoint.settings import OnVersionChange
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import Key
from resumable_tasks.items.plan import Planner, Planning
from resumable_tasks.items.walk import Seen
from resumable_tasks.runners.outcome import Done, Failure, ResultsMode, Shard
from resumable_tasks.runners.values.columns import INFERRED, Columns

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads

    from resumable_tasks.checkpoint.choice import Choice
    from resumable_tasks.checkpoint.estimate import Estimate
    from resumable_tasks.items.submission import Out, Submission, Transition

T = TypeVar("T")


@frozen
class Origin:
    """The origin of a handler. Parts that cannot be known are None.

    ``file`` is relative to the working directory, or only a name if the file is elsewhere.
    ``function`` is a qualified name, ``code`` a digest. ``named``: the user has named the job or
    its checkpoint. ``path`` is the file's path on this machine.
    """

    file: str | None
    function: str | None
    code: str | None
    named: bool
    path: str | None = None


@frozen
class Job:
    """The job that opens a place, as far as the place needs to know it.

    ``at_once`` is the largest number of handler calls that run at the same time. ``max_attempts``
    and ``retry_failed`` decide which failed items are tried again. ``columns`` are the declared
    columns of the results, ``origin`` is the handler's origin. ``same_key``: the user asserts that
    a key function which has moved still returns the same keys.
    """

    name: str
    version: str
    results: ResultsMode
    planning: Planning
    at_once: int = 1
    max_attempts: int | None = None
    retry_failed: bool = True
    on_version_change: OnVersionChange = "error"
    columns: Columns = INFERRED
    origin: Origin | None = None
    same_key: bool = False


@frozen
class Opening:
    """The options with which one run opens a checkpoint.

    ``takeover``: take the checkpoint from a run that is stuck. ``expected``: the number of items of
    the run; None if unknown. ``identity``: other names of this run, such as an orchestrator's id.
    ``total``: the budget of all runs of the checkpoint together, recorded for others to see.
    ``given_up``: true once nobody waits for the opening any more; it must fence no other run then.
    """

    takeover: bool = False
    expected: int | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    total: float | None = None
    given_up: Callable[[], bool] = lambda: False


@frozen
class Used:
    """The part of a budget that earlier tries of the same flow run have used."""

    items: int = 0
    seconds: float = 0.0
    cost: float = 0.0


@frozen
class Found:
    """The state that earlier runs left behind. Counts are items.

    ``epoch`` numbers the runs of this checkpoint. ``cost_each`` is the average cost of an item,
    ``last`` the previous run and its time; both are None if unknown. ``parked`` items have a result
    that does not fit the table. ``ended`` is how the previous run ended, None if it recorded no
    end. ``spent`` is the cost of all runs, None where the checkpoint does not keep it; ``used`` is
    the part that earlier tries of the same flow run have used. ``edited``: the handler's code has
    changed since items were completed. ``handlers``: the handler's old and new location (function
    and file), if it has moved. ``write_seconds`` is the duration of one write during the opening,
    None on a disk. ``learnt`` is what earlier calls have shown about the weights of items, None if
    nothing is known.
    """

    completed: int = 0
    failed: int = 0
    epoch: int = 0
    cost_each: float | None = None
    last: tuple[str, str] | None = None
    parked: int = 0
    ended: str | None = None
    spent: float | None = None
    used: Used = Used()
    edited: bool = False
    handlers: tuple[str, str] | None = None
    write_seconds: float | None = None
    learnt: Mapping[str, float] | None = None


@frozen
class Preview:
    """The work that a run would do. Counts are items, except ``batches``; None if unknown.

    Of the ``total`` items, ``skipped`` are completed, ``changed`` have changed since then,
    ``again`` have failed and would be tried again, and ``left_alone`` would not be tried. ``out``
    items are with a service, in ``submissions`` submissions.
    """

    url: str
    total: int
    skipped: int
    remaining: Estimate
    again: int = 0
    left_alone: int = 0
    duplicates: int = 0
    changed: int = 0
    batches: int | None = None
    positions: Seen | None = None
    out: int = 0
    submissions: int = 0


@frozen
class Receipt:
    """The part of a unit that a commit has made durable.

    ``number`` is the commit's number. ``completed`` items have ``rows`` rows. ``bytes`` is the size
    of the files written, ``size`` roughly that of the rows in memory. ``failures`` are as recorded:
    their attempts are counted over all runs.
    """

    number: int
    completed: int
    rows: int
    bytes: int = 0
    size: int = 0
    failures: tuple[Failure, ...] = ()


class GaveWay(Exception):
    """The unit gave up in favour of another writer, because one waits for a lock of the other.

    Nothing is committed. Add the outcomes again, each to a unit of its own. If that fails too, call
    ``wait``, which holds nothing and returns once another try can succeed.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        super().__init__("another writer has a lock that this commit needs")
        self.wait = wait


class ConnectionLost(Exception):
    """The connection was lost, and the unit with it. Nothing is committed.

    Call ``wait``, then add the outcomes to a new unit. ``wait`` raises the underlying `StoreError`
    after too long a time, or once its argument ``stop`` returns true.
    """

    def __init__(self, wait: Callable[[Callable[[], bool]], None]) -> None:
        super().__init__("the connection was lost before a commit")
        self.wait = wait


class Unit(ABC):
    """One commit in the making: all of it becomes durable, or nothing.

    A context manager; nothing stays open after it, however it ends.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - most have nothing open
        """Release everything that was not committed."""

    @abstractmethod
    def add(self, outcome: Done) -> Done:
        """Add an outcome to the unit. Returns the outcome as it will be committed.

        Raises `ResultConflict` if its rows do not fit; the unit is unchanged and usable. Raises
        `GaveWay` if another writer must go first, and `ConnectionLost`; the unit is unusable then.
        """

    def settle(self, token: str) -> None:
        """Settle this submission with the commit: its items are in the unit, or are not done.

        Only for a place that `keeps_submissions`.
        """
        raise NotImplementedError(token)

    @abstractmethod
    def commit(self) -> Receipt:
        """Make everything that was added durable, in one step.

        Raises `Fenced`, `StoreError` or `CommitStateUnknown`; the checkpoint is unusable then.
        Raises `GaveWay` and `ConnectionLost` as `add` does.
        """


class Checkpoint(ABC):
    """A checkpoint that this process drives. Only one thread commits at a time.

    ``job`` and ``run`` name its driver, ``url`` is its address, ``found`` the state that earlier
    runs left. ``planner`` makes the remaining batches. ``expected`` is the number of items, if the
    checkpoint itself holds the items. ``columns`` combines the columns that the job declares with
    those that the checkpoint knows. ``submissions`` are those that earlier runs left with a
    service.
    """

    job: str
    url: str
    run: str
    found: Found
    planner: Planner
    expected: int | None = None
    columns: Columns = INFERRED
    submissions: Sequence[Submission] = ()

    @property
    def out(self) -> Out:
        """The items that are with a service now."""
        from resumable_tasks.items.submission import Out

        return Out()

    @abstractmethod
    def begin(self) -> Unit:
        """Begin the next commit."""

    def record(self, transition: Transition) -> None:
        """Record a change of a submission's state; durable on return.

        Raises what a unit's `commit` raises. Only for a place that `keeps_submissions`.
        """
        raise NotImplementedError(transition.kind)

    def tidy(self, stop: Callable[[], bool]) -> None:  # noqa: B027 - most have nothing to tidy
        """Do some deferred housekeeping between two commits. Ends soon once ``stop`` is true.

        Raises what a unit's `commit` raises.
        """

    @abstractmethod
    def end(self, how: str, counts: Mapping[str, Any]) -> None:
        """Record the end of this run: ``how`` it ended, and its counts."""

    @abstractmethod
    def close(self) -> None:
        """Release the checkpoint. Commits nothing; may be called more than once."""

    def left_alone(self) -> list[Failure]:
        """The failed and parked items of earlier runs that this run has not tried."""
        return []

    def parked(self) -> list[Failure]:
        """The items whose results are kept but do not fit the table, each with its rows."""
        return []

    def rows_of(self, outcome: Done) -> pa.Table | None:
        """The rows of an uncommitted outcome, also if a worker has written them to a file."""
        return outcome.table

    def estimate(self, items: int) -> Estimate:
        """Estimate the effort for this many items, at the pace of all runs so far."""
        from resumable_tasks.checkpoint.estimate import Estimate

        return Estimate(items)

    def stop_when(self, stop: Callable[[], bool]) -> None:  # noqa: B027 - most never wait
        """Let any wait during planning end once ``stop`` returns true."""

    def shard_writer(self) -> Callable[[pa.Table, int], Shard] | None:
        """The writer for a remote worker's rows; None if the worker sends them back."""
        return None

    @property
    def failures_listed(self) -> str:
        """The command or query that lists the failures."""
        return command("failures", self.url)

    @property
    def redo_hint(self) -> str:
        """The command or call that redoes every item that is completed now."""
        return f"`redo(checkpoint, before={now()[:19]!r})` in Python"

    @property
    def quarantine_hint(self) -> str:
        """The commands that list the quarantined items and release them."""
        return (
            f"{command('failures', self.url, '--quarantined')} lists them, "
            "`resumable retry` releases them"
        )


@frozen
class Piece:
    """A part of the rows. Pieces with the same name always have the same rows."""

    name: str
    rows: int


@frozen
class CommittedRows:
    """The committed rows at one moment. ``tables`` yields them in pieces, all of this ``schema``.

    ``key`` describes the job's key as a manifest does. ``identity`` describes the state that was
    read, to be stored with a copy. If a copy can be extended later, ``pieces`` lists what
    ``tables`` yields, and ``after(n)`` yields the same without the first n pieces; otherwise both
    are empty.
    """

    schema: pa.Schema
    tables: Callable[[], Iterator[pa.Table]]
    key: Any
    identity: Mapping[str, Any] = field(default_factory=dict)
    pieces: Sequence[Piece] = ()
    after: Callable[[int], Iterator[pa.Table]] | None = None


class Reader(ABC):
    """A reader of what all runs have committed. Works while runs are active; can be pickled."""

    @abstractmethod
    def read(self, use: Callable[[CommittedRows], T]) -> T:
        """Call ``use`` with the rows at one moment, and return its result.

        Calls ``use`` again from the start if files that it reads are replaced and swept meanwhile.
        Raises `CheckpointDamaged`, which names the file.
        """

    @abstractmethod
    def dataset(self) -> pads.Dataset:
        """A ``pyarrow.dataset.Dataset`` over the committed rows."""

    @abstractmethod
    def completed_keys(self) -> Iterator[Key]:
        """The keys of all completed items."""

    def check_publishable(self) -> None:  # noqa: B027 - most are
        """Raise `UsageError` if the rows must not be published."""

    def note_published(  # noqa: B027 - most need not know
        self, rows: CommittedRows, dest: str, form: str, count: int
    ) -> None:
        """Record durably that ``count`` of these rows were published to ``dest`` in this form."""

    @property
    def files_at(self) -> str | None:
        """The path or URL of the folder whose files this reads; None if it reads no files."""
        return None


class Place(ABC):
    """The place of a checkpoint: its address and its form."""

    @abstractmethod
    def check(self, job: Job, items: Any) -> Job:
        """The job, adapted to this place. Raises `UsageError` if the two do not fit."""

    @abstractmethod
    def preview(self, job: Job, items: Any) -> Preview:
        """Count the items that a run would handle. Reads all items; calls, writes, holds nothing.

        Raises what a run would raise for these items, or for this checkpoint.
        """

    @abstractmethod
    def open(self, job: Job, opening: Opening) -> Checkpoint:
        """Open for writing: recover, and fence every earlier run.

        Raises `CheckpointHeld`, `CheckpointMismatch`, `CheckpointDamaged`, `CheckpointUnusable` or
        `StoreError`; nothing of the checkpoint is changed then.
        """

    @abstractmethod
    def reader(self) -> Reader:
        """The reader of the rows."""

    def redo(self, choice: Choice, *, dry_run: bool = False) -> list[Key]:
        """Mark the chosen items as not done, durable on return. Returns their keys.

        ``dry_run`` changes nothing.
        """
        raise UsageError(
            f"a {type(self).__name__} cannot redo items",
            remedy="Use a checkpoint in a directory or a table",
        )

    def local_path(self) -> str | None:
        """The path on this machine; None if the checkpoint is elsewhere."""
        return None

    def may_hang(self) -> bool:
        """True if opening it may wait for a service that does not answer."""
        return False

    def keeps_spending(self) -> bool:
        """True if the cost of outcomes is recorded with each commit, so `Found.spent` is known."""
        return False

    def keeps_submissions(self) -> bool:
        """True if it records submissions: `Checkpoint.record` and `Unit.settle` work."""
        return False

    def takes_files(self) -> bool:
        """True if remote workers write their rows to files there themselves."""
        return True

    def partition(self, name: str) -> Place:
        """The place of one occurrence of a repeating job. Raises `UsageError` if there is none."""
        raise UsageError(
            f"partition={name!r}: {type(self).__name__} has no partitions",
            remedy="Leave partition= out, or use a checkpoint in a directory",
        )
