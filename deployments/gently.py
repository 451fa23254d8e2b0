"""Starts a Prefect worker, or serve.py, and stops it gently: the flow runs first, then it.

    python deployments/gently.py prefect worker start --pool nightly

Prefect does it the other way round. A worker that gets SIGTERM (`docker stop`, a reboot, a
deploy) kills its flow runs by SIGKILL at once and leaves them "Running" for ever: nothing is lost,
but nobody resumes them before an automation finds them. `serve` does the same with Prefect 3.8;
with 3.9 it cancels them, and what is cancelled is not resumed. Here, on SIGTERM or Ctrl-C:

1. The worker is held (SIGSTOP), so that it takes no further run.
2. Each flow run gets SIGTERM: it commits what its batches finish within their grace, 25 seconds by
   default, and ends as Crashed, which the automation of automations.yaml reruns.
3. When they have ended, and after 45 seconds in any case, the worker gets SIGTERM too.

All that in 55 seconds at most: give a container `stop_grace_period: 60s`, a systemd unit
`KillMode=mixed` and `TimeoutStopSec=60`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

# Longer than the grace of resumable_task's batches, and what Prefect needs to report the end.
FLOW_RUN_SECONDS = 45.0
COMMAND_SECONDS = 10.0
POLL_SECONDS = 0.1


def gently(command: Sequence[str]) -> int:
    """Run a command, and stop it as above; its exit code, 128 + n if signal n ended it."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: asked.append(number))
    # In a session of its own: Ctrl-C in a terminal comes to this process alone.
    process = subprocess.Popen(command, start_new_session=True)  # noqa: S603 - the caller's own
    while process.poll() is None and not asked:
        time.sleep(POLL_SECONDS)
    if process.poll() is None:
        _stop(process, asked)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _stop(process: subprocess.Popen[bytes], asked: list[int]) -> None:
    _send(process.pid, signal.SIGSTOP)
    sent = 0
    until = time.monotonic() + FLOW_RUN_SECONDS
    while (runs := list(_flow_runs(process.pid))) and time.monotonic() < until:
        if sent < len(asked):  # asked once more, they stop at once
            sent = len(asked)
            for pid in runs:
                _send(pid, signal.SIGTERM)
        time.sleep(POLL_SECONDS)
    # It finds SIGTERM waiting when it goes on, before anything else.
    _send(process.pid, signal.SIGTERM)
    _send(process.pid, signal.SIGCONT)
    try:
        process.wait(COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


def _send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _flow_runs(parent: int) -> Iterator[int]:
    """The living children of the command: for each flow run one."""
    for pid, its_parent, state, line in _processes():
        # The helper of multiprocessing ends by itself.
        if its_parent == parent and not state.startswith("Z") and "resource_tracker" not in line:
            yield pid


def _processes() -> Iterator[tuple[int, int, str, str]]:
    """Pid, parent, state and command line of each process."""
    if not Path("/proc/self/stat").exists():  # macOS
        columns = ["ps", "-A", "-o", "pid=,ppid=,state=,command="]
        listed = subprocess.run(columns, capture_output=True, text=True)  # noqa: S603
        for each in listed.stdout.splitlines():
            pid, parent, state, *line = each.split(maxsplit=3)
            yield int(pid), int(parent), state, "".join(line)
        return
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            # The name before it, in parentheses, may hold anything.
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has just ended
            continue
        yield int(entry.name), int(fields[1]), fields[0], line


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(f"usage: {sys.argv[0]} COMMAND [ARGUMENT…]")
    sys.exit(gently(sys.argv[1:]))
