"""Items without a usable key. No record can name them, so the end of a run describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import clean, count
from resumable_tasks.runners.outcome import Failure

# A record describes at most this many of them, with this many characters of each message.
_MOST, _MESSAGE_CHARS = 100, 300


@frozen
class Keyless:
    """The items of a run that failed because of their keys.

    ``there`` is their number, ``first`` describes at most a hundred of them, by position.
    """

    there: int = 0
    first: tuple[Failure, ...] = ()

    def __str__(self) -> str:
        return f"{count(self.there, 'item')} without a usable key in the last run"


def told(bad: Sequence[tuple[int, BaseException]]) -> dict[str, Any]:
    """The fields about these items, by position, for the record of a run's end."""
    if not bad:
        return {}
    from resumable_tasks.runners import failures

    first = [
        {
            "position": each.position,
            "error": each.error,
            "message": clean(each.message, _MESSAGE_CHARS),
        }
        for each in failures.of_bad_items(bad[:_MOST])
    ]
    return {"keyless": {"count": len(bad), "first": first}}


def read(info: Mapping[str, Any], time: str) -> Keyless:
    """Read the fields of a run's end, recorded at ``time``. Raises ``TypeError`` if malformed."""
    said = info.get("keyless")
    if said is None:
        return Keyless()
    there, first = said["count"], said["first"]
    if type(there) is not int or not isinstance(first, list):
        raise TypeError("its items without keys are malformed")
    found = []
    for each in first:
        position, error, message = each["position"], each["error"], each["message"]
        if type(position) is not int or not isinstance(error, str) or not isinstance(message, str):
            raise TypeError("an item without a key is malformed")
        found.append(Failure(f"item {position}", error, message, 0, "", time, position=position))
    return Keyless(there, tuple(found))
