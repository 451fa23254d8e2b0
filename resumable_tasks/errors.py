"""Every error of this library, sorted by what its reader does next:

    ResumableTasksError
    ├── UsageError                exit 2   fix the call, the items or the place
    │   ├── InvalidItems                   items or keys that cannot be used
    │   │   ├── InvalidKey
    │   │   ├── DuplicateKey
    │   │   └── ChangedItem
    │   ├── CheckpointMismatch             the checkpoint belongs to another job, key or version
    │   └── CheckpointUnusable             not a place where a checkpoint can live
    ├── BadResult                 exit 1   fix the handler; recorded per item, raised by publish
    │   ├── MissingResult
    │   └── ResultConflict
    ├── WorkerLost                exit 1   a worker process died; recorded per item
    ├── JobFailed                 exit 1   see ``.result.failures``, fix the cause, run again
    ├── Unfinished                exit 75  in a flow run, for `Interrupted`; 5 for `BudgetUsedUp`
    ├── CheckpointHeld            exit 3   wait, or ``takeover=True``
    │   └── Fenced                         another run has taken over; this one has stopped
    ├── CheckpointDamaged         exit 4   ``resumable repair``
    └── StoreError                exit 75  fix the disk, run again
        └── CommitStateUnknown             the same; the last commit may or may not have landed

    KeyboardInterrupt
    └── Interrupted               exit 75  run again to resume
        ├── Waiting                        a service has the rest: run again later, to collect it
        └── BudgetUsedUp          exit 5   raise the budget, or run again to spend it once more

``Interrupted`` is a ``KeyboardInterrupt``, so that ``except Exception`` around one job does not
turn Ctrl-C into "go on with the next".

Each error says in up to three parts ``what`` is wrong and where, what is ``safe`` all the same, and
the ``remedy``: what to do next. ``str(error)`` is the three, joined. Each class survives a pickle
round trip: ``what`` is the only positional argument, the rest lives in the instance's ``__dict__``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    import pyarrow as pa


class Result(Protocol):
    """The part of a run's `RunResult` that an error carries, typed without importing it."""

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
EXIT_BUDGET = 5
EXIT_INTERRUPTED = 75


class _InParts:
    """A message of three parts; the last two may be empty."""

    def __init__(self, what: str = "", *, safe: str = "", remedy: str = "") -> None:
        self.what = what
        self.safe = safe
        self.remedy = remedy

    def __str__(self) -> str:
        between = "\n" if "\n" in self.what else ". "
        text = between.join(part for part in (self.what, self.safe, self.remedy) if part)
        return text.replace("?. ", "? ")

    @property
    def parts(self) -> dict[str, str]:
        """The three parts, as ``--json`` prints them."""
        return {"what": self.what, "safe": self.safe, "remedy": self.remedy}


class ResumableTasksError(_InParts, Exception):
    """The root of the tree: all that this library raises on purpose, except `Interrupted`."""

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
    """An item has changed since it was completed, and the job's ``Changes`` say ``"error"``."""


class CheckpointMismatch(UsageError):
    """The checkpoint was made by a job that differs; the message shows both sides."""


class CheckpointUnusable(UsageError):
    """The path cannot hold a checkpoint: a file, not writable, no hard links, not ours."""


class BadResult(ResumableTasksError):
    """The handler returned something that cannot be matched to the items of its batch.

    ``of_shape``: it has not the form of results at all, such as too few rows and none with a key.
    """

    of_shape = False


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

    def __init__(self, what: str, *, result: Result | None = None, **parts: str) -> None:
        super().__init__(what, **parts)
        self.result = result


class Unfinished(ResumableTasksError):
    """The run has ended by itself before its items: a budget, or a service that is down.

    In a flow run only, which is to be failed then: Prefect takes an `Interrupted` for a crash.
    ``result`` is the `RunResult` up to here, ``exit_code`` that of the `Interrupted`.
    """

    exit_code = EXIT_INTERRUPTED

    def __init__(
        self,
        what: str,
        *,
        result: Result | None = None,
        exit_code: int = EXIT_INTERRUPTED,
        **parts: str,
    ) -> None:
        super().__init__(what, **parts)
        self.result = result
        self.exit_code = exit_code


class CheckpointHeld(ResumableTasksError):
    """Another run holds this checkpoint. ``holder`` says who: host, pid, since, run."""

    exit_code = EXIT_HELD

    def __init__(self, what: str, *, holder: dict[str, Any] | None = None, **parts: str) -> None:
        super().__init__(what, **parts)
        self.holder = holder or {}


class Fenced(CheckpointHeld):
    """A newer run has taken the checkpoint over. What this one had committed stands."""


def _shown(name: str) -> str:
    """A name of a file, on one line and without what a terminal obeys."""
    return name if name.isprintable() else ascii(name)[1:-1]


class CheckpointDamaged(ResumableTasksError):
    """A file of the checkpoint is missing or is not what was written.

    ``files`` names what is damaged, relative to the checkpoint, ``detail`` is what is wrong with
    the first of them, and ``place`` is where the checkpoint is: with it the message names the
    checkpoint and the file, and by default says which commands list the damage and move it aside.
    """

    exit_code = EXIT_DAMAGED

    def __init__(
        self, detail: str, *, files: tuple[str, ...] = (), place: str = "", remedy: str = ""
    ) -> None:
        what = detail
        if place:
            where = f"{_shown(files[0])}: " if files else ""
            what = f"the checkpoint {_shown(place)} is damaged: {where}{detail}"
            import shlex

            quoted = _shown(shlex.quote(place))
            remedy = remedy or (
                f"`resumable verify {quoted}` lists all damage, `resumable repair {quoted}` moves "
                "it aside; the next run then redoes only those items"
            )
        super().__init__(what, remedy=remedy)
        self.detail = detail
        self.files = files


class StoreError(ResumableTasksError):
    """The place where the checkpoint lives did not do what it was asked. Nothing was committed."""

    exit_code = EXIT_INTERRUPTED


class CommitStateUnknown(StoreError):
    """The last commit may or may not be durable; the next run finds out. Nothing is lost."""


class Interrupted(_InParts, KeyboardInterrupt):
    """The run has stopped in order before its items. Run the same command again to resume.

    ``result`` is the `RunResult` up to here; ``None`` where there was no time to make one.
    ``by_itself``: nobody has asked for it; a budget is used up, or a service stays down.
    """

    exit_code = EXIT_INTERRUPTED

    def __init__(
        self,
        what: str,
        *,
        result: Result | None = None,
        by_itself: bool = False,
        **parts: str,
    ) -> None:
        super().__init__(what, **parts)
        self.result = result
        self.by_itself = by_itself


class BudgetUsedUp(Interrupted):
    """The run has ended because a limit of its `Budget` is reached; what it has done is safe.

    Has an exit code of its own: scripts that rerun what was interrupted must not spend it again.
    """

    exit_code = EXIT_BUDGET


class Waiting(Interrupted):
    """A service has what is left, and this run was not to wait for it. Nothing is paid twice.

    ``look_again_at`` (UTC): when it is worth running the same command again.
    """

    def __init__(self, what: str, *, look_again_at: datetime | None = None, **more: Any) -> None:
        super().__init__(what, **more)
        self.look_again_at = look_again_at
