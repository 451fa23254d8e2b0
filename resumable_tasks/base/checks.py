"""Checks of settings. Each raises `UsageError` with the name, the value and the valid values.

``name``: as the user wrote it: ``batch_size``, or ``Budget: items`` for a field of an object.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from resumable_tasks.errors import UsageError

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
"""A name that may be part of a path, of a job or of a partition."""
# A century. System calls fail for waits that are much longer.
_MOST_SECONDS = 100 * 366 * 86_400


def job_name(value: object) -> None:
    """Check the name of a job."""
    if not isinstance(value, str) or not NAME.fullmatch(value):
        raise UsageError(
            f"name={value!r} cannot name a job, whose name is part of paths",
            remedy="Give name= letters, digits, '_', '-' and '.'",
        )


def is_number(value: object) -> bool:
    """True for a finite number of at least 0; booleans are not numbers here."""
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 <= value <= sys.float_info.max  # arithmetic with a larger integer fails
    )


def is_seconds(value: object) -> bool:
    """True for a number of seconds that a program can wait."""
    return is_number(value) and value <= _MOST_SECONDS  # type: ignore[operator]


def whole_number(name: str, value: object, least: int, *, or_none: bool = False) -> None:
    """Check a count."""
    if value is None and or_none:
        return
    if type(value) is not int or value < least:
        none = ", or None" if or_none else ""
        raise UsageError(
            f"{name}={value!r} is not a whole number from {least}{none}",
            remedy=f"Give {name}= a number in that range",
        )


def above_zero(name: str, value: object) -> None:
    """Check a limit that may be None."""
    if value is not None and not (is_number(value) and value):
        raise UsageError(
            f"{name}={value!r} is not a number above 0, or None",
            remedy=f"Give {name}= a number in that range",
        )


def seconds(name: str, value: object) -> None:
    """Check a duration."""
    if not is_seconds(value):
        raise UsageError(
            f"{name}={value!r} is not a number of seconds (at most a century)",
            remedy=f"Give {name}= a number such as 30 or 0.5",
        )


def seconds_or_none(name: str, value: object) -> None:
    """Check a limit in seconds that may be None."""
    if value is not None and not (is_seconds(value) and value):
        raise UsageError(
            f"{name}={value!r} is neither a number of seconds above 0 (at most a century) nor None",
            remedy=f"Give {name}= a number such as 30 or 0.5, or None for no limit",
        )


def choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    """Check that a value is one of the choices."""
    if value not in choices:
        raise UsageError(
            f"{name}={value!r} is not one of {choices}", remedy=f"Give {name}= one of them"
        )


def flag(name: str, value: object) -> None:
    """Check a switch."""
    if not isinstance(value, bool):
        raise UsageError(
            f"{name}={value!r} is neither True nor False", remedy=f"Give {name}= one of the two"
        )


def texts(name: str, value: object, example: str) -> None:
    """Check a list of strings; ``example`` is one of them."""
    if (
        isinstance(value, str)
        or not isinstance(value, Iterable)
        or not all(isinstance(text, str) for text in value)
    ):
        raise UsageError(
            f"{name}={value!r} is not a list of strings",
            remedy=f'Give {name}= a list such as ["{example}"]',
        )


def instance(name: str, value: object, kind: type, example: str) -> None:
    """Check a settings object; ``example`` shows how to make one."""
    if not isinstance(value, kind):
        raise UsageError(f"{name}={value!r} is not a {kind.__name__}: give {name}={example}")
