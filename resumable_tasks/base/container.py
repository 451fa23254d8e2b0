"""Is this a container, and what goes with it when it goes?"""

from __future__ import annotations

import os
from collections.abc import Mapping

_MARKS = ("/.dockerenv", "/run/.containerenv")
_OF_ECS = ("ECS_CONTAINER_METADATA_URI_V4", "ECS_CONTAINER_METADATA_URI")
# Set by a worker of Prefect in the process of a flow run.
_BY_A_WORKER = "PREFECT__FLOW_RUN_ID"


def lost_with(path: str, environment: Mapping[str, str] = os.environ) -> str | None:
    """The pod or container that this path is lost with; None if it is kept, or nothing is known.

    A path on a volume is kept. Of a container that no worker has started a flow run in, a person
    may take care.
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
