"""Long jobs over many items that can be killed anywhere and resumed: nothing lost, nothing twice.

Importing this loads neither pyarrow nor Prefect; each name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from resumable_tasks.advice import advise
    from resumable_tasks.budget import Estimate
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
    from resumable_tasks.events import Progress
    from resumable_tasks.limits import Adaptive
    from resumable_tasks.model import CurrentBatch, Failure, ItemFailure, Outcome
    from resumable_tasks.result import RunResult
    from resumable_tasks.runners.base import current_batch
    from resumable_tasks.runners.prefect.schedule import scheduled_date
    from resumable_tasks.runners.prefect.states import flow_state
    from resumable_tasks.snapshot import Snapshot
    from resumable_tasks.sql.spec import SqlCheckpoint
    from resumable_tasks.task import ResumableTask, resumable_task

__version__ = "0.1.0"

_HOMES = {
    "advice": ("advise",),
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
    "budget": ("Estimate",),
    "events": ("Progress",),
    "limits": ("Adaptive",),
    "model": ("CurrentBatch", "Failure", "ItemFailure", "Outcome"),
    "result": ("RunResult",),
    "runners.base": ("current_batch",),
    "runners.prefect.schedule": ("scheduled_date",),
    "runners.prefect.states": ("flow_state",),
    "snapshot": ("Snapshot",),
    "sql.spec": ("SqlCheckpoint",),
    "task": ("ResumableTask", "resumable_task"),
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
