"""Cancels a job's submissions at the service that has them."""

from __future__ import annotations

import os
from datetime import date
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.text import count
from resumable_tasks.checkpoint.directory import submissions
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.checkpoint.form import Place
from resumable_tasks.errors import UsageError
from resumable_tasks.items.submission import Submission
from resumable_tasks.runners.submitted.calls import Calls
from resumable_tasks.runners.submitted.kind import is_submitted
from resumable_tasks.runners.submitted.protocol import CannotTell
from resumable_tasks.task.run import as_place


def cancel(
    service: Any,
    name: str,
    checkpoint: str | os.PathLike[str] | Place | None,
    partition: str | date | None,
) -> int:
    """Cancel all submissions. Returns how many the service was asked to end.

    See `ResumableTask.cancel_submissions`.
    """
    if not is_submitted(service) or not callable(getattr(service, "cancel", None)):
        raise UsageError(
            f"{name}: the handler has no cancel(handle), so nothing can be cancelled",
            remedy="Cancel the submissions at the service; `resumable submissions CHECKPOINT` "
            "lists their handles",
        )
    place = as_place(name, checkpoint, partition)
    if not isinstance(place, Directory):
        raise UsageError(
            f"{name}: a {type(place).__name__} keeps no submissions",
            remedy="Name the directory or URL that the job ran with as checkpoint=",
        )
    calls, cancelled = Calls(service), 0
    try:
        out = submissions.read(place.store()).each
        for submission in out:
            handle = _handle(calls, submission)
            if handle is not None:
                calls.call("cancel", handle)
                cancelled += 1
    finally:
        calls.close()
    if cancelled < len(out):
        log.warning(
            "%s: it is unknown whether the service has %s; the next run finds out",
            *(name, count(len(out) - cancelled, "other submission")),
        )
    return cancelled


def _handle(calls: Calls, submission: Submission) -> Any:
    """The service's handle, searched for if it is not known; None if there is none yet."""
    if submission.handle is not None or not calls.has("find"):
        return submission.handle
    try:
        return calls.call("find", submission.token, maybe=submission.prepared)
    except CannotTell:
        return None
