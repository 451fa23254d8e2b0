"""Named points in the code at which tests make a process die.

A fault point is one line, ``fault_point("commit.shard_written")``, and costs one comparison while
it is not armed. Only `resumable_tasks.testing.faults` arms fault points.
"""

from __future__ import annotations

from collections.abc import Callable

_hook: Callable[[str], None] | None = None


def fault_point(name: str) -> None:
    """Let an armed test act here; do nothing otherwise."""
    if _hook is not None:
        _hook(name)


def arm(hook: Callable[[str], None] | None) -> None:
    """Arm all points with a function of the point's name; None disarms them."""
    global _hook
    _hook = hook
