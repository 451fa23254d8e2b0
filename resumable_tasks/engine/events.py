"""Events of a run, as frozen records for listeners.

A listener is any callable that takes one event. Listeners are called one at a time, from the
driver's threads. If one raises, the error is logged once, with its traceback, and the listener is
not called again: a broken display must not end a night of paid calls.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from dataclasses import field
from typing import Any, Protocol

from resumable_tasks.base import log
from resumable_tasks.base.frozen import changing, frozen
from resumable_tasks.items.keys import Key, parse_lines
from resumable_tasks.runners.bound import BoundBy
from resumable_tasks.runners.outcome import Failure

Lines = bytes  # canonical keys, newline-joined; an event has a field of the name ``bytes``


@frozen
class Progress:
    """The progress of a run. Counts are in items. ``expected`` is None if the items have no length.

    ``completed``, ``failed`` and ``parked`` count this run; ``skipped`` items were completed before
    it. ``rate`` (items per second) and ``eta`` (seconds) also refer to this run alone; None while
    unknown. ``bound_by`` is what the run waits for: during the last minute, or at the end during
    the whole run.
    """

    completed: int
    failed: int
    skipped: int
    expected: int | None
    seconds: float
    parked: int = 0
    bound_by: BoundBy | None = None

    @property
    def handled(self) -> int:
        """The number of items this run has dealt with, whatever the outcome."""
        return self.completed + self.failed + self.parked

    @property
    def rate(self) -> float | None:
        handled = self.handled
        return handled / self.seconds if handled and self.seconds > 0 else None

    @property
    def eta(self) -> float | None:
        if self.expected is None or self.rate is None:
            return None
        left = self.expected - self.handled - self.skipped
        return max(left, 0) / self.rate


@frozen
class Event:
    """``job`` and ``checkpoint`` say whose event it is, ``run`` which run's."""

    job: str
    checkpoint: str
    run: str


@frozen
class RunStarted(Event):
    """The checkpoint is open. ``found`` items were completed before, ``failed`` failed before.

    ``out`` describes in words what a service has; empty if nothing.
    """

    found: int
    failed: int
    expected: int | None
    epoch: int
    out: str = ""


@frozen
class Committed(Event):
    """Record ``number`` is durable: ``completed`` items with ``rows`` rows in it.

    ``keys`` are those of the completed items, decoded on access. ``failures`` are of items that
    failed, and of those that were parked. ``seconds`` is how long the commit took.
    """

    number: int
    completed: int
    rows: int
    bytes: int
    failures: tuple[Failure, ...]
    progress: Progress
    canonical: Lines = field(default=b"", repr=False)
    seconds: float = 0.0

    @property
    def keys(self) -> tuple[Key, ...]:
        return tuple(parse_lines(self.canonical))


@frozen
class Progressed(Event):
    """The run goes on. Told once a minute, also while nothing is committed."""

    progress: Progress


@frozen
class Stopping(Event):
    """The run has been asked to stop; ``running`` batches are given time to finish."""

    reason: str
    running: int


@frozen
class RunFinished(Event):
    """The run has ended. ``how``: ``done``, ``failed``, ``interrupted``, ``spent`` (its budget) or
    ``error``.

    ``retried`` batches needed more than one call. ``result`` is the `RunResult`, None after an
    error.
    """

    how: str
    progress: Progress
    retried: int = 0
    result: Any = None  # of another room


HOW = {
    "done": "done",
    "failed": "items failed",
    "interrupted": "interrupted",
    "spent": "its budget is used up",
    "error": "ended by an error",
}
"""``RunFinished.how`` in words."""

Listener = Callable[[Event], None]


class Tell(Protocol):
    """Tells the listeners an event of this run."""

    def __call__(self, kind: type[Any], **fields: Any) -> None: ...


@changing
class Listeners:
    """The listeners of one run, called one at a time."""

    each: list[Listener]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(
        cls, listeners: Iterable[Listener], on_progress: Callable[[Progress], None] | None
    ) -> Listeners:
        each = list(listeners)
        if on_progress is not None:
            tell = on_progress

            def at_commit(event: Event) -> None:
                if isinstance(event, (Committed, RunFinished)):
                    tell(event.progress)

            each.append(at_commit)
        return cls(each)

    def tell(self, event: Event) -> None:
        with self._lock:
            for listener in tuple(self.each):
                try:
                    listener(event)
                except Exception:  # noqa: BLE001 - said with its traceback; see the module
                    self.each.remove(listener)
                    log.exception(
                        "a listener raised on %s and is not called again; the run continues",
                        type(event).__name__,
                    )
