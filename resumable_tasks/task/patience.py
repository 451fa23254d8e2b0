"""Opens and closes checkpoints whose service may not answer, so that a run can still be stopped.

A call to such a service cannot be aborted, and signals are not handled during it. So the calls are
made in another thread, and the run stops waiting for them when it is asked to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.hanging import Call, GaveUp
from resumable_tasks.checkpoint.form import Checkpoint, Job, Opening, Place
from resumable_tasks.engine.engine import no_response
from resumable_tasks.errors import Interrupted

# Seconds to wait after a request to stop, and at the end of a run that was asked before.
_ASKED_SECONDS, _ASKED_BEFORE_SECONDS = 1.0, 5.0


class Patience:
    """The patience of one run. ``requests`` are the requests to stop so far, and grow later."""

    def __init__(self, requests: Sequence[tuple[str, bool]]) -> None:
        self._requests = requests

    def open(self, place: Place, job: Job, opening: Opening) -> Checkpoint:
        """`Place.open`. Raises `Interrupted` if the run is asked to stop before an answer."""
        if not place.may_hang():
            return place.open(job, opening)

        def given_up() -> bool:
            return call.given_up

        call: Call[Checkpoint] = Call(
            lambda: place.open(job, replace(opening, given_up=given_up)), late=Checkpoint.close
        )
        try:
            return call.wait(lambda: _ASKED_SECONDS if self._requests else None)
        except GaveUp:
            raise Interrupted(
                f"interrupted by {self._requests[0][0]}: {job.name} has not opened its checkpoint, "
                "which does not respond",
                safe="No item was handled",
                remedy="Run the same command again",
            ) from None

    def end(self, place: Place, checkpoint: Checkpoint, how: str, counts: dict[str, Any]) -> None:
        """`Checkpoint.end`. Raises `CommitStateUnknown` if the run must stop before an answer."""
        if not place.may_hang():
            checkpoint.end(how, counts)
            return
        try:
            Call(lambda: checkpoint.end(how, counts)).wait(self._at_the_end())
        except GaveUp:
            raise no_response(checkpoint.url) from None

    def close(self, place: Place, checkpoint: Checkpoint) -> None:
        """`Checkpoint.close`. Gives up if the run must stop before an answer."""
        if not place.may_hang():
            checkpoint.close()
            return
        try:
            Call(checkpoint.close).wait(self._at_the_end())
        except GaveUp:
            log.warning(
                "%s does not respond, so it could not be released: to other runs it looks held "
                "until this process ends or its heartbeat expires",
                checkpoint.url,
            )

    def _at_the_end(self) -> Callable[[], float | None]:
        before = len(self._requests)

        def seconds() -> float | None:
            if len(self._requests) > before:
                return _ASKED_SECONDS
            return _ASKED_BEFORE_SECONDS if before else None

        return seconds
