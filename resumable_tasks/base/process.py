"""Tells whether a recorded process has ended."""

from __future__ import annotations

import os

_DEAD = ("Z", "X", "x")


def machine() -> str:
    """Return an id of the machine's boot and its PID namespace; "" if unknown.

    The host's name would not do, because copies of a machine share it.
    """
    try:
        boot = _text("/proc/sys/kernel/random/boot_id").strip()
        return f"{boot}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def started(pid: int) -> str:
    """Return when a process of this machine started, in ticks since the boot.

    "" if the process has ended or the system does not tell.
    """
    try:
        stat = _text(f"/proc/{pid}/stat")
    except OSError:
        return ""
    # The program's name, in parentheses, may contain anything.
    fields = stat.rpartition(")")[2].split()
    return fields[19] if len(fields) > 19 and fields[0] not in _DEAD else ""


def _text(path: str) -> str:
    with open(path, errors="replace") as file:
        return file.read()


def is_here(noted: str) -> bool:
    """True if this is the machine and PID namespace that `machine` returned then."""
    return bool(noted) and noted == machine()


def is_gone(noted: str, pid: int, since: str = "") -> bool:
    """True if a process was on this machine and has ended.

    ``since``: when it `started`. Without it, a later process with the same PID counts as the same.
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
