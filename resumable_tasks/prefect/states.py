"""The state that a flow returns, so that Prefect's UI says how the job went."""

from __future__ import annotations

from typing import TYPE_CHECKING

from resumable_tasks.prefect.detect import require_prefect

if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

    from resumable_tasks.results.result import RunResult


def flow_state(result: RunResult) -> State[RunResult]:
    """Return a ``Completed`` state with the run's summary as its message, for a flow to return.

    The message is as in the log: ``1,710 of 1,713 items done (600 before, 1,110 now), 3 failed``.
    The flow's result is the `RunResult`.

    Raises:
        UsageError: Prefect is not installed.
    """
    require_prefect("flow_state()")
    from prefect.states import Completed

    return Completed(message=result.summary, data=result)
