"""``python -m tests.benchmarks.in_bucket [--keys N]``: many completed keys in a bucket of 30 ms.

The server is a process of its own, and answers after 30 ms each. Seconds are of the clock here:
what is measured is waiting, and the requests are told beside them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from resumable_tasks.testing.s3server import S3Server
from tests.benchmarks.__main__ import row, table
from tests.benchmarks.many import batches, job

LATENCY = 0.03
PLACE = "s3://test/many"


class Server:
    """A server in another process, and what it is asked past its latency."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint

    def ask(self, method: str, what: str, given: Any = None) -> Any:
        """Ask the server's own interface, which other processes have for the tests."""
        asked = urllib.request.Request(
            f"{self._endpoint}/-/{what}", json.dumps(given).encode(), method=method
        )
        with urllib.request.urlopen(asked) as reply:
            return json.load(reply)

    def measured(self, work: Callable[[], Any]) -> tuple[float, int]:
        """The seconds that the work takes, and its requests."""
        self.ask("DELETE", "log")
        start = time.perf_counter()
        work()
        seconds = time.perf_counter() - start
        return seconds, sum(self.ask("GET", "counts").values())


@contextmanager
def server() -> Iterator[Server]:
    """Run a server, which clients find by the environment from now on."""
    command = [sys.executable, "-m", "resumable_tasks.testing.s3server"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        endpoint = process.stdout.readline().strip()
        with S3Server() as like:
            os.environ.update(like.environment(), AWS_ENDPOINT_URL=endpoint)
        try:
            yield Server(endpoint)
        finally:
            process.terminate()


def main() -> None:
    from resumable_tasks.checkpoint.directory.driver import read_checkpoint
    from resumable_tasks.checkpoint.store.urls import open_store

    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--batch", type=int, default=5_000)
    asked = parser.parse_args()

    def run() -> None:
        result = job(asked.batch).run(batches(asked.keys), checkpoint=PLACE, progress=False)
        assert result.total == asked.keys, result

    with server() as found:
        run()
        found.ask("POST", "options", {"latency": LATENCY})
        table(f"{asked.keys:,} completed keys, 30 ms a request", "s", "requests")
        for what, work in (
            ("open, for reading", lambda: read_checkpoint(open_store(PLACE))),
            ("a run with nothing to do, from Arrow", run),
        ):
            seconds, requests = min(found.measured(work) for _ in range(3))
            row(what, f"{seconds:.2f}", f"{requests}")


if __name__ == "__main__":
    main()
