"""Parses the rates of a job's ``rate_limit=``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import UsageError

Unit = Literal["calls", "items", "tokens", "input tokens", "output tokens", "bytes"]
RateSpec = str | Sequence[str] | Mapping[str, str | Sequence[str]]
"""The value of ``rate_limit=``: one rate, several, or the rates of each quota."""

AUTO = "auto"
_NAMED = "prefect:"
_SECONDS = {"s": 1, "sec": 1, "second": 1, "m": 60, "min": 60, "minute": 60}
_SECONDS |= {"h": 3_600, "hour": 3_600, "d": 86_400, "day": 86_400}
_THOUSANDS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_AMOUNT = r"\s*(\d+(?:\.\d+)?)\s*(k|m|g)?\s*(calls?|items?|(?:input |output )?tokens?|bytes?|b)?\s*"
_RATE = re.compile(_AMOUNT + r"(?:/|per\s)\s*(\d+)?\s*([a-z]+?)s?\s*", re.I)
_WEIGHT = re.compile(_AMOUNT, re.I)


@frozen
class RateLimit:
    """At most ``count`` of this unit in any period of ``seconds``.

    ``quota``: if not empty, only items of this quota count. ``of_service``: the service has
    reported this limit.
    """

    count: int
    seconds: float
    unit: Unit = "calls"
    quota: str = ""
    of_service: bool = False

    def __str__(self) -> str:
        of = f" of {self.quota}" if self.quota else ""
        return f"{self.count} {self.unit}{of} in {self.seconds:g} s"

    @property
    def weighted(self) -> bool:
        """True if the unit is tokens or bytes, of which one call uses many."""
        return self.unit not in ("calls", "items")


@frozen
class Rates:
    """The parsed ``rate_limit=`` of a job.

    ``names``: limits of Prefect. ``auto``: also keep the limits that the service reports.
    ``quotas``: the names of the quotas, if rates are given by quota.
    """

    each: tuple[RateLimit, ...] = ()
    names: tuple[str, ...] = ()
    auto: bool = False
    quotas: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.each or self.names or self.auto)


def _amount(found: re.Match[str]) -> tuple[int, Unit] | None:
    count = round(float(found[1]) * _THOUSANDS[(found[2] or "").lower()])
    unit = (found[3] or "call").lower()
    units: dict[str, Unit] = {"b": "bytes", "byte": "bytes", "call": "calls", "item": "items"}
    units |= {"token": "tokens", "input token": "input tokens", "output token": "output tokens"}
    return (count, units[unit if unit == "b" else unit.removesuffix("s")]) if count else None


def parse_rate(text: str, quota: str = "") -> RateLimit:
    """Parse a rate: ``60/minute``, ``600 items/minute``, ``1000/2 hours``, ``200k tokens/minute``.

    Raises `UsageError`.
    """
    found = _RATE.fullmatch(text)
    amount = _amount(found) if found else None
    seconds = _SECONDS.get(found[5].lower()) if found else None
    if not found or amount is None or seconds is None or int(found[4] or 1) < 1:
        raise UsageError(
            f'rate_limit={text!r} is not of the form "60/minute" (calls of the handler), "600 '
            'items/minute", "200k tokens/minute", "80 MB/minute", "auto" (the limits that the '
            'service reports) or "prefect:NAME" (a Prefect global concurrency limit)',
            remedy="Give rate_limit= one of these forms",
        )
    return RateLimit(amount[0], float(seconds * int(found[4] or 1)), amount[1], quota)


def parse_weight(given: int | str) -> tuple[int, Unit | None]:
    """Return the number and the unit (None for a plain number) of a ``max_weight=``.

    Raises `UsageError`.
    """
    if type(given) is int and given > 0:
        return given, None
    found = _WEIGHT.fullmatch(given) if isinstance(given, str) else None
    amount = _amount(found) if found and found[3] else None
    if amount is None or amount[1] in ("calls", "items"):
        raise UsageError(
            f'max_weight={given!r} is neither a number from 1 nor a string such as "190 MB" or '
            '"100k tokens"',
            remedy="Give max_weight= one of the two; batch_size= limits the number of items",
        )
    return amount


def parse_rates(given: RateSpec | None) -> Rates:
    """Parse the value of ``rate_limit=``. Raises `UsageError`."""
    if not isinstance(given, Mapping):
        return _parsed(given, "")
    if not given or not all(isinstance(quota, str) and quota for quota in given):
        raise UsageError(
            f"rate_limit={given!r} is a dict without quotas, or a quota's name is not a string",
            remedy='Give a dict of rates by quota name, such as {"model-a": "60/minute"}',
        )
    found = [_parsed(rates, quota) for quota, rates in given.items()]
    if any(rates.names or rates.auto for rates in found):
        raise UsageError(
            f'rate_limit={given!r}: a quota cannot have "auto" or "prefect:NAME"',
            remedy='Give each quota rates such as "200k tokens/minute"',
        )
    return Rates(tuple(rate for rates in found for rate in rates.each), quotas=tuple(given))


def _parsed(given: Any, quota: str) -> Rates:
    each = [given] if isinstance(given, str) else given or ()
    if not isinstance(each, Sequence) or not all(isinstance(text, str) for text in each):
        raise UsageError(
            f"rate_limit={given!r} is neither a string nor a list of them",
            remedy='Give rate_limit= a string such as "60/minute", or a list of them',
        )
    names = tuple(text.removeprefix(_NAMED) for text in each if text.startswith(_NAMED))
    if not all(names):
        raise UsageError(
            f'rate_limit={given!r}: "prefect:" must be followed by the name of a limit',
            remedy='Name the limit, as in "prefect:api"',
        )
    return Rates(tuple(_rates_of(each, quota)), names, AUTO in each)


def _rates_of(each: Sequence[str], quota: str) -> Iterator[RateLimit]:
    for text in each:
        if text != AUTO and not text.startswith(_NAMED):
            yield parse_rate(text, quota)
