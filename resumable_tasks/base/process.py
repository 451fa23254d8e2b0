"""Tells of a process, which somebody has noted, whether it has ended."""

from __future__ import annotations

import os

_DEAD = ("Z", "X", "x")


def machine() -> str:
    """The boot of the machine, and its set of pids; empty where there is no way to know.

    Not the host's name, which copies of a machine share.
    """
    try:
        boot = _text("/proc/sys/kernel/random/boot_id").strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """The moment at which a process of this machine has begun, in ticks since the boot.

    Empty for one that has ended, and where the system does not tell.
    """
    try:
        stat = _text(f"/proc/{pid}/stat")
    except OSError:
        return ""
    # The name of the program, in brackets, may hold anything.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in _DEAD else ""


def _text(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def is_here(noted: str) -> bool:
    """True if this is the machine, and the set of pids, that was noted as `machine`."""
    return bool(noted) and noted == machine()


def is_gone(noted: str, pid: int, since: str = "") -> bool:
    """True if a process was on this machine and has ended.

    ``since``: when it had `started`; without that, a later process of the same pid is taken for it.
    """
    if not is_here(noted):
        return False
    if since:
        return started(pid) != since
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return False
