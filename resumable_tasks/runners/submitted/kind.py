"""Whether a handler is submitted work. A file of its own: nearly all jobs need no more of it."""

from __future__ import annotations

from typing import Any

_METHODS = ("submit", "poll", "collect")


def is_submitted(handler: Any) -> bool:
    """True for an object with the methods of `Submitted`; not for its class."""
    if isinstance(handler, type):
        return False
    return all(callable(getattr(handler, name, None)) for name in _METHODS)


def lacking(handler: Any) -> list[str]:
    """The methods that an object, or a class, lacks to be submitted work; [] if it has none."""
    lacks = [name for name in _METHODS if not callable(getattr(handler, name, None))]
    return lacks if len(lacks) < len(_METHODS) else []


def is_class_of_submitted(handler: Any) -> bool:
    """True for the class of what is meant to be submitted work."""
    return isinstance(handler, type) and callable(getattr(handler, "submit", None))
