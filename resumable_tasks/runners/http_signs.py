"""Signs in an error about a service: it is down, it was called too often, and until when.

The errors of HTTP clients are known by their attributes, so that none of these clients need be
installed.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from resumable_tasks.runners.groups import chains

_OF_FILES = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError),
)
_TOO_MANY, _SERVER_ERRORS = 429, 500  # statuses of HTTP; all from the latter on
_OUTAGES = {401, 402, 403, 407, 408, 425, 429}
# Clients of services, whose errors without a status are those of connections.
_CLIENTS = {"httpx", "httpcore", "httpx2", "httpcore2", "requests", "urllib3", "aiohttp", "grpc"}
_CLIENTS |= {"openai", "anthropic"}


def looks_like_an_outage(error: BaseException) -> bool:
    """True if an error points to a service and not to an item: no connection, no time, no right."""
    return any(map(_points_to_a_service, chains(error)))


def _points_to_a_service(chain: tuple[BaseException, ...]) -> bool:
    for each in chain:
        if _get(each, "of_the_job"):
            return False
        status = _status(each)
        if status is not None:
            return status in _OUTAGES or status >= _SERVER_ERRORS
        if isinstance(each, OSError) and not isinstance(each, _OF_FILES):
            return True
        if type(each).__module__.partition(".")[0] in _CLIENTS:
            return True
    return False


def seconds_told(error: BaseException) -> float | None:
    """Seconds that an error asks to wait; None if it does not.

    By its attribute ``retry_after``, or by the header ``Retry-After`` (a number or a date, RFC
    9110 section 10.2.3) of the HTTP answer that it, or its cause, carries. The longest that a
    member of a group asks for.
    """
    return max(
        (told for chain in chains(error) if (told := _told(chain)) is not None), default=None
    )


def _told(chain: tuple[BaseException, ...]) -> float | None:
    for each in chain:
        told = _get(each, "retry_after")
        if isinstance(told, (int, float)) and not isinstance(told, bool) and 0 <= told < math.inf:
            return float(told)
        headers = _headers(each)
        if headers is not None and (found := retry_after(headers)) is not None:
            return found
    return None


def is_throttling(error: BaseException) -> bool:
    """True if an error says that there were too many calls."""
    return any(_status(each) == _TOO_MANY for chain in chains(error) for each in chain)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an HTTP answer asks to wait, by a number or a date; None if it does not.

    A date is compared to the server's own, where the answer has one: its clock may be another.
    """
    exact = header(headers, "retry-after-ms")
    if re.fullmatch(r"\d+(\.\d*)?", exact, re.ASCII):
        return float(exact) / 1_000
    text = header(headers, "retry-after")
    if re.fullmatch(r"\d+(\.\d*)?", text, re.ASCII):
        return float(text)
    until = http_date(text)
    if until is None:
        return None
    now = http_date(header(headers, "date")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def http_date(text: str) -> datetime | None:
    """The moment that a header names; None if it names none."""
    from email.utils import parsedate_to_datetime  # half of what a program pays for this module

    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _status(error: BaseException) -> int | None:
    """The status of an HTTP answer: httpx, requests, openai, aiohttp, urllib have it here."""
    for holder in (error, _get(error, "response")):
        for name in ("status_code", "status", "code"):
            found = _get(holder, name)
            if isinstance(found, int) and not isinstance(found, bool) and 100 <= found < 600:
                return int(found)
    return None


def _headers(error: BaseException) -> Mapping[str, str] | None:
    for holder in (_get(error, "response"), error):
        found = _get(holder, "headers")
        if found is not None and hasattr(found, "get"):
            return found  # type: ignore[no-any-return]
    return None


def _get(holder: object, name: str) -> Any:
    """An attribute; None also where looking at it raises: errors are anybody's objects."""
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - such as "response has not been set"
        return None


def header(headers: Mapping[str, str], name: str) -> str:
    """A header's text, whatever the case of its name; "" if there is none."""
    # The clients' own mappings do not mind the case; a plain dict does.
    found = headers.get(name)
    if found is None and isinstance(headers, dict):
        with contextlib.suppress(StopIteration):
            found = next(value for key, value in headers.items() if str(key).lower() == name)
    return str(found).strip() if found is not None else ""
