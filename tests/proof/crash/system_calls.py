"""Kills and errors at a system call, by strace, which is attached when the imports are done.

strace counts the calls of a thread, so that one thread is watched at a time: the caller's (which
opens the checkpoint and ends the run) or, with ``committer_first``, the committer's.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from tests.proof.crash.child import Spec
from tests.proof.crash.launcher import Child, Launcher, until

# What changes a file system, or tells that it has changed.
CALLS = (
    "openat",
    "write",
    "fsync",
    "close",
    "link",
    "linkat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "flock",
)


@dataclass(frozen=True)
class Point:
    """The ``nth`` call of this name in the caller's thread, or in the committer's."""

    call: str
    nth: int
    committer: bool


def traced(launch: Launcher, spec: Spec, *inject: str) -> tuple[Child, str]:
    """Run a child whose main thread is traced; the child, ended, and the calls it made."""
    ready, go, log = (Path(spec.path(name)) for name in ("ready", "go", "strace"))
    for path in (ready, go, log):
        path.unlink(missing_ok=True)
    child = launch.fork(replace(spec, wait=True))
    until("ready", ready.exists)
    command = ["strace", "-o", str(log), "-e", f"trace={','.join(CALLS)}"]
    for each in inject:
        command += ["-e", f"inject={each}"]
    with subprocess.Popen(
        [*command, "-p", str(child.pid)], stderr=subprocess.PIPE, text=True
    ) as strace:
        assert strace.stderr is not None
        said = strace.stderr.readline()
        assert "attached" in said, said + strace.stderr.read()
        go.touch()
        child.wait()
        strace.wait(30)
    return child, log.read_text(errors="replace")


def calls(log: str) -> Counter[str]:
    return Counter(re.findall(r"^(\w+)\(", log, flags=re.MULTILINE))


def points(launch: Launcher, spec: Spec) -> list[Point]:
    """Every call of a run that nothing happens to."""
    found = []
    for committer in (False, True):
        place = Path(spec.place) / f"count-{committer}"
        place.mkdir()
        child, log = traced(launch, replace(spec, place=str(place), committer_first=committer))
        assert child.code == 0, child.says()
        for call, count in sorted(calls(log).items()):
            found += [Point(call, nth, committer) for nth in range(1, count + 1)]
    return found
