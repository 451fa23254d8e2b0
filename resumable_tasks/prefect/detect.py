"""Detects a flow run around the caller. Costs nothing if Prefect is not loaded."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from resumable_tasks.errors import UsageError

if TYPE_CHECKING:
    from resumable_tasks.prefect.flow_run import FlowRun


INSTALL = 'pip install "resumable-tasks[prefect]"'


def require_prefect(what: str) -> None:
    """Raise `UsageError`, with the command that installs it, if Prefect is missing."""
    if find_spec("prefect") is None:
        raise UsageError(f"{what} needs Prefect, which is not installed", remedy=INSTALL)


def current_flow_run() -> FlowRun | None:
    """The flow run around the caller; None outside of one.

    Does not load Prefect's contexts, which takes seconds: without them there is no flow run.
    """
    contexts = sys.modules.get("prefect.context")
    if contexts is None or contexts.FlowRunContext.get() is None:
        return None
    from resumable_tasks.prefect.flow_run import FlowRun

    return FlowRun()
