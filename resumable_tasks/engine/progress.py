"""Progress for the user while a run goes on: a bar on a terminal, log lines elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from resumable_tasks.base import log
from resumable_tasks.base.text import duration, rate
from resumable_tasks.engine.events import (
    Committed,
    Event,
    Listener,
    Progress,
    RunFinished,
    RunStarted,
)

if TYPE_CHECKING:
    from rich.progress import TaskID

_LOG_EVERY_SECONDS = 10.0


def listener(wanted: bool | None) -> Listener:
    """The bar if it is wanted (None: if standard error is a terminal), else the log lines."""
    if wanted or (wanted is None and sys.stderr.isatty()):
        return Bar()
    return LogLines()


class LogLines:
    """A line at most every ten seconds."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, event: Event) -> None:
        if isinstance(event, Committed) and time.monotonic() - self._last >= _LOG_EVERY_SECONDS:
            self._last = time.monotonic()
            log.info("%s: %s", event.job, describe(event.progress))


class Bar:
    """A bar on standard error: done, resumed, failed, rate, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None
        self._expected: int | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._task = self._bar.add_task(event.job, total=event.expected, text="")
            self._bar.start()
        elif isinstance(event, (Committed, RunFinished)) and self._task is not None:
            progress = event.progress
            done = progress.handled + progress.skipped
            self._bar.update(self._task, completed=done, text=describe(progress))
            if isinstance(event, RunFinished):
                self._bar.stop()


def describe(progress: Progress) -> str:
    """``1,713/4,000 done, 600 of them resumed, 3 failed, 42/s, 54 s left``"""
    done = progress.completed + progress.skipped
    text = f"{done:,}" + (f"/{progress.expected:,}" if progress.expected is not None else "")
    text += " done"
    if progress.skipped:
        text += f", {progress.skipped:,} of them resumed"
    if progress.failed:
        text += f", {progress.failed:,} failed"
    if progress.parked:
        text += f", {progress.parked:,} parked"
    if progress.rate is not None:
        text += f", {rate(progress.rate)}"
    if progress.eta is not None and progress.eta >= 1:
        text += f", {duration(progress.eta)} left"
    return text
