"""Progress for people during a run: a bar on a terminal or in a notebook, and log lines."""

from __future__ import annotations

import importlib
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.html import escaped, page
from resumable_tasks.base.text import clean, duration, rate, without_secrets
from resumable_tasks.engine.events import (
    HOW,
    Committed,
    Event,
    Listener,
    Progress,
    Progressed,
    RunFinished,
    RunStarted,
)
from resumable_tasks.items.submission import Out

if TYPE_CHECKING:
    from rich.progress import TaskID

_REDRAW_SECONDS = 0.2


def listeners(wanted: bool | None) -> list[Listener]:
    """Return the listeners that show a run.

    False: none. True: a bar. None: a bar if standard error is a terminal. A notebook gets its own
    bar in both cases. Lines are added too; in a notebook only if logging is configured.
    """
    if wanted is False:
        return []
    if _in_notebook():
        return [NotebookBar(), *([Lines()] if log.heard() else [])]
    terminal = sys.stderr is not None and sys.stderr.isatty()
    return [*([Bar()] if wanted or terminal else []), Lines()]


class Lines:
    """A line per minute in the log.

    If logging is not configured, the lines go to standard error, with one more at the start and one
    at the end, so that a long run is not silent.
    """

    def __call__(self, event: Event) -> None:
        line = said_of(event)
        if log.heard():  # the log has its own lines at the start and the end
            if isinstance(event, Progressed):
                log.info("%s", line)
        elif line is not None and sys.stderr is not None:
            sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")
            sys.stderr.flush()


def said_of(event: Event) -> str | None:
    """Return the line for this event, or None if it needs none."""
    match event:
        case RunStarted():
            found = f"{event.found:,} items are done" if event.found or event.out else "new"
            found += f", {event.failed:,} failed before" if event.failed else ""
            found += f", {event.out}" if event.out else ""
            said = f"checkpoint {event.checkpoint}: {found}"
        case Progressed():
            said = describe(event.progress, fully=True)
        case RunFinished():
            how = HOW.get(event.how, event.how)
            took = duration(event.progress.seconds)
            counts = describe(replace(event.progress, bound_by=None)) + _out(event.result)
            bound = _bound_by(event.progress, fully=True)
            said = f"{how}: {counts}, in {took}{bound}; checkpoint {event.checkpoint}"
        case _:
            return None
    return clean(without_secrets(f"{event.job}: {said}"))


def _out(result: object) -> str:
    """Describe the submissions that a run has left with a service."""
    submissions = getattr(result, "submissions", 0)
    return f", {Out(getattr(result, 'out', 0), submissions)}" if submissions else ""


class Bar:
    """A bar on standard error: done, resumed, failed, rate, time left."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[text]}", markup=False),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._task = self._bar.add_task(event.job, total=event.expected, text="")
            self._bar.start()
        elif isinstance(event, (Committed, Progressed, RunFinished)) and self._task is not None:
            progress = event.progress
            done = progress.handled + progress.skipped
            self._bar.update(self._task, completed=done, text=describe(progress))
            if isinstance(event, RunFinished):
                self._bar.stop()


class NotebookBar:
    """A bar in the output of a notebook's cell.

    Uses IPython's display, which every front end shows and every saved notebook keeps; rich and
    tqdm would need widgets.
    """

    def __init__(self) -> None:
        self._display: Any = None
        self._place = ""
        self._drawn = 0.0

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self._place = event.checkpoint
            drawing = self._drawing(event.job, Progress(0, 0, 0, event.expected, 0.0), "")
            display = importlib.import_module("IPython.display").display
            self._display = display(drawing, display_id=True)
        elif isinstance(event, (Committed, Progressed, RunFinished)) and self._display is not None:
            ended = isinstance(event, RunFinished)
            if ended or time.monotonic() - self._drawn >= _REDRAW_SECONDS:
                self._drawn = time.monotonic()
                how = f"{HOW.get(event.how, event.how)}: " if isinstance(event, RunFinished) else ""
                self._display.update(self._drawing(event.job, event.progress, how))

    def _drawing(self, job: str, progress: Progress, how: str) -> _Drawing:
        return _Drawing(job, progress, how, self._place)


class _Drawing:
    """One drawing of a `NotebookBar`, as text and as HTML."""

    def __init__(self, job: str, progress: Progress, how: str, place: str) -> None:
        self._progress, self._how = progress, how
        self._job, self._place = clean(job), clean(without_secrets(place))
        self._text = how + describe(progress)

    def __repr__(self) -> str:
        return f"{self._job}: {self._text}; checkpoint {self._place}"

    def _repr_html_(self) -> str:
        progress = self._progress
        done = progress.handled + progress.skipped
        share = "" if progress.expected is None and not self._how else f' value="{done}"'
        most = max(progress.expected or done, 1)
        return page(
            f"<b>{escaped(self._job)}</b> "
            f'<progress max="{most}"{share} style="width: 16em; vertical-align: middle">'
            f"</progress> "
            f"{escaped(self._text)}<br><code>{escaped(self._place)}</code>"
        )


def _in_notebook() -> bool:
    """True in a Jupyter kernel, whose front end shows HTML."""
    shell = sys.modules.get("IPython")
    return shell is not None and getattr(shell.get_ipython(), "kernel", None) is not None


def _bound_by(progress: Progress, *, fully: bool) -> str:
    if progress.bound_by is None:
        return ""
    return f"; bound by {progress.bound_by.sentence if fully else progress.bound_by.brief}"


def describe(progress: Progress, *, fully: bool = False) -> str:
    """``1,713/4,000 done, 600 of them resumed, 3 failed, 42/s, 54 s left; bound by latency``

    ``fully``: include the numbers behind what the run is bound by.
    """
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
    return text + _bound_by(progress, fully=fully)
