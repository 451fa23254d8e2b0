"""Reads a service's limits, and what is left of them, from the headers of its responses.

Supports OpenAI's ``x-ratelimit-…``, which many others send too, and Anthropic's
``anthropic-ratelimit-…``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime

from resumable_tasks.base.frozen import frozen
from resumable_tasks.runners.http_signs import header, http_date
from resumable_tasks.runners.rates import Unit
from resumable_tasks.runners.usage import Load

_OPENAI: dict[str, Unit] = {"requests": "calls", "tokens": "tokens"}
_ANTHROPIC: dict[str, Unit] = {
    **_OPENAI,
    "input-tokens": "input tokens",
    "output-tokens": "output tokens",
}
_SECONDS = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}
_LONGEST = 7 * 86_400.0


@frozen
class Told:
    """One limit of a service: the limit, what remains of it, and the seconds until it is reset.

    ``remaining`` and ``reset`` are None if the header has no usable value.
    """

    unit: Unit
    limit: int
    remaining: int | None = None
    reset: float | None = None


def told_by(headers: Mapping[str, str]) -> list[Told]:
    """Return the limits in the headers of a response, without implausible values.

    Some services send -1 or 0 for a limit that they do not have. A reset time is compared with the
    server's ``Date`` and ignored without it.
    """
    found = [_told(headers, f"x-ratelimit-{{}}-{name}", unit) for name, unit in _OPENAI.items()]
    found += [
        _told(headers, f"anthropic-ratelimit-{name}-{{}}", unit)
        for name, unit in _ANTHROPIC.items()
    ]
    return [each for each in found if each is not None]


def _told(headers: Mapping[str, str], name: str, unit: Unit) -> Told | None:
    limit = _whole(header(headers, name.format("limit")))
    if not limit:
        return None
    remaining = _whole(header(headers, name.format("remaining")))
    reset = _reset(header(headers, name.format("reset")), headers)
    if remaining is None or remaining > limit or reset is None:
        return Told(unit, limit)
    return Told(unit, limit, remaining, reset)


def _whole(text: str) -> int | None:
    return int(text) if re.fullmatch(r"\d{1,15}", text, re.ASCII) else None


def _reset(text: str, headers: Mapping[str, str]) -> float | None:
    """Return the seconds of ``6m0s``, ``12ms`` or ``30``, or until a date and time."""
    if re.fullmatch(r"(\d+(\.\d+)?(ms|[dhms]))+", text, re.ASCII):
        parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[dhms])", text)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    elif re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII):
        seconds = float(text)
    else:
        now = http_date(header(headers, "date"))
        try:
            until = datetime.fromisoformat(text)
            seconds = (until - now).total_seconds() if now is not None else 0.0
        except (ValueError, TypeError):
            return None
    return seconds if 0 < seconds <= _LONGEST else None


Weigh = Callable[[Unit, Load], int]
"""Returns the weight of a call in a unit."""


class Headroom:
    """The remaining quota that a service has reported, by quota and unit, until its reset."""

    def __init__(self) -> None:
        self._left: dict[tuple[str, Unit], tuple[float, float]] = {}

    def tell(self, quota: str, told: Told, now: float) -> None:
        """Take over the values of a response; the latest response counts."""
        if told.remaining is not None and told.reset is not None:
            self._left[quota, told.unit] = float(told.remaining), now + told.reset

    def wait(self, load: Load, weigh: Weigh, now: float) -> float:
        """Return 0 if enough is left for a call, else the seconds until the reset."""
        wait = 0.0
        for at, (left, until) in list(self._left.items()):
            quota, unit = at
            if until <= now:
                del self._left[at]
            elif (part := load.part(quota)) is not None and weigh(unit, part) > left:
                wait = max(wait, until - now)
        return wait

    def take(self, load: Load, weigh: Weigh) -> None:
        """Subtract a call that begins: the next response may not include it yet."""
        for (quota, unit), (left, until) in self._left.items():
            if (part := load.part(quota)) is not None:
                self._left[quota, unit] = left - weigh(unit, part), until
