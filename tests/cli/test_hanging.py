"""A command whose bucket does not respond is ended by Ctrl-C."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import resumable_task
from tests.processes import started

pytest.importorskip("obstore")


@resumable_task(name="job", key="id")
def job(items: list[Any]) -> list[Any]:
    return items


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("command", ["status", "ls", "verify", "repair", "reset --yes"])
def test_a_command_that_hangs_ends_at_once(bucket: Any, command: str) -> None:
    job.run([{"id": number} for number in range(3)], checkpoint=bucket.url)
    before = bucket.stored()
    bucket.server.fail("hang", times=10_000)
    bucket.server.forget()
    name, *more = command.split()
    program = [Path(sys.executable).with_name("resumable"), name, bucket.url, *more]
    pipe = subprocess.PIPE
    with started(program, stdout=pipe, stderr=pipe) as process:
        while not bucket.server.log:
            assert process.poll() is None, process.communicate()
            threading.Event().wait(0.05)
        process.send_signal(signal.SIGINT)
        # A request is not given up before 20 s, nor is it then for good.
        out, said = process.communicate(timeout=15)
    assert process.returncode == 75, said
    assert said == "resumable: interrupted\n"
    assert out == ""
    assert bucket.stored() == before
