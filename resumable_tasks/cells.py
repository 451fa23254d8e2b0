"""What single values in a progress file stand for: cells of CSV, keys as text, signs of failure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from resumable_tasks import keys

# Wider ones are no keys as integers.
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
# Every decimal of so many digits is another float.
_EXACT_DIGITS = 15
# In these fields a line may say that it is about no success.
SIGNS = frozenset({"status", "error", "ok", "success"})
_FAILED = {"failed", "failure", "error", "errored"}


def sign_of_failure(row: Mapping[str, Any]) -> str | None:
    """The field and its value by which a line says that its item has failed, if it does."""
    for name in ("status", "error", "ok", "success"):
        value = row.get(name)
        text = value.lower() if isinstance(value, str) else value
        if name == "status":
            failed = isinstance(text, str) and text in _FAILED
        elif name == "error":
            failed = bool(value)  # an empty cell is none
        else:
            failed = value is False or text == "false"
        if failed:
            return f"{name}: {keys.shorten(value)}"
    return None


def values(column: list[str]) -> list[Any]:
    """The cells of a column as numbers where every one of them is one, and none loses a digit.

    Zeros at the end of a decimal are no digits that are lost, those at the beginning are. Else as
    text.
    """
    filled = [cell for cell in column if cell]
    if filled and all(map(INTEGER.fullmatch, filled)) and max(map(len, filled)) < 19:
        return [int(cell) if cell else None for cell in column]
    if filled and all(map(_is_decimal, filled)):
        return [float(cell) if cell else None for cell in column]
    return column


def _is_decimal(cell: str) -> bool:
    if _DECIMAL.fullmatch(cell) and len(cell) <= _EXACT_DIGITS:
        return True
    try:
        return repr(float(cell)) == cell  # what Python has written, such as 1e-05
    except ValueError:
        return False
