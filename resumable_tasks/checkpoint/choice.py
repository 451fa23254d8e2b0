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
    """The completed items that meet every given condition.

    Args:
        keys: canonical keys, one of which the item has; None for any key.
        where: an SQL condition that at least one of the item's rows meets.
        before: a moment before which the item's result was committed.
    """

    keys: frozenset[bytes] | None = None
    where: str | None = None
    before: datetime | None = None


def choice(keys: Iterable[Key] | None, where: str | None, before: str | datetime | None) -> Choice:
    """The choice that a user describes. Raises `UsageError` also if there is no condition."""
    if keys is None and where is None and before is None:
        raise UsageError(
            "choose what to redo by keys, where or before; `resumable reset` archives the whole "
            "checkpoint"
        )
    lines = None if keys is None else frozenset(map(keys_.canonical, keys))
    if where is not None and not where.strip():
        raise UsageError("where is empty: give a condition such as label = 'other'")
    return Choice(lines, where, None if before is None else _moment(before))


def _moment(given: str | datetime) -> datetime:
    """The moment with a time zone; UTC, as in the journal, if it names none."""
    try:
        found = given if isinstance(given, datetime) else datetime.fromisoformat(given)
    except (ValueError, TypeError):
        raise UsageError(
            f"before={given!r} is not a time: give one such as 2026-11-23T08:00Z, or a date"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)
