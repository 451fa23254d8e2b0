"""Leaving a flow run's process while a service works, and coming back in another one."""

from __future__ import annotations

import os
import time
from datetime import datetime
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import OrchestrationResult
from prefect.context import FlowRunContext, TaskRunContext
from prefect.states import AwaitingRetry

from resumable_tasks.base import log

TAG = "waits-for-a-service"
"""The tag of a flow run that has left its process, so that automations see no crash in that."""

# The pauses between requests while the API is away, for example for an upgrade.
_PAUSES = (1.0, 5.0, 20.0, 60.0, 120.0)


def why_not(context: FlowRunContext) -> str | None:
    """The reason why this flow run cannot leave its process; None if it can."""
    if TaskRunContext.get() is not None:
        return "the job runs inside a task of your own"
    flow_run = context.flow_run
    if flow_run is not None and flow_run.deployment_id is not None:
        return None
    if "PREFECT__FLOW_RUN_ID" in os.environ:
        return "the job runs in a subflow"
    return "the flow run has no deployment, so nothing would start it again"


def leave(flow_run: str, look_again_at: datetime, why: str) -> str:
    """Let Prefect start the flow run again at that time. Returns "", or the reason if it cannot.

    The caller must then end the process by Prefect's ``Abort``.
    """
    for pause in (*_PAUSES, None):
        try:
            with get_client(sync_client=True) as client:
                return _leave(client, UUID(flow_run), look_again_at, why)
        except Exception as error:  # noqa: BLE001 - any error means that the API did not answer
            if pause is None:
                return f"Prefect's API does not respond: {error!r}"
            log.warning(
                "leaving until %s failed: %r; trying again in %g s", look_again_at, error, pause
            )
            time.sleep(pause)
    raise AssertionError("unreachable")


def _leave(client: SyncPrefectClient, id: UUID, look_again_at: datetime, why: str) -> str:
    flow_run = client.read_flow_run(id)
    changes: dict[str, Any] = {}
    policy = flow_run.empirical_policy
    if policy.retries:
        # Prefect compares retries with the number of executions; this one was no failed try.
        policy.retries += 1
        changes["empirical_policy"] = policy
    if TAG not in flow_run.tags:
        changes["tags"] = [*flow_run.tags, TAG]
    if changes:
        client.update_flow_run(id, **changes)
    # Otherwise a later cancel would wait forever for a process that has ended.
    client.request(
        "PATCH", "/flow_runs/{id}", path_params={"id": id}, json={"infrastructure_pid": None}
    )
    answer: OrchestrationResult[Any] = client.set_flow_run_state(
        id, AwaitingRetry(scheduled_time=look_again_at, message=why)
    )
    if answer.status.value == "ACCEPT":
        return ""
    return f"Prefect answered {answer.status.value}: {getattr(answer.details, 'reason', '')}"
