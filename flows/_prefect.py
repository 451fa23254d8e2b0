"""Prefect flows made of plain functions, for scripts that run without Prefect too."""

from __future__ import annotations

import functools
import inspect
import ipaddress
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from resumable_tasks import Interrupted, ResumableTasksError, UsageError, without_secrets


class Unreachable(ResumableTasksError):
    """A service does not answer. What is done is safe: run the same command again, to resume."""

    exit_code = Interrupted.exit_code


def as_flow(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    """Make ``fn`` the flow ``name``: a call is a flow run if PREFECT_API_URL names a server.

    Without a server a call is a plain one. The flow is made when it is called, so that a script
    does not pay for the import of Prefect, which takes seconds. Where Prefect is loaded already,
    as in whatever imports a deployment's entrypoint, the result is Prefect's own flow object.
    """
    if "prefect" in sys.modules:
        return _flow(fn, name)

    @functools.wraps(fn)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not server():
            return fn(*args, **kwargs)
        refuse_secrets([*args, *kwargs.values()])
        return _flow(fn, name)(*args, **kwargs)

    return call


def is_private(url: str) -> bool:
    """True if what is sent there is read by nobody on the way: by https, or on this machine."""
    parts = urlsplit(url)
    if parts.scheme == "https" or parts.hostname == "localhost":
        return True
    try:
        return ipaddress.ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def refuse_secrets(given: Iterable[Any]) -> None:
    """Raises `UsageError` for a value with a secret: Prefect keeps parameters and shows them."""
    for value in given:
        if isinstance(value, str) and without_secrets(value) != value:
            raise UsageError(
                f"{without_secrets(value)}: it contains a secret, which Prefect would store and "
                "show as a parameter of the flow run. Leave it out: give a database's in "
                "PGPASSFILE or a service file, an API's in the environment variable that token_env "
                "names"
            )


def _flow(fn: Callable[..., Any], name: str) -> Callable[..., Any]:
    from prefect import flow

    from resumable_tasks import flow_state

    def run(*args: Any, **kwargs: Any) -> Any:
        refuse_secrets([*args, *kwargs.values()])
        return flow_state(fn(*args, **kwargs))

    async def arun(*args: Any, **kwargs: Any) -> Any:
        refuse_secrets([*args, *kwargs.values()])
        return flow_state(await fn(*args, **kwargs))

    made: Any = functools.update_wrapper(arun if inspect.iscoroutinefunction(fn) else run, fn)
    # Prefect checks parameters by their types, whose names mean something in fn's module alone.
    made.__signature__ = inspect.signature(fn, eval_str=True)
    made.__annotations__ = inspect.get_annotations(fn, eval_str=True)
    return flow(name=name)(made)


def server() -> str | None:
    """The address in PREFECT_API_URL, without a password; None if there is none."""
    return os.environ.get("PREFECT_API_URL", "").rpartition("@")[2] or None


@contextmanager
def reached() -> Iterator[None]:
    """Around a flow run: raises `Unreachable` where the server fails it.

    No server is started where none answers. A missing Prefect is a `UsageError`.
    """
    try:
        import httpx
        from prefect.client.orchestration import get_client
    except ImportError:
        raise UsageError(
            f"PREFECT_API_URL is set ({server()}), but Prefect is not installed: pip install "
            "'resumable-tasks[prefect]', or --local to run without it"
        ) from None
    try:
        with get_client(sync_client=True) as client:
            problem = client.api_healthcheck()
    except Exception as error:  # noqa: BLE001 - whatever it is, there is no server to run on
        problem = error
    if problem is not None:
        raise Unreachable(
            f"no answer from the Prefect server at {server()} (PREFECT_API_URL): {problem}. "
            "Start it and run the same command again; or --local to run without it"
        )
    try:
        yield
    except httpx.HTTPError as error:  # Prefect's: the flows turn those of their own requests
        raise Unreachable(
            f"the Prefect server at {server()} (PREFECT_API_URL) failed the flow run: {error!r}. "
            "Completed work is safe, and may be everything: run the same command again"
        ) from error
