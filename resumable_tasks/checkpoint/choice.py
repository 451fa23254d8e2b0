"""The choice of completed items to redo."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime

from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys as keys_
from resumable_tasks.items.keys import Key


@frozen
class Choice:
    """Items that fit all that is said: one of these keys, a row that fits, completed before then.

    Args:
        keys: canonical forms; None if the key does not matter.
        where: a condition in SQL on an item's rows, of which one is to fit it.
        before: the item's result was committed before.
    """

    keys: frozenset[bytes] | None = None
    where: str | None = None
    before: datetime | None = None


def choice(keys: Iterable[Key] | None, where: str | None, before: str | datetime | None) -> Choice:
    """The choice that a user describes. Raises `UsageError`, also where nothing is said."""
    if keys is None and where is None and before is None:
        raise UsageError(
            "say what is to be done again: keys, where or before; `resumable reset` archives the "
            "whole checkpoint"
        )
    lines = None if keys is None else frozenset(map(keys_.canonical, keys))
    if where is not None and not where.strip():
        raise UsageError("where is empty: give a condition such as label = 'other'")
    return Choice(lines, where, None if before is None else _moment(before))


def _moment(given: str | datetime) -> datetime:
    """A moment with a time zone: UTC, as in the journal, if none is said."""
    try:
        found = given if isinstance(given, datetime) else datetime.fromisoformat(given)
    except (ValueError, TypeError):
        raise UsageError(
            f"before={given!r} is no time: give one such as 2026-11-23T08:00Z, or a date"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
