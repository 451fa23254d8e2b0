"""Tells whether a handler is submitted work. Separate, because most jobs import only this."""

from __future__ import annotations

from typing import Any

_METHODS = ("submit", "poll", "collect")


def is_submitted(handler: Any) -> bool:
    """True for an object with the methods of `Submitted`; False for its class."""
    if isinstance(handler, type):
        return False
    return all(callable(getattr(handler, name, None)) for name in _METHODS)


def lacking(handler: Any) -> list[str]:
    """Return the missing methods of an object or a class that has some of `Submitted`; else []."""
    lacks = [name for name in _METHODS if not callable(getattr(handler, name, None))]
    return lacks if len(lacks) < len(_METHODS) else []


def is_class_of_submitted(handler: Any) -> bool:
    """True for a class whose instances are meant to be submitted work."""
    return isinstance(handler, type) and callable(getattr(handler, "submit", None))
