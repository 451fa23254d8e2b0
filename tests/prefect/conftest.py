from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.prefect import server
from tests.prefect.api import Api


def shared_by(factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """The folder of the one server of this session, and the session's process."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return base.parent / "prefect", os.getppid()
    return base / "prefect", os.getpid()


@pytest.hookimpl(trylast=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    """The server takes long to start, and does so while tests run that need none."""
    needs_it = (
        item for item in session.items if "prefect_server" in getattr(item, "fixturenames", ())
    )
    if not session.config.option.collectonly and next(needs_it, None) is not None:
        server.begin(*shared_by(session.config._tmp_path_factory))  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, Path]:
    """Port and home of the one server of this session."""
    return server.shared(*shared_by(tmp_path_factory))


@pytest.fixture(scope="session")
def api(prefect_server: tuple[int, Path]) -> Api:
    """The server, as a client that knows nothing of Prefect's."""
    return Api(prefect_server[0])


@pytest.fixture(scope="session")
def prefect_env(prefect_server: tuple[int, Path]) -> dict[str, str]:
    """The environment of a process that talks to the server."""
    port, home = prefect_server
    return server.environment(home, port)


@pytest.fixture(scope="module")
def in_prefect(prefect_env: dict[str, str]) -> Iterator[None]:
    """Flows in this process talk to the server. Not the tests of other modules."""
    from prefect.context import refresh_global_settings_context

    before = dict(os.environ)
    os.environ.update(prefect_env)
    # Whatever has loaded Prefect before has read the environment then, and knows of no server:
    # Prefect would start another one, over the same database, and wait for it.
    refresh_global_settings_context()
    yield
    os.environ.clear()
    os.environ.update(before)
    refresh_global_settings_context()
