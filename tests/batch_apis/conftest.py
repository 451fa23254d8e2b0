from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from resumable_tasks import BadResult, Ended, ItemFailure, OpenAIBatch, Undone
from tests.batch_apis.server import BatchServer

TOKEN = "0123456789abcdef"


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


def anthropic_request(item: Any) -> dict[str, Any]:
    return openai_request(item) | {"model": "claude-haiku-4-5", "max_tokens": 50}


def anthropic_row(key: Any, message: dict[str, Any]) -> Any:
    return rows_of(key, message["content"][0]["text"])


def rows_of(key: Any, said: str) -> Any:
    try:
        found = json.loads(said)
    except ValueError:
        raise BadResult(f"no JSON: {said!r}") from None
    if isinstance(key, list):
        return [{"id": k, **label} for k, label in zip(key, found, strict=False)]
    return {"id": key, **found}


def texts(n: int, **special: str) -> list[dict[str, Any]]:
    """So many items, of which some, such as ``_3="REFUSED"``, have a text of their own."""
    return [{"id": i, "text": special.get(f"_{i}", f"text {i}")} for i in range(n)]


def submitted(batch: Any, items: list[dict[str, Any]], token: str = TOKEN) -> Any:
    return batch.submit(items, token, batch.prepare(items, token))


def ended(batch: Any, handle: Any) -> Ended:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if isinstance(found := batch.poll(handle), Ended):
            return found
        time.sleep(0.02)
    raise AssertionError("it has not ended")


def outcome(batch: Any, items: list[dict[str, Any]]) -> tuple[list[Any], ...]:
    """The keys of rows, of failures, of what is undone, of what is undone for an outage."""
    handle = submitted(batch, items)
    ended(batch, handle)
    return by_kind(batch.collect(handle, [item["id"] for item in items]))


def by_kind(results: Any) -> tuple[list[Any], ...]:
    return (
        sorted(row["id"] for row in results if isinstance(row, dict)),
        sorted(each.key for each in results if isinstance(each, ItemFailure)),
        sorted(each.key for each in results if isinstance(each, Undone) and not each.outage),
        sorted(each.key for each in results if isinstance(each, Undone) and each.outage),
    )


@pytest.fixture
def batch(server: BatchServer) -> OpenAIBatch:
    return OpenAIBatch(openai_request, openai_row, base_url=server.openai)
