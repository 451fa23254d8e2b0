"""The link from a flow run to a run's report."""

from __future__ import annotations

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactCreate
from prefect.runtime import flow_run, task_run

from resumable_tasks.base import log
from resumable_tasks.prefect.artifacts import artifact_key
from resumable_tasks.prefect.markdown import code

_SECONDS = 10.0


def show_report(job: str, url: str, path: str) -> None:
    """Make a link artifact. A failure is only logged.

    ``url`` is the encoded address. ``path`` is shown too, since a browser opens few such addresses.
    """
    artifact = ArtifactCreate(
        key=f"{artifact_key(job)}-report",
        type="markdown",
        description="The report of this run",
        data=f"[The report](<{url}>)\n\n{code(path)}",
        flow_run_id=flow_run.id,
        task_run_id=task_run.id,
    )
    try:
        with get_client({"timeout": _SECONDS}, sync_client=True) as client:
            client.create_artifact(artifact)
    except Exception as error:  # noqa: BLE001 - a run does not fail because it is not shown
        log.warning("could not link the report of this run in Prefect's UI: %r", error)
