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


def interrupted(bucket: Any, *words: str) -> tuple[str, str]:
    """What a command says that is interrupted once a request of it hangs."""
    bucket.server.forget()
    program = [Path(sys.executable).with_name("resumable"), *words]
    pipe = subprocess.PIPE
    with started(program, stdout=pipe, stderr=pipe) as process:
        while not any(seen.fault for seen in bucket.server.log):
            assert process.poll() is None, process.communicate()
            threading.Event().wait(0.05)
        process.send_signal(signal.SIGINT)
        # A request is not given up before 20 s, nor is it then for good.
        out, said = process.communicate(timeout=15)
    assert process.returncode == 75, said
    return out, said


@pytest.mark.sample(one_in=3)
@pytest.mark.parametrize("command", ["status", "ls", "verify", "repair", "reset --yes"])
def test_a_command_that_hangs_ends_at_once(bucket: Any, command: str) -> None:
    job.run([{"id": number} for number in range(3)], checkpoint=bucket.url)
    before = bucket.stored()
    bucket.server.fail("hang", times=10_000)
    name, *more = command.split()
    out, said = interrupted(bucket, name, bucket.url, *more)
    assert said == "resumable: interrupted\n"
    assert out == ""
    assert bucket.stored() == before


def test_what_a_command_cleans_up_is_not_waited_for_either(bucket: Any) -> None:
    bucket.server.fail("hang", times=10_000)
    out, said = interrupted(bucket, "check", bucket.url)
    assert said == "resumable: interrupted\n"
    assert "could not be removed; delete them yourself" in out


@pytest.mark.parametrize("form", ["parquet", "delta"])
def test_a_publishing_that_hangs_ends_at_once(bucket: Any, tmp_path: Path, form: str) -> None:
    """While it writes to its destination, and its own clean-up hangs too."""
    place = str(tmp_path / "place")
    job.run([{"id": number} for number in range(3)], checkpoint=place)
    bucket.server.fail("hang", times=10_000, method="PUT", key="*/part-*")
    bucket.server.fail("hang", times=10_000, method="POST")
    _, said = interrupted(bucket, "publish", place, bucket.url, "--form", form)
    assert said.splitlines()[-1] == "resumable: interrupted"
    assert "_published.json" not in bucket.stored()
