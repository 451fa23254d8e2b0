"""Named points in the code at which the tests make a process die.

A fault point is one line, ``fault_point("commit.shard_written")``, and costs a comparison while
nothing is armed. `resumable_tasks.testing.faults` arms them; nothing else does.
"""

from __future__ import annotations

from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def fault_point(name: str) -> None:
    """Let an armed test act here; do nothing otherwise."""
    if _hook is not None:
        _hook(name)


def arm(hook: Callable[[str], None] | None) -> None:
    """Call this with a function of the point's name to arm every point, with None to disarm."""
    global _hook
    _hook = hook
