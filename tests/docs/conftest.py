from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.batch_apis.server import BatchServer
from tests.prefect.conftest import prefect_env, prefect_server

__all__ = ["prefect_env", "prefect_server"]


@pytest.fixture
def batch_api_env() -> Iterator[dict[str, str]]:
    """Where the SDKs of the batch APIs find a server, which answers at once."""
    with BatchServer() as server:
        yield {
            "OPENAI_API_KEY": "k",
            "OPENAI_BASE_URL": server.openai,
            "ANTHROPIC_API_KEY": "k",
            "ANTHROPIC_BASE_URL": server.anthropic,
        }
