"""What single values in a progress file stand for: cells of CSV, keys as text, signs of failure."""

from __future__ import annotations

import contextlib
import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from resumable_tasks.items import keys

# Wider ones are no keys as integers.
INTEGER = re.compile(r"0|-?[1-9][0-9]{0,19}")
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?")
# Every decimal of so many digits is another float.
_EXACT_DIGITS = 15
# In these fields a line may say that its item is not done.
_FIELDS = ("status", "state", "error", "ok", "success", "done", "completed", "finished")
SIGNS = frozenset(_FIELDS)
# Words of programs about their items. Such as "new" or "open" are more often said of the items
# themselves; to refuse one of these costs a word on the command line, to take it costs an item.
_NOT_DONE = {
    *("fail", "failed", "failure", "err", "error", "errored", "exception", "crashed"),
    *("timeout", "timed_out", "canceled", "cancelled", "aborted", "interrupted", "killed"),
    *("pending", "queued", "scheduled", "waiting", "todo", "not_started", "incomplete"),
    *("started", "running", "processing", "in_progress", "retry", "retrying"),
}
_NO = {"false", "no"}


@contextlib.contextmanager
def of_any_length() -> Iterator[None]:
    """Python's own limit of 128 KiB a cell is less than many a text that a model has written."""
    before = csv.field_size_limit(2**31 - 1)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def done_by_the_last(found: Sequence[Any], signs: Mapping[int, str]) -> list[int]:
    """The lines without a sign of failure, of items (by their keys) whose last line has none."""
    each = list(map(repr, found))  # some may be no keys at all, and none is refused here
    last = dict(zip(each, range(len(each)), strict=True))
    return [at for at, key in enumerate(each) if at not in signs and last[key] not in signs]


def signs_of_failure(rows: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """The lines that say that their item is not done, and how each says it."""
    each = ((at, _sign_of_failure(row)) for at, row in enumerate(rows))
    return {at: sign for at, sign in each if sign is not None}


def _sign_of_failure(row: Mapping[str, Any]) -> str | None:
    """The field and its value by which a line says that its item is not done, if it does."""
    for name in _FIELDS:
        value = row.get(name)
        text = value.strip().lower() if isinstance(value, str) else ""
        if name in ("status", "state"):
            not_done = text.replace(" ", "_").replace("-", "_") in _NOT_DONE
        elif name == "error":
            not_done = bool(value)  # an empty cell is none
        else:
            zero = type(value) is int and value == 0
            not_done = value is False or text in _NO or zero
        if not_done:
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
