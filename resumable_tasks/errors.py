"""All errors of this library, grouped by what their reader does next:

    ResumableTasksError
    ├── UsageError                exit 2   fix the call, the items or the place
    │   ├── InvalidItems                   unusable items or keys
    │   │   ├── InvalidKey
    │   │   ├── DuplicateKey
    │   │   └── ChangedItem
    │   ├── CheckpointMismatch             the checkpoint is from another job, key or version
    │   └── CheckpointUnusable             the path cannot hold a checkpoint
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
        └── CommitStateUnknown             same; the last commit may or may not be durable

    KeyboardInterrupt
    └── Interrupted               exit 75  run again to resume
        ├── Waiting                        a service has the rest: run again later to collect it
        └── BudgetUsedUp          exit 5   raise the budget, or run again to spend another

``Interrupted`` is a ``KeyboardInterrupt`` so that ``except Exception`` around one job does not turn
Ctrl-C into "go on with the next".

Each error has up to three parts: ``what`` is wrong and where, what is ``safe`` nevertheless, and
the ``remedy``: what to do next. ``str(error)`` joins the three. Each class survives a pickle round
trip: ``what`` is the only positional argument, the rest lives in the instance's ``__dict__``.
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
    """Base class of all errors that this library raises on purpose, except `Interrupted`."""

    exit_code = EXIT_FAILED


class UsageError(ResumableTasksError):
    """The call is invalid; nothing was started."""

    exit_code = EXIT_USAGE


class InvalidItems(UsageError):
    """The items are of a type that cannot be used."""


class InvalidKey(InvalidItems):
    """An item has no usable key; the message names its position and the remedy."""


class DuplicateKey(InvalidItems):
    """Two items of one run have the same key; the message names both positions."""


class ChangedItem(InvalidItems):
    """An item has changed since it was completed, and the job has ``Changes(then="error")``."""


class CheckpointMismatch(UsageError):
    """The checkpoint was made by a different job; the message shows the differences."""


class CheckpointUnusable(UsageError):
    """The path cannot hold a checkpoint: a file, not writable, no hard links, or other files."""


class BadResult(ResumableTasksError):
    """The handler returned something that cannot be matched to the items of its batch.

    ``of_shape``: the return value does not have the form of results at all, such as too few rows
    and none with a key.
    """

    of_shape = False


class MissingResult(BadResult):
    """The handler returned no row for an item, and the job requires one for each."""


class ResultConflict(BadResult):
    """A column of the results has a type that cannot be unified with that of earlier rows."""


class WorkerLost(ResumableTasksError):
    """The worker process that handled the batch died (out of memory, killed, crashed)."""


class JobFailed(ResumableTasksError):
    """All possible work was done, and more items failed than the job tolerates.

    ``result`` is the `RunResult`, with the failures in ``result.failures``.
    """

    def __init__(self, what: str, *, result: Result | None = None, **parts: str) -> None:
        super().__init__(what, **parts)
        self.result = result


class Unfinished(ResumableTasksError):
    """The run ended before all items were handled: a budget is used up, or a service is down.

    Raised only in a flow run, to mark it as failed: Prefect would treat an `Interrupted` as a
    crash. ``result`` is the `RunResult` so far, ``exit_code`` that of the `Interrupted`.
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
    """Another run holds this checkpoint. ``holder`` identifies it: host, pid, since, run."""

    exit_code = EXIT_HELD

    def __init__(self, what: str, *, holder: dict[str, Any] | None = None, **parts: str) -> None:
        super().__init__(what, **parts)
        self.holder = holder or {}


class Fenced(CheckpointHeld):
    """A newer run has taken the checkpoint over. Everything this run committed is kept."""


def _shown(name: str) -> str:
    """A file's name on one line, without control characters."""
    return name if name.isprintable() else ascii(name)[1:-1]


class CheckpointDamaged(ResumableTasksError):
    """A file of the checkpoint is missing or is not what was written.

    ``files`` names the damaged files, relative to the checkpoint; ``detail`` is what is wrong with
    the first. With ``place``, where the checkpoint is, the message names the checkpoint and the
    file, and by default the commands that list the damage and move it aside.
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
    """A read or write of the checkpoint's storage failed. Nothing was committed by it."""

    exit_code = EXIT_INTERRUPTED


class CommitStateUnknown(StoreError):
    """The last commit may or may not be durable; the next run determines which. Nothing is lost."""


class Interrupted(_InParts, KeyboardInterrupt):
    """The run stopped cleanly before all items were handled. Run the same command again to resume.

    ``result`` is the `RunResult` so far; ``None`` if there was no time to make one. ``by_itself``:
    nobody asked the run to stop; a budget is used up, or a service stays down.
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
    """The run ended because it reached a limit of its `Budget`; everything it completed is safe.

    The exit code is its own: scripts that rerun interrupted jobs must not spend another budget.
    """

    exit_code = EXIT_BUDGET


class Waiting(Interrupted):
    """A service has the remaining items, and this run was not told to wait. Nothing is paid twice.

    ``look_again_at`` (UTC): when to run the same command again.
    """

    def __init__(self, what: str, *, look_again_at: datetime | None = None, **more: Any) -> None:
        super().__init__(what, **more)
        self.look_again_at = look_again_at
