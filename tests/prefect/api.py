"""Prefect's HTTP API, plainly: the oracle of these tests must not share Prefect's own client."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# One server on SQLite answers for all tests at once, and waits for its own writes.
SECONDS = 120


@dataclass(frozen=True)
class Api:
    port: int

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/api/{path}",
            data=json.dumps(body).encode() if body is not None else None,
            headers={"content-type": "application/json"},
            method=method,
        )
        for last_try in (False,) * 20 + (True,):
            try:
                with urllib.request.urlopen(request, timeout=SECONDS) as answer:
                    data = answer.read()
                break
            except urllib.error.HTTPError as error:
                # What the server says while another has its database; clients are to try again.
                if error.code != 503 or last_try:
                    raise
                time.sleep(0.2)
        return json.loads(data) if data else None

    def flow_run(self, id: str) -> Any:
        return self.call("GET", f"flow_runs/{id}")

    def flow_runs(self, **filters: Any) -> list[Any]:
        found: list[Any] = self.call("POST", "flow_runs/filter", {"limit": 200, **filters})
        return found

    def task_runs(self, flow_run: str) -> list[Any]:
        where = {"flow_runs": {"id": {"any_": [flow_run]}}, "limit": 200}
        found: list[Any] = self.call("POST", "task_runs/filter", where)
        return found

    def artifacts(self, flow_run: str) -> list[Any]:
        where = {"flow_runs": {"id": {"any_": [flow_run]}}, "limit": 200}
        found: list[Any] = self.call("POST", "artifacts/filter", where)
        return found

    def events(self, prefix: str, related: str) -> list[Any]:
        """The events of this prefix that relate to this flow run, newest first."""
        where = {
            "event": {"prefix": [prefix]},
            "related": {"id": [f"prefect.flow-run.{related}"]},
            "occurred": {"since": "2020-01-01T00:00:00Z"},
        }
        answer = self.call("POST", "events/filter", {"filter": where, "limit": 50})
        found: list[Any] = answer["events"]
        while answer.get("next_page"):
            with urllib.request.urlopen(answer["next_page"], timeout=SECONDS) as page:
                answer = json.loads(page.read())
            found += answer["events"]
        return found

    def logs(self, flow_run: str) -> list[str]:
        where = {"logs": {"flow_run_id": {"any_": [flow_run]}}, "limit": 200}
        return [line["message"] for line in self.call("POST", "logs/filter", where)]


def until(what: Callable[[], Any], seconds: float = 90) -> Any:
    """Wait for something to be true, which the server may learn of a little later."""
    end = time.monotonic() + seconds
    while not (found := what()):
        if time.monotonic() > end:
            raise AssertionError(f"not true within {seconds:g} s: {found!r}")
        time.sleep(0.2)
    return found
