"""The seam between a run and its checkpoint, whatever form the checkpoint has.

::

    place.open(job, opening) → Checkpoint
        checkpoint.planner                    the batches that are left
        with checkpoint.begin() as unit:      one commit: all of it, or nothing
            unit.add(outcome)                 may refuse rows; nothing is durable yet
            receipt = unit.commit()           durable on return
        checkpoint.end(…), checkpoint.close()
    place.reader() → Reader                   the rows of all runs, for others

The engine, a run and its result know nothing else about a checkpoint. A form of your own needs
these four; one class may be all of them. `resumable_tasks.testing.form_suite` holds each form to
the contract.
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

    ``file`` is below the working directory, or only a name, ``function`` a qualified name, and
    ``code`` a digest. ``named``: the user has named the job or its checkpoint outright. ``path``
    is where the file is on this machine.
    """

    file: str | None
    function: str | None
    code: str | None
    named: bool
    path: str | None = None


@frozen
class Job:
    """The job that opens a place, as far as the place needs to know it.

    ``at_once`` calls of the handler run at once, at most. ``max_attempts`` and ``retry_failed``
    say which failed items are tried again. ``columns`` are declared of the results. ``origin`` is
    the handler's. ``same_key``: a key function that has moved gives the keys that it gave.
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

    ``takeover``: take it from a run that is stuck. ``expected``: how many items the run has; None
    if that is unknown. ``identity``: by what else this run is known, such as an orchestrator's id.
    ``total``: what all runs of the checkpoint may spend together, for others to see.
    ``given_up``: true once nobody waits for the opening any more, which must not fence others then.
    """

    takeover: bool = False
    expected: int | None = None
    identity: Mapping[str, str] = field(default_factory=dict)
    total: float | None = None
    given_up: Callable[[], bool] = lambda: False


@frozen
class Used:
    """The part of a budget that is used already, by earlier tries of one flow run."""

    items: int = 0
    seconds: float = 0.0
    cost: float = 0.0


@frozen
class Found:
    """The state that earlier runs left behind. Counts are items.

    ``epoch`` numbers the runs of this checkpoint. ``cost_each`` is the average cost of an item,
    ``last`` the run that was at work before and when it was, both None if unknown. ``parked``
    items have a result that does not fit the table. ``ended`` is how that run has ended, None if it
    has not said. ``spent`` is the cost of all runs, None where the checkpoint does not keep it;
    ``used`` is what earlier tries of the same flow run have used. ``edited``: the
    handler's code is another than when items were completed; ``handlers``: so are its function
    and file, which were the first and are the second of these. ``write_seconds`` is how long one
    write of the opening has taken, None on a disk. ``learnt`` is what earlier calls have taught of
    their weights, None where nothing is known.
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

    ``total`` items were seen: ``skipped`` are completed, ``changed`` have changed since, ``again``
    have failed before and would be tried again, ``left_alone`` would not. ``out`` of them are with
    a service, in all of its ``submissions``.
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

    ``number`` counts the commits; ``completed`` items with ``rows`` rows. ``bytes`` were written
    to files, ``size`` is about what the rows take in memory. ``failures`` are as they are kept:
    their attempts count over all runs.
    """

    number: int
    completed: int
    rows: int
    bytes: int = 0
    size: int = 0
    failures: tuple[Failure, ...] = ()


class GaveWay(Exception):
    """The unit is given up for another writer, who waits for a lock that it held, or the reverse.

    Nothing of it is committed. Its outcomes are to be added again, each to a unit of its own;
    ``wait`` until that may succeed where it has not, without holding anything meanwhile.
    """

    def __init__(self, wait: Callable[[], None] = lambda: None) -> None:
        super().__init__("another writer has a lock that this commit needs")
        self.wait = wait


class ConnectionLost(Exception):
    """The unit is gone with a connection, and nothing of it is committed.

    Its outcomes are to be added to a new one after ``wait``, which raises the `StoreError` behind
    this once it has been too long, or the ``stop`` that it is given is true.
    """

    def __init__(self, wait: Callable[[Callable[[], bool]], None]) -> None:
        super().__init__("the connection was lost before a commit")
        self.wait = wait


class Unit(ABC):
    """One commit in the making: all of it becomes durable, or nothing.

    A context manager that leaves nothing open, however it ends.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:  # noqa: B027 - most have nothing open
        """Release what was not committed."""

    @abstractmethod
    def add(self, outcome: Done) -> Done:
        """Take an outcome into the unit; the outcome as it will be committed.

        Raises `ResultConflict` where its rows do not fit; the unit is as it was then. Raises
        `GaveWay` where another writer must go first, and `ConnectionLost`: the unit is of no more
        use.
        """

    def settle(self, token: str) -> None:
        """Let the commit settle this submission too: all of its items are in it, or not done.

        Only where the place `keeps_submissions`.
        """
        raise NotImplementedError(token)

    @abstractmethod
    def commit(self) -> Receipt:
        """Make all that was added durable in one step.

        Raises `Fenced`, `StoreError` or `CommitStateUnknown`: the checkpoint is of no more use.
        Raises `GaveWay` and `ConnectionLost` as `add` does.
        """


class Checkpoint(ABC):
    """A checkpoint that this process drives. One thread at a time commits.

    ``job`` and ``run`` name who drives it, ``url`` where it is, ``found`` what was there.
    ``planner`` makes the batches that are left. ``expected`` is how many items there are, where the
    checkpoint itself has them. ``columns`` is what is known of the columns of the rows: what the
    job declares, and what the checkpoint itself knows. ``submissions`` are those that earlier runs
    have left with a service.
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
        """What a service has by now."""
        from resumable_tasks.items.submission import Out

        return Out()

    @abstractmethod
    def begin(self) -> Unit:
        """Begin the next commit."""

    def record(self, transition: Transition) -> None:
        """Make a change of a submission's state durable; it is on return.

        Raises what a unit's `commit` raises. Only where the place `keeps_submissions`.
        """
        raise NotImplementedError(transition.kind)

    def tidy(self, stop: Callable[[], bool]) -> None:  # noqa: B027 - most have nothing to tidy
        """Do a little of what can wait, between two commits. Ends soon once ``stop`` is true.

        Raises what a unit's `commit` raises.
        """

    @abstractmethod
    def end(self, how: str, counts: Mapping[str, Any]) -> None:
        """Record the end of this run: ``how`` it ended, and its counts."""

    @abstractmethod
    def close(self) -> None:
        """Release the checkpoint. Commits nothing; may be called more than once."""

    def left_alone(self) -> list[Failure]:
        """The items of earlier runs that this one has not tried: failed, or parked."""
        return []

    def parked(self) -> list[Failure]:
        """The items whose results are kept but do not fit the table, each with its rows."""
        return []

    def rows_of(self, outcome: Done) -> pa.Table | None:
        """The rows of an uncommitted outcome, wherever a worker has put them."""
        return outcome.table

    def estimate(self, items: int) -> Estimate:
        """Estimate what so many items would take, at the pace of all runs so far."""
        from resumable_tasks.checkpoint.estimate import Estimate

        return Estimate(items)

    def stop_when(self, stop: Callable[[], bool]) -> None:  # noqa: B027 - most never wait
        """End any wait within planning once this is true."""

    def shard_writer(self) -> Callable[[pa.Table, int], Shard] | None:
        """The writer for a remote worker's rows; None if the worker sends them back."""
        return None

    @property
    def failures_listed(self) -> str:
        """The command or query that lists the failures."""
        return command("failures", self.url)

    @property
    def redo_hint(self) -> str:
        """The command or call that has all that is completed now done again."""
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
    """A part of the rows: two pieces of one name are the same rows, whenever they are read."""

    name: str
    rows: int


@frozen
class CommittedRows:
    """The rows of one moment. ``tables`` gives them piece by piece, all of this ``schema``.

    ``key`` describes the job's key as a manifest does, ``identity`` the state that was read, for
    whoever notes it beside a copy. Where a copy can be added to, ``pieces`` say what ``tables``
    gives, and ``after`` gives it without the first so many; both are empty elsewhere.
    """

    schema: pa.Schema
    tables: Callable[[], Iterator[pa.Table]]
    key: Any
    identity: Mapping[str, Any] = field(default_factory=dict)
    pieces: Sequence[Piece] = ()
    after: Callable[[int], Iterator[pa.Table]] | None = None


class Reader(ABC):
    """A reader of what all runs have committed, even while runs are at work. Can be pickled."""

    @abstractmethod
    def read(self, use: Callable[[CommittedRows], T]) -> T:
        """Call ``use`` with the rows of one moment.

        Calls it again from the start if what it reads was replaced and swept meanwhile. Raises
        `CheckpointDamaged`, which names the file.
        """

    @abstractmethod
    def dataset(self) -> pads.Dataset:
        """A ``pyarrow.dataset.Dataset`` over the committed rows."""

    @abstractmethod
    def completed_keys(self) -> Iterator[Key]:
        """The keys of all completed items."""

    def check_publishable(self) -> None:  # noqa: B027 - most are
        """Raises `UsageError` where the rows are not for publishing."""

    def note_published(  # noqa: B027 - most need not know
        self, rows: CommittedRows, dest: str, form: str, count: int
    ) -> None:
        """Note durably that of these rows so many were published to ``dest``, in this form."""

    @property
    def files_at(self) -> str | None:
        """The path or URL below which the files are that this reads; None if there are none."""
        return None


class Place(ABC):
    """The place of a checkpoint: its address and its form."""

    @abstractmethod
    def check(self, job: Job, items: Any) -> Job:
        """The job as this place takes it. Raises `UsageError` where job and place do not fit."""

    @abstractmethod
    def preview(self, job: Job, items: Any) -> Preview:
        """Count what a run would handle. Reads all items; calls, writes and holds nothing.

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
        """Make the chosen items missing, durable on return, or only say which; their keys."""
        raise UsageError(
            f"a {type(self).__name__} cannot have items done again",
            remedy="Use a checkpoint in a directory or a table for that",
        )

    def local_path(self) -> str | None:
        """The path on this machine, if that is where it is."""
        return None

    def may_hang(self) -> bool:
        """True if whoever opens it may wait for a service that does not answer."""
        return False

    def keeps_spending(self) -> bool:
        """True if `Found.spent` is kept: what a unit's outcomes have cost is recorded with them."""
        return False

    def keeps_submissions(self) -> bool:
        """True if it records what is handed to a service: `Checkpoint.record`, `Unit.settle`."""
        return False

    def takes_files(self) -> bool:
        """True if workers write the files of their rows there themselves."""
        return True

    def partition(self, name: str) -> Place:
        """The place of one occurrence of a repeating job. Raises `UsageError` if there is none."""
        raise UsageError(
            f"partition={name!r}: {type(self).__name__} has no partitions",
            remedy="Leave partition= out, or use a checkpoint in a directory",
        )
