"""A job on a batch API, as a process that can be killed.

    python -m tests.batch_apis.driver PROVIDER URL CHECKPOINT PUBLISHED [--items N] [--batch-size N]

It waits shorter than a real account needs, as the server does not lag: the lease, the patience and
the pauses.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import time
from collections.abc import Callable
from typing import Any

from resumable_tasks import AnthropicBatch, OpenAIBatch, resumable_task
from resumable_tasks.base import faults
from resumable_tasks.runners.submitted import life
from tests.batch_apis.conftest import (
    anthropic_request,
    anthropic_row,
    openai_request,
    openai_row,
    texts,
)

READY = "the job begins"


def service(provider: str, url: str, **more: Any) -> OpenAIBatch | AnthropicBatch:
    """The handler, with the address of a `BatchServer`."""
    os.environ.setdefault("OPENAI_API_KEY", "k")
    os.environ.setdefault("ANTHROPIC_API_KEY", "k")
    if provider == "openai":
        return OpenAIBatch(openai_request, openai_row, base_url=f"{url}/v1", **more)
    return AnthropicBatch(anthropic_request, anthropic_row, base_url=url, **more)


def hurry(patience: float, lease: float) -> None:
    """Wait for what the server does, and not for what a provider may do."""
    life.LEASE_SECONDS = lease
    life._LAST_PAUSE = life._LONGEST_LOOK = 0.2
    life._FIRST_PAUSE = 0.05
    OpenAIBatch.patience = AnthropicBatch.patience = patience
    AnthropicBatch.request_timeout = 1.0


def stops_at(point: str | None) -> Callable[[str], None]:
    """Stop this process at a fault point, the first time that it comes there."""
    stopped: list[str] = []

    def hook(name: str) -> None:
        if name == point and not stopped:
            stopped.append(name)
            os.kill(os.getpid(), signal.SIGSTOP)
            time.sleep(0.5)  # the other threads are told first

    return hook


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("provider", choices=["openai", "anthropic"])
    parser.add_argument("url")
    parser.add_argument("checkpoint")
    parser.add_argument("published")
    parser.add_argument("--items", type=int, default=681)
    parser.add_argument("--batch-size", type=int, default=69)
    parser.add_argument("--patience", type=float, default=0.3)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--lease", type=float, default=2.0)
    parser.add_argument("--stop-at", help="a fault point, at which it stops itself, once")
    parser.add_argument("--takeover", action="store_true")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx2").setLevel(logging.WARNING)
    hurry(given.patience, given.lease)
    faults.arm(stops_at(given.stop_at))
    handler = service(given.provider, given.url)
    assert handler._client is not None  # the SDK takes a second to import
    print(READY, flush=True)
    job = resumable_task(
        handler,
        name="labels",
        key="id",
        batch_size=given.batch_size,
        concurrency=given.concurrency,
    )
    run = job.run(texts(given.items), checkpoint=given.checkpoint, takeover=given.takeover)
    run.publish(given.published)


if __name__ == "__main__":
    main()
