"""Whether a handler is submitted work. A file of its own: nearly all jobs need no more of it."""

from __future__ import annotations

from typing import Any

_METHODS = ("submit", "poll", "collect")


def is_submitted(handler: Any) -> bool:
    """True for an object with the methods of `Submitted`; not for its class."""
    if isinstance(handler, type):
        return False
    return all(callable(getattr(handler, name, None)) for name in _METHODS)
