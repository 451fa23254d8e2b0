"""The folder name of a partition, and the moment that a folder name means."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, date, datetime

from resumable_tasks.base import checks
from resumable_tasks.errors import UsageError

_MONTH = r"[0-9]{4}-[0-9]{2}"


def folder_of(partition: str | date) -> str:
    """The name of the folder. Equal datetimes in different time zones have the same name.

    Raises `UsageError` if the partition cannot be a folder's name.
    """
    found = _text(partition) if isinstance(partition, date) else partition
    if not isinstance(found, str) or not checks.NAME.fullmatch(found) or partition != partition:
        raise UsageError(
            f"partition={partition!r} cannot be a folder's name: use letters, digits, '_', '-' "
            "and '.', or a date or datetime"
        )
    return found


def moment_of(name: str) -> datetime | None:
    """The moment that a folder's name means, such as ``2026-11-23``; None if it means none.

    Knows months, ISO 8601 weeks, and dates without dashes too. A moment with a time zone is
    converted to UTC.
    """
    day, with_time, time = name.removesuffix("Z").partition("T")
    if re.fullmatch(_MONTH, day):
        day += "-01"
    if ":" not in time:  # a name written by others may have colons, and an offset: -05:00
        time = time.replace("-", ":")
    with contextlib.suppress(ValueError, OverflowError):
        moment = datetime.fromisoformat(day + with_time + time)
        return moment if moment.tzinfo is None else moment.astimezone(UTC).replace(tzinfo=None)
    return None


def _text(partition: date) -> str:
    if not isinstance(partition, datetime):
        return partition.isoformat()
    local = partition.tzinfo is None
    moment = partition if local else partition.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat().replace(":", "-") + ("" if local else "Z")
