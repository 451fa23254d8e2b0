"""Starts children, waits for them within bounds, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tests import warm
from tests.proof.crash.child import Spec

_ROOT = Path(__file__).resolve().parents[len(str(__package__).split("."))]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(_ROOT), "PYTHONUNBUFFERED": "1"}
BOUND_SECONDS = 60.0


def until(what: str, holds: Callable[[], Any], seconds: float = BOUND_SECONDS) -> Any:
    """Wait until this holds; a failure that says what did not, after a bound of seconds."""
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:g} seconds: not yet {what}")
        time.sleep(0.002)
    return found


class Child:
    """One child, in a process group of its own."""

    def __init__(self, pid: int, output: Path, wait: Callable[[float], int | None]) -> None:
        self.pid = pid
        self._output = output
        self._wait = wait
        self.code: int | None = None

    def wait(self, seconds: float = BOUND_SECONDS) -> int:
        """The exit code, negative for the signal that has ended it."""
        if self.code is None:
            self.code = self._wait(seconds)
        assert self.code is not None, f"still running after {seconds:g} s: {self.says()}"
        return self.code

    def running(self) -> bool:
        if self.code is None:
            self.code = self._wait(0.0)
        return self.code is None

    def says(self) -> str:
        """What it has written to standard output and standard error."""
        return self._output.read_text(errors="replace") if self._output.exists() else ""

    def signal(self, number: int) -> None:
        if self.running():
            os.kill(self.pid, number)

    def kill(self) -> None:
        """SIGKILL to it and all that it has started in its group."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self.wait()

    def stopped(self) -> bool:
        """Whether it is stopped, as by SIGSTOP."""
        assert self.running(), f"it has ended with {self.code}: {self.says()}"
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text()
        except FileNotFoundError:
            return False
        return status.rpartition(")")[2].split()[0] in "Tt"


class Launcher:
    """Starts the children of one test."""

    module = f"{__package__}.child"

    def __init__(self, outputs: Path) -> None:
        self._outputs = outputs
        self.more: dict[str, str] = {}
        """Variables of the environment for those that are started from here on."""
        self._children: list[Child] = []

    def fork(self, spec: Any) -> Child:
        """A child of the warm parent: quick to start."""
        return self._started(warm.start, spec)

    def start(self, spec: Any) -> Child:
        """A fresh interpreter, as a person's script is."""
        return self._started(subprocess.Popen, spec)

    def _started(self, start: Any, spec: Any) -> Child:
        self._outputs.mkdir(exist_ok=True)
        output = self._outputs / f"{len(self._children)}.txt"
        with output.open("ab") as file:
            process = start(
                [sys.executable, "-m", self.module, json.dumps(asdict(spec))],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=ENVIRONMENT | self.more,
                cwd=spec.place,
                start_new_session=True,
            )

        def wait(seconds: float) -> int | None:
            try:
                code: int | None = process.wait(seconds) if seconds else process.poll()
            except subprocess.TimeoutExpired:
                return None
            return code

        self._children.append(Child(process.pid, output, wait))
        return self._children[-1]

    def to_end(self, spec: Spec) -> Child:
        """Run to the end, which has to be a good one."""
        child = self.fork(spec)
        code = child.wait()
        assert code == 0, f"exit code {code}: {child.says()}"
        return child

    def close(self) -> None:
        for child in self._children:
            child.kill()
