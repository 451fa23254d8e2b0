"""What starts flow runs as processes of their own: ``flow.serve()``, and a work pool's worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests import warm
from tests.prefect.api import Api, until
from tests.prefect.recovery.scene import PATIENCE

HERE = Path(__file__).parent
_OFTEN = {
    "PREFECT_RUNNER_POLL_FREQUENCY": "1",
    "PREFECT_WORKER_QUERY_SECONDS": "1",
    "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
}


class Supervisor(ABC):
    """A process that starts flow runs; what one does with them goes by the API, as in the UI."""

    def __init__(self, name: str, api: Api, env: Mapping[str, str], folder: Path) -> None:
        self.name = name
        self.api = api
        self._env, self._folder = env, folder
        self.start()
        self._deployments: dict[str, str] = {}

    def start(self) -> None:
        """Start the process."""
        with (self._folder / f"{self.name}.log").open("ab") as log:
            self._process = warm.start(
                self.command(),
                env={**self._env, **_OFTEN},
                cwd=self._folder,
                stdout=log,
                stderr=log,
                prefect=True,
            )

    @abstractmethod
    def command(self) -> list[str]:
        """What to start."""

    @abstractmethod
    def settled(self, note: dict[str, Any]) -> None:
        """Wait until it has said all that it has to say of a process that died."""

    def _deployment(self, flow: str) -> str:
        if flow not in self._deployments:
            self._deployments[flow] = self._ready(f"deployments/name/{flow}/{self.name}")["id"]
        return self._deployments[flow]

    def _ready(self, path: str) -> Any:
        """Wait until this is there, and somebody asks for its flow runs."""

        def look() -> Any:
            assert self._process.poll() is None, f"{self.name} has ended"
            try:
                found = self.api.call("GET", path)
            except urllib.error.HTTPError:
                return None
            return found if found["status"] == "READY" else None

        return until(look, PATIENCE)

    def run(self, parameters: dict[str, Any], flow: str = "job") -> str:
        """Have a flow run started; its id."""
        asked = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
        path = f"deployments/{self._deployment(flow)}/create_flow_run"
        return str(self.api.call("POST", path, asked)["id"])

    def set_state(self, run: str, **state: Any) -> None:
        answer = self.api.call("POST", f"flow_runs/{run}/set_state", {"state": state})
        assert answer["status"] == "ACCEPT", answer

    def retry(self, run: str) -> None:
        """What ``prefect flow-run retry`` does for the run of a deployment."""
        self.set_state(run, type="SCHEDULED", name="AwaitingRetry")

    def cancel(self, run: str) -> None:
        """What ``prefect flow-run cancel`` does."""
        self.set_state(run, type="CANCELLING")

    def suspend(self, run: str) -> None:
        """What ``suspend_flow_run(flow_run_id=…)`` does."""
        details = {"pause_timeout": "2100-01-01T00:00:00Z", "pause_reschedule": True}
        self.set_state(run, type="PAUSED", name="Suspended", state_details=details)

    def resume(self, run: str) -> None:
        """What the button does."""
        answer = self.api.call("POST", f"flow_runs/{run}/resume", {})
        assert answer["status"] == "ACCEPT", answer

    def state(self, run: str) -> str:
        return str(self.api.flow_run(run)["state"]["name"])

    def wait_for(self, run: str, name: str, seconds: float = PATIENCE) -> None:
        until(lambda: self.state(run) == name, seconds)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


class Served(Supervisor):
    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "serve.py"), self.name]

    def settled(self, note: dict[str, Any]) -> None:
        pass


class Worker(Supervisor):
    path = HERE

    def command(self) -> list[str]:
        prefect = str(Path(sys.executable).with_name("prefect"))
        return [prefect, "worker", "start", "--pool", self.name, "--type", "process"]

    def _deployment(self, flow: str) -> str:
        if flow not in self._deployments:
            self._ready(f"work_pools/{self.name}")
            about = {
                "name": self.name,
                "flow_id": self.api.call("POST", "flows/", {"name": flow})["id"],
                "entrypoint": f"flow.py:{flow}",
                "path": str(self.path),  # which is copied to where the flow run works
                "work_pool_name": self.name,
            }
            self._deployments[flow] = self.api.call("POST", "deployments/", about)["id"]
        return self._deployments[flow]

    def settled(self, note: dict[str, Any]) -> None:
        # It reports a crash twice, seconds apart, and the second report may hit a retry.
        until(lambda: not Path(note["cwd"]).exists())
        time.sleep(1)
