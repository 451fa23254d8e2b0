"""Every error of this library, sorted by what its reader does next.

::

    ResumableTasksError
    ├── UsageError                exit 2   mend the call, the items or the place
    │   ├── InvalidItems                   items or keys that cannot be used
    │   │   ├── InvalidKey
    │   │   ├── DuplicateKey
    │   │   └── ChangedItem
    │   ├── CheckpointMismatch             the checkpoint belongs to another job, key or version
    │   └── CheckpointUnusable             not a place where a checkpoint can live
    ├── BadResult                 exit 1   mend the handler; recorded per item, raised by publish
    │   ├── MissingResult
    │   └── ResultConflict
    ├── WorkerLost                exit 1   a worker process died; recorded per item
    ├── JobFailed                 exit 1   look at ``.result.failures``, mend, run again
    ├── Unfinished                exit 75  in a flow run, what is `Interrupted` elsewhere: run again
    ├── CheckpointHeld            exit 3   wait, or ``takeover=True``
    │   └── Fenced                         another run has taken over; this one has stopped
    ├── CheckpointDamaged         exit 4   ``resumable repair``
    └── StoreError                exit 75  mend the disk, run again
        └── CommitStateUnknown             the same; the last commit may or may not have landed

    KeyboardInterrupt
    └── Interrupted               exit 75  run again to resume

``Interrupted`` is a ``KeyboardInterrupt``, so that ``except Exception`` around one job does not
turn Ctrl-C into "go on with the next".

Each class survives a pickle round trip: the message is the only positional argument, everything
else lives in the instance's ``__dict__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa


class Result(Protocol):
    """What an error carries of a run's `RunResult`, as far as this floor of the house can say."""

    @property
    def total(self) -> int: ...
    @property
    def completed(self) -> int: ...
    @property
    def skipped(self) -> int: ...
    @property
    def failed(self) -> int: ...
    @property
    def failures(self) -> Sequence[Any]: ...
    @property
    def checkpoint(self) -> str: ...
    @property
    def quarantined(self) -> int: ...
    @property
    def duplicates(self) -> int: ...
    @property
    def seconds(self) -> float: ...
    @property
    def cost(self) -> float | None: ...
    @property
    def remaining(self) -> Any: ...
    def publish(self, dest: Any, *, ordered: bool = False) -> Any: ...
    def table(self, *, ordered: bool = False) -> pa.Table: ...


EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_HELD = 3
EXIT_DAMAGED = 4
EXIT_INTERRUPTED = 75


class ResumableTasksError(Exception):
    """The root of the tree: whatever this library raises on purpose, but for `Interrupted`."""

    exit_code = EXIT_FAILED


class UsageError(ResumableTasksError):
    """The call cannot be carried out as it is; nothing was started."""

    exit_code = EXIT_USAGE


class InvalidItems(UsageError):
    """The items are of a kind that cannot be taken."""


class InvalidKey(InvalidItems):
    """An item has no usable key; the message names its position and the way out."""


class DuplicateKey(InvalidItems):
    """Two items of one run have the same key; the message names both positions."""


class ChangedItem(InvalidItems):
    """An item has changed since it was completed, and ``on_change="error"`` was asked for."""


class CheckpointMismatch(UsageError):
    """The checkpoint was made by a job that differs; the message shows both sides."""


class CheckpointUnusable(UsageError):
    """The path cannot hold a checkpoint: a file, not writable, no hard links, not ours."""


class BadResult(ResumableTasksError):
    """The handler returned something that cannot be matched to the items of its batch."""


class MissingResult(BadResult):
    """The handler returned no row for an item, and the job wants one for each."""


class ResultConflict(BadResult):
    """A column of the results has a type that cannot be unified with the rows before it."""


class WorkerLost(ResumableTasksError):
    """The worker process that handled the batch died (out of memory, killed, crashed)."""


class JobFailed(ResumableTasksError):
    """Everything was done that could be done, and more items failed than is tolerated.

    ``result`` is the `RunResult`, with the failures in ``result.failures``.
    """

    def __init__(self, message: str, *, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


class Unfinished(ResumableTasksError):
    """The run has ended by itself before its items: a budget, or a service that is down.

    In a flow run only, which is to be failed then: Prefect takes an `Interrupted` for a crash.
    ``result`` is the `RunResult` up to here.
    """

    exit_code = EXIT_INTERRUPTED

    def __init__(self, message: str, *, result: Result | None = None) -> None:
        super().__init__(message)
        self.result = result


class CheckpointHeld(ResumableTasksError):
    """Another run holds this checkpoint. ``holder`` says who: host, pid, since, run."""

    exit_code = EXIT_HELD

    def __init__(self, message: str, *, holder: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.holder = holder or {}


class Fenced(CheckpointHeld):
    """A newer run has taken the checkpoint over. What this one had committed stands."""


class CheckpointDamaged(ResumableTasksError):
    """A file of the checkpoint is missing or is not what was written.

    ``files`` names what is damaged, relative to the checkpoint.
    """

    exit_code = EXIT_DAMAGED

    def __init__(self, message: str, *, files: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.files = files


class StoreError(ResumableTasksError):
    """The place where the checkpoint lives did not do what it was asked. Nothing was committed."""

    exit_code = EXIT_INTERRUPTED


class CommitStateUnknown(StoreError):
    """The last commit may or may not be durable; the next run finds out. Nothing is lost."""


class Interrupted(KeyboardInterrupt):
    """The run has stopped in order before its items. Run the same command again to resume.

    ``result`` is the `RunResult` up to here; ``None`` where there was no time to make one.
    ``by_itself``: nobody has asked for it: a budget is used up, or a service stays down.
    """

    exit_code = EXIT_INTERRUPTED

    def __init__(
        self, message: str, *, result: Result | None = None, by_itself: bool = False
    ) -> None:
        super().__init__(message)
        self.result = result
        self.by_itself = by_itself
