"""The Prefect server that PREFECT_API_URL names, for scripts that are flow runs if there is one.

None is started for them, and what goes wrong with it ends them with 75: run again to resume.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from resumable_tasks import Interrupted, ResumableTasksError, UsageError


class PrefectUnreachable(ResumableTasksError):
    """The Prefect server does not answer. What is done is in the checkpoint, as ever."""

    exit_code = Interrupted.exit_code


def is_named() -> bool:
    return bool(os.environ.get("PREFECT_API_URL"))


def address() -> str:
    """Where it is, for messages: without a password."""
    return os.environ["PREFECT_API_URL"].rpartition("@")[2]


def require() -> None:
    """Raises `PrefectUnreachable` if it does not answer, `UsageError` if there is no Prefect."""
    try:
        from prefect.client.orchestration import get_client
    except ImportError:
        raise UsageError(
            f"PREFECT_API_URL is set ({address()}), and Prefect is not installed: "
            "pip install 'resumable-tasks[prefect]', or --local to do without it"
        ) from None
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:  # noqa: BLE001 - whatever it is, there is no server to run on
        problem = error
    if problem is not None:
        raise PrefectUnreachable(
            f"there is no answer from the Prefect server at {address()} (PREFECT_API_URL): "
            f"{problem}. Start it and run the same command again; or --local to do without it"
        )


@contextmanager
def its_errors() -> Iterator[None]:
    """Around the call of a flow, whose own sources and APIs must not raise httpx's errors."""
    import httpx

    try:
        yield
    except httpx.HTTPError as error:
        raise PrefectUnreachable(
            f"the Prefect server at {address()} (PREFECT_API_URL) has failed the flow run: "
            f"{error!r}. What is done is safe, and may be all: run the same command again"
        ) from error
