"""A driver in a process of its own, to be killed:

``python -m tests.checkpoint.sql.child '{"url": …}'``."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from resumable_tasks import SqlCheckpoint, resumable_task
from tests import warm

_ROOT = Path(__file__).resolve().parents[3]


@dataclasses.dataclass(frozen=True)
class Spec:
    """``handled``: the file to which the handler writes the keys it was called for.

    ``gate``: a file that says up to which key rows may be handled; later ones wait for it.
    """

    url: str
    handled: str
    place: str = "columns"
    shards: str = ""
    batch_size: int = 20
    seconds: float = 0.0
    claim_seconds: float = 60.0
    faults: str = ""
    gate: str = ""

    @property
    def checkpoint(self) -> SqlCheckpoint:
        places: dict[str, dict[str, Any]] = {
            "columns": {"columns": ["label"]},
            "results": {"results_table": "labels"},
            "shards": {"shards": self.shards},
            "none": {},
        }
        return SqlCheckpoint(
            self.url,
            table="lessons",
            key="id",
            claim_seconds=self.claim_seconds,
            **places[self.place],
        )

    def calls(self) -> list[int]:
        """The keys that handlers were called for, over all runs."""
        path = Path(self.handled)
        return [int(line) for line in path.read_text().split()] if path.exists() else []


def run(spec: Spec) -> None:
    log = os.open(spec.handled, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o644)

    @resumable_task(
        name="label",
        batch_size=spec.batch_size,
        results="none" if spec.place == "none" else "one",
        concurrency=2,
    )
    def label(rows: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        os.write(log, "".join(f"{row['id']}\n" for row in rows).encode())
        time.sleep(spec.seconds)
        while spec.gate and rows[0]["id"] > int(Path(spec.gate).read_text() or 0):
            time.sleep(0.02)
        if spec.place == "none":
            return None
        return [{"id": row["id"], "label": row["text"].upper()} for row in rows]

    done = label.run(checkpoint=spec.checkpoint)
    print(f"completed {done.completed} skipped {done.skipped} total {done.total}", flush=True)


class Child:
    """The process; what it says goes to a file."""

    def __init__(self, spec: Spec, output: Path) -> None:
        self.output = output
        with output.open("ab") as file:
            self._process = warm.start(
                [
                    sys.executable,
                    "-m",
                    "tests.checkpoint.sql.child",
                    json.dumps(dataclasses.asdict(spec)),
                ],
                stdout=file,
                stderr=file,
                cwd=_ROOT,
                env={**os.environ, "RESUMABLE_TASKS_FAULTS": spec.faults},
            )
        self.pid = self._process.pid

    def wait(self, seconds: float = 120) -> int:
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still running after {seconds} s: {self.says()}") from None

    def running(self) -> bool:
        return self._process.poll() is None

    def stopped(self) -> bool:
        """Whether it was stopped, and is there still."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"

    def send(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self.send(signal.SIGKILL)
        self._process.wait(30)

    def says(self) -> str:
        return self.output.read_text()


def until(what: str, holds: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"after {seconds:g} s not yet: {what}"
        time.sleep(0.05)
    return found


if __name__ == "__main__":
    from resumable_tasks.testing.faults import install_from_env

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    install_from_env()
    run(Spec(**json.loads(sys.argv[1])))
