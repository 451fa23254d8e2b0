"""The folder of a partition."""

from __future__ import annotations

from datetime import UTC, date, datetime

from resumable_tasks.base import checks
from resumable_tasks.errors import UsageError


def folder_of(partition: str | date) -> str:
    """The name of the folder; a datetime with a time zone has the same one in all zones.

    Raises `UsageError` for what cannot be a folder's name.
    """
    found = _text(partition) if isinstance(partition, date) else partition
    if not isinstance(found, str) or not checks.NAME.fullmatch(found) or partition != partition:
        raise UsageError(
            f"partition={partition!r} cannot be a folder's name: use letters, digits, '_', '-' "
            "and '.', or a date or datetime"
        )
    return found


def _text(partition: date) -> str:
    if not isinstance(partition, datetime):
        return partition.isoformat()
    local = partition.tzinfo is None
    moment = partition if local else partition.astimezone(UTC).replace(tzinfo=None)
    return moment.isoformat().replace(":", "-") + ("" if local else "Z")
