"""Starts children, waits for them within bounds, and leaves none behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

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


class Zygote:
    """The process that forks the children; see `zygote`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"{__package__}.zygote"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=ENVIRONMENT,
            start_new_session=True,
        )
        self._started: list[int] = []
        self.ended: dict[int, int] = {}
        self._over = False
        self._news = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def fork(self, spec: Spec, output: Path) -> int:
        assert self._process.stdin is not None
        request = {"spec": asdict(spec), "output": str(output)}
        with self._news:
            count = len(self._started)
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        with self._news:
            self._news.wait_for(lambda: len(self._started) > count or self._over, BOUND_SECONDS)
            assert len(self._started) > count, "the zygote has died; see its standard error"
            # It may have ended already, and `_listen` have noted that down: it stays so.
            return self._started[-1]

    def wait(self, pid: int, seconds: float) -> int | None:
        with self._news:
            self._news.wait_for(lambda: pid in self.ended, seconds)
            return self.ended.get(pid)

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(BOUND_SECONDS)
        self._thread.join(BOUND_SECONDS)
        self._process.stdout.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            answer = json.loads(line)
            with self._news:
                if "started" in answer:
                    # A number can come again; what ended under it before is another process.
                    self.ended.pop(answer["started"], None)
                    self._started.append(answer["started"])
                else:
                    self.ended[answer["ended"]] = answer["status"]
                self._news.notify_all()
        with self._news:
            self._over = True
            self._news.notify_all()


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

    def __init__(self, zygote: Callable[[], Zygote], outputs: Path) -> None:
        self._zygote = zygote
        self._outputs = outputs
        self._children: list[Child] = []

    def fork(self, spec: Spec) -> Child:
        """A child of the zygote: quick to start."""
        output = self._output()
        zygote = self._zygote()
        pid = zygote.fork(spec, output)
        return self._add(Child(pid, output, lambda seconds: zygote.wait(pid, seconds)))

    def start(self, spec: Spec) -> Child:
        """A fresh interpreter, as a person's script is."""
        output = self._output()
        with output.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", f"{__package__}.child", json.dumps(asdict(spec))],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=ENVIRONMENT,
                cwd=spec.place,
                start_new_session=True,
            )

        def wait(seconds: float) -> int | None:
            try:
                return process.wait(seconds) if seconds else process.poll()
            except subprocess.TimeoutExpired:
                return None

        return self._add(Child(process.pid, output, wait))

    def to_end(self, spec: Spec) -> Child:
        """Run to the end, which has to be a good one."""
        child = self.fork(spec)
        code = child.wait()
        assert code == 0, f"exit code {code}: {child.says()}"
        return child

    def close(self) -> None:
        for child in self._children:
            child.kill()

    def _output(self) -> Path:
        self._outputs.mkdir(exist_ok=True)
        return self._outputs / f"{len(self._children)}.txt"

    def _add(self, child: Child) -> Child:
        self._children.append(child)
        return child
