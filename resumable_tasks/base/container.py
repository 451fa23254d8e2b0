"""Detects paths that are lost when the container of this process ends."""

from __future__ import annotations

import os
from collections.abc import Mapping

_MARKS = ("/.dockerenv", "/run/.containerenv")
_OF_ECS = ("ECS_CONTAINER_METADATA_URI_V4", "ECS_CONTAINER_METADATA_URI")
# A Prefect worker sets this in the process of a flow run.
_BY_A_WORKER = "PREFECT__FLOW_RUN_ID"


def lost_with(path: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """Return "pod" or "container" if the path is lost with it; None if it is kept or unknown.

    A path on a volume is kept. A container counts only if a worker started the flow run in it;
    other containers may be kept by the person who started them.
    """
    if environment.get("KUBERNETES_SERVICE_HOST"):
        which = "pod"
    elif _BY_A_WORKER in environment and _in_a_container(environment):
        which = "container"
    else:
        return None
    return which if os.stat(path).st_dev == os.stat("/").st_dev else None


def _in_a_container(environment: Mapping[str, str]) -> bool:
    return any(map(environment.get, _OF_ECS)) or any(map(os.path.exists, _MARKS))
