"""The Python prompt, on a terminal: neither an error nor Ctrl-C ends it."""

from __future__ import annotations

import fcntl
import os
import select
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.processes import started

JOB = """\
import time
from resumable_tasks import resumable_task
def slow(items): print("beg" + "un"); time.sleep(0.1)

def bad(items): raise KeyError("x")

slow_job, bad_job = (resumable_task(fn, batch_size=1, results="none") for fn in (slow, bad))
"""
SECONDS = 30


class Terminal:
    """One end of a terminal, which a program has the other of."""

    def __init__(self, end: int) -> None:
        self.end, self.seen = end, ""

    def type(self, text: str) -> None:
        os.write(self.end, text.encode())

    def wait_for(self, text: str) -> None:
        until = time.monotonic() + SECONDS
        while text not in self.seen and time.monotonic() < until:
            if select.select([self.end], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.end, 65_536).decode(errors="replace")
                except OSError:  # the program has ended
                    break
        assert text in self.seen, self.seen
        self.seen = self.seen.partition(text)[2]


def _of_its_own() -> None:
    """Give the child this terminal, so that Ctrl-C is the terminal's."""
    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


@pytest.mark.parametrize("script", [False, True], ids=["prompt", "python -i"])
def test_an_error_or_ctrl_c_leaves_the_prompt_there(tmp_path: Path, script: bool) -> None:
    file = tmp_path / "job.py"
    file.write_text(JOB + 'bad_job.run(["a"], checkpoint="first")\n' if script else "", "utf-8")
    ours, theirs = os.openpty()
    command = [sys.executable, *(["-i", str(file)] if script else ["-q"])]
    environment = os.environ | {"TERM": "dumb", "PYTHON_BASIC_REPL": "1"}
    with started(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=tmp_path,
        env=environment,
        preexec_fn=_of_its_own,
    ) as process:
        os.close(theirs)
        terminal = Terminal(ours)
        if script:
            terminal.wait_for("1 of 1 items of bad failed")
        terminal.wait_for(">>> ")
        terminal.type("" if script else JOB)
        terminal.type('print("rea" + "dy")\n')
        terminal.wait_for("ready")
        terminal.type('bad_job.run(["a"], checkpoint="bad")\n')
        terminal.wait_for("1 of 1 items of bad failed")
        terminal.wait_for(">>> ")
        terminal.type('slow_job.run(range(9_999), checkpoint="slow", progress=False)\n')
        terminal.wait_for("begun")
        terminal.type("\x03")
        terminal.wait_for("un the same command again to resume")
        terminal.wait_for(">>> ")
        terminal.type('print("still " + "here"); exit(7)\n')
        terminal.wait_for("still here")
        assert process.wait(SECONDS) == 7
        os.close(ours)
