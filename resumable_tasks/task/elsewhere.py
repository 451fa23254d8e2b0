"""Looks for checkpoints of the same job elsewhere, before a new one repeats everything.

After a rename of its function, or when started in another folder, a script has another default
checkpoint, which is empty.
"""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.text import clean, count
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.handlers import argument
from resumable_tasks.checkpoint.directory.opening import read_manifest
from resumable_tasks.checkpoint.directory.records import decode, record_name
from resumable_tasks.checkpoint.form import Origin
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import ResumableTasksError
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.items.sameness import Look
from resumable_tasks.task.origin import is_gone, source_file
from resumable_tasks.task.parameters import HOME

# The number of parent folders of the working directory and the script to search, and the most
# checkpoints to look at.
_UP, _MOST = 3, 200
_NEARLY_ALL = 0.9


class DoneElsewhere(Look):
    """Warns if the first items are completed in another checkpoint, perhaps of the same job.

    ``others`` are the candidates: path, job and completed keys.
    """

    def __init__(self, job: str, others: Sequence[tuple[str, str, KeyTable]]) -> None:
        self._job = job
        self._others = others

    def look(self, lines: Sequence[bytes]) -> bool:
        """Warn of each checkpoint that has nearly all of these keys."""
        for path, job, done in self._others:
            known = len(lines) - len(done.missing(lines))
            if known >= _NEARLY_ALL * len(lines):
                as_named = f", name={job!r}" if job != self._job else ""
                log.warning(
                    "%s: this checkpoint is new, but %s of the first %s are already completed in "
                    "%s (job %s). If this is the same job, stop now and continue there: %s%s. If "
                    "not, ignore this warning",
                    self._job,
                    f"{known:,}",
                    count(len(lines), "item"),
                    clean(path),
                    clean(job),
                    argument(path),
                    as_named,
                )
        return True


def look_elsewhere(
    fn: Callable[..., Any], job: str, origin: Origin, path: str
) -> DoneElsewhere | None:
    """The look for a run that begins this default checkpoint; None if there is no candidate."""
    others = []
    own = Path(os.path.realpath(path))
    for other in itertools.islice(_beside(own, source_file(fn)), _MOST):
        # An unreadable checkpoint is reported when its own job runs.
        with contextlib.suppress(ResumableTasksError, OSError):
            store = open_store(str(other))
            name = read_manifest(store).job
            said = decode(store.read(record_name(0)), record_name(0)).info.get("handler")
            if name and _may_be(fn, job, origin, name, said or {}):
                others.append((str(other), name, read_checkpoint(store)[1].done))
    return DoneElsewhere(job, others) if others else None


def _beside(own: Path, script: str | None) -> Iterator[Path]:
    """Yield the default checkpoints of this partition here, above, and beside the script."""
    here = own.parents[2]
    folders = [here, *here.parents[:_UP]]
    if script is not None:
        folders += Path(script).parents[:_UP]
    for folder in dict.fromkeys(folders):
        for path in sorted((folder / HOME).glob(f"*/{own.name}")):
            if path != own:
                yield path


def _may_be(
    fn: Callable[..., Any], job: str, origin: Origin, name: str, said: dict[str, Any]
) -> bool:
    """True if a checkpoint of this name, begun by this handler, may be this job's."""
    if name == job or (origin.code is not None and said.get("code") == origin.code):
        return True
    file, function = said.get("file"), said.get("function")
    renamed = file is not None and file == origin.file and function != origin.function
    return renamed and function is not None and is_gone(fn, function)
