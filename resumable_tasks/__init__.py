"""Long jobs over many items that can be killed anywhere and resumed: nothing lost, nothing twice.

Importing this loads neither pyarrow nor Prefect; each name is loaded when it is first used. From
then on, a program that does not catch this library's errors ends with their exit codes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resumable_tasks.base.text import without_secrets as without_secrets
    from resumable_tasks.checkpoint.estimate import Estimate as Estimate
    from resumable_tasks.checkpoint.settings import Failing as Failing
    from resumable_tasks.checkpoint.snapshot.snapshot import Snapshot as Snapshot
    from resumable_tasks.checkpoint.sql.place import SqlCheckpoint as SqlCheckpoint
    from resumable_tasks.engine import events as events
    from resumable_tasks.engine.budget import Budget as Budget
    from resumable_tasks.engine.events import Progress as Progress
    from resumable_tasks.errors import *  # noqa: F403 - its classes, which are all public
    from resumable_tasks.items.fingerprints import Changes as Changes
    from resumable_tasks.prefect.schedule import scheduled_date as scheduled_date
    from resumable_tasks.prefect.schedule import scheduled_time as scheduled_time
    from resumable_tasks.prefect.states import flow_state as flow_state
    from resumable_tasks.results.result import RunResult as RunResult
    from resumable_tasks.runners.batch_apis.anthropic import AnthropicBatch as AnthropicBatch
    from resumable_tasks.runners.batch_apis.openai import OpenAIBatch as OpenAIBatch
    from resumable_tasks.runners.bound import BoundBy as BoundBy
    from resumable_tasks.runners.handle import current_batch as current_batch
    from resumable_tasks.runners.limits import Adaptive as Adaptive
    from resumable_tasks.runners.outcome import CallOutcome as CallOutcome
    from resumable_tasks.runners.outcome import CurrentBatch as CurrentBatch
    from resumable_tasks.runners.outcome import Failure as Failure
    from resumable_tasks.runners.outcome import ItemFailure as ItemFailure
    from resumable_tasks.runners.retries import Retry as Retry
    from resumable_tasks.runners.submitted.protocol import CannotTell as CannotTell
    from resumable_tasks.runners.submitted.protocol import Collected as Collected
    from resumable_tasks.runners.submitted.protocol import Ended as Ended
    from resumable_tasks.runners.submitted.protocol import NotAccepted as NotAccepted
    from resumable_tasks.runners.submitted.protocol import NotReady as NotReady
    from resumable_tasks.runners.submitted.protocol import Pending as Pending
    from resumable_tasks.runners.submitted.protocol import QueueFull as QueueFull
    from resumable_tasks.runners.submitted.protocol import Submitted as Submitted
    from resumable_tasks.runners.submitted.protocol import Undone as Undone
    from resumable_tasks.runners.submitted.protocol import submitted as submitted
    from resumable_tasks.task.advice import advise as advise
    from resumable_tasks.task.prune import Pruned as Pruned
    from resumable_tasks.task.prune import prune as prune
    from resumable_tasks.task.redo import redo as redo
    from resumable_tasks.task.task import ResumableTask as ResumableTask
    from resumable_tasks.task.task import resumable_task as resumable_task

__version__ = "0.1.0"

_NAMES = {
    "errors": "BadResult BudgetUsedUp ChangedItem CheckpointDamaged CheckpointHeld"
    " CheckpointMismatch CheckpointUnusable CommitStateUnknown DuplicateKey Fenced Interrupted"
    " InvalidItems InvalidKey JobFailed MissingResult ResultConflict ResumableTasksError StoreError"
    " Unfinished UsageError Waiting WorkerLost",
    "base.text": "without_secrets",
    "task.task": "ResumableTask resumable_task",
    "task.advice": "advise",
    "task.prune": "Pruned prune",
    "task.redo": "redo",
    "prefect.schedule": "scheduled_date scheduled_time",
    "prefect.states": "flow_state",
    "engine.budget": "Budget",
    "engine.events": "Progress",
    "items.fingerprints": "Changes",
    "results.result": "RunResult",
    "checkpoint.estimate": "Estimate",
    "checkpoint.settings": "Failing",
    "checkpoint.snapshot.snapshot": "Snapshot",
    "checkpoint.sql.place": "SqlCheckpoint",
    "runners.batch_apis.anthropic": "AnthropicBatch",
    "runners.batch_apis.openai": "OpenAIBatch",
    "runners.bound": "BoundBy",
    "runners.handle": "current_batch",
    "runners.retries": "Retry",
    "runners.limits": "Adaptive",
    "runners.submitted.protocol": "CannotTell Collected Ended NotAccepted NotReady Pending"
    " QueueFull Submitted Undone submitted",
    "runners.outcome": "CallOutcome CurrentBatch Failure ItemFailure",
}
_HOME_OF = {name: home for home, names in _NAMES.items() for name in names.split()}

__all__ = sorted([*_HOME_OF, "events"])


def __getattr__(name: str) -> Any:
    if name == "events":
        return importlib.import_module(f"{__name__}.engine.events")
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Here, and not at a run: what is wrong may be an option, at decoration.
    importlib.import_module(f"{__name__}.base.exits").use_exit_codes()
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
