from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from resumable_tasks import BadResult, OpenAIBatch
from tests.batch_apis.server import BatchServer

SECONDS = 0.05


@pytest.fixture(scope="session")
def process() -> Iterator[BatchServer]:
    with BatchServer() as server:
        yield server


@pytest.fixture
def server(process: BatchServer, monkeypatch: pytest.MonkeyPatch) -> BatchServer:
    """A batch API of either provider, in a process of its own, that knows of nothing yet."""
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    monkeypatch.setenv("ANTHROPIC_API_KEY", "k")
    process.reset()
    return process


def openai_request(item: Any) -> dict[str, Any]:
    content = (
        item["text"] if isinstance(item, dict) else json.dumps([each["text"] for each in item])
    )
    return {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": content}]}


def openai_row(key: Any, answer: dict[str, Any]) -> Any:
    return rows_of(key, answer["choices"][0]["message"]["content"])


def rows_of(key: Any, said: str) -> Any:
    try:
        labels = [each["label"] for each in json.loads(said)]
    except ValueError:
        raise BadResult(f"no JSON: {said!r}") from None
    if isinstance(key, list):
        return [{"id": k, "label": label} for k, label in zip(key, labels, strict=False)]
    return {"id": key, "label": labels[0]}


def texts(n: int, **special: str) -> list[dict[str, Any]]:
    """So many items, of which some, such as ``_3="REFUSED"``, have a text of their own."""
    return [{"id": i, "text": special.get(f"_{i}", f"text {i}")} for i in range(n)]


@pytest.fixture
def batch(server: BatchServer) -> OpenAIBatch:
    return OpenAIBatch(openai_request, openai_row, base_url=server.openai)
