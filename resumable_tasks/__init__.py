"""Long jobs over many items that can be killed anywhere and resumed: nothing lost, nothing twice.

Importing this loads neither pyarrow nor Prefect; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resumable_tasks.checkpoint.estimate import Estimate
    from resumable_tasks.checkpoint.snapshot.snapshot import Snapshot
    from resumable_tasks.checkpoint.sql.spec import SqlCheckpoint
    from resumable_tasks.engine.events import Progress
    from resumable_tasks.errors import (
        BadResult,
        ChangedItem,
        CheckpointDamaged,
        CheckpointHeld,
        CheckpointMismatch,
        CheckpointUnusable,
        CommitStateUnknown,
        DuplicateKey,
        Fenced,
        Interrupted,
        InvalidItems,
        InvalidKey,
        JobFailed,
        MissingResult,
        ResultConflict,
        ResumableTasksError,
        StoreError,
        Unfinished,
        UsageError,
        WorkerLost,
    )
    from resumable_tasks.prefect.schedule import scheduled_date
    from resumable_tasks.prefect.states import flow_state
    from resumable_tasks.results.result import RunResult
    from resumable_tasks.runners.base import current_batch
    from resumable_tasks.runners.limits import Adaptive
    from resumable_tasks.runners.outcome import CurrentBatch, Failure, ItemFailure, Outcome
    from resumable_tasks.task.advice import advise
    from resumable_tasks.task.task import ResumableTask, resumable_task

__version__ = "0.1.0"

_HOMES = {
    "task.advice": ("advise",),
    "errors": (
        "BadResult",
        "ChangedItem",
        "CheckpointDamaged",
        "CheckpointHeld",
        "CheckpointMismatch",
        "CheckpointUnusable",
        "CommitStateUnknown",
        "DuplicateKey",
        "Fenced",
        "Interrupted",
        "InvalidItems",
        "InvalidKey",
        "JobFailed",
        "MissingResult",
        "ResultConflict",
        "ResumableTasksError",
        "StoreError",
        "Unfinished",
        "UsageError",
        "WorkerLost",
    ),
    "checkpoint.estimate": ("Estimate",),
    "engine.events": ("Progress",),
    "runners.limits": ("Adaptive",),
    "runners.outcome": ("CurrentBatch", "Failure", "ItemFailure", "Outcome"),
    "results.result": ("RunResult",),
    "runners.base": ("current_batch",),
    "prefect.schedule": ("scheduled_date",),
    "prefect.states": ("flow_state",),
    "checkpoint.snapshot.snapshot": ("Snapshot",),
    "checkpoint.sql.spec": ("SqlCheckpoint",),
    "task.task": ("ResumableTask", "resumable_task"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Adaptive",
    "BadResult",
    "ChangedItem",
    "CheckpointDamaged",
    "CheckpointHeld",
    "CheckpointMismatch",
    "CheckpointUnusable",
    "CommitStateUnknown",
    "CurrentBatch",
    "DuplicateKey",
    "Estimate",
    "Failure",
    "Fenced",
    "Interrupted",
    "InvalidItems",
    "InvalidKey",
    "ItemFailure",
    "JobFailed",
    "MissingResult",
    "Outcome",
    "Progress",
    "ResultConflict",
    "ResumableTask",
    "ResumableTasksError",
    "RunResult",
    "Snapshot",
    "SqlCheckpoint",
    "StoreError",
    "Unfinished",
    "UsageError",
    "WorkerLost",
    "advise",
    "current_batch",
    "flow_state",
    "resumable_task",
    "scheduled_date",
]


def __getattr__(name: str) -> Any:
    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return __all__
