"""Signs in an error that a service is down, or was called too often, and how long to wait.

Errors of HTTP clients are recognised by their attributes, so no such client must be installed.
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
_TOO_MANY, _SERVER_ERRORS = 429, 500  # HTTP statuses; all from 500 on are server errors
_OUTAGES = {401, 402, 403, 407, 408, 425, 429}
# Clients of services: their errors without a status concern the connection.
_CLIENTS = {"httpx", "httpcore", "httpx2", "httpcore2", "requests", "urllib3", "aiohttp", "grpc"}
_CLIENTS |= {"openai", "anthropic"}


def looks_like_an_outage(error: BaseException) -> bool:
    """True if an error points to the service, not an item: no connection, no time, no access."""
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
    """Return the seconds that an error tells to wait; None if it does not.

    Read from its attribute ``retry_after``, or from the header ``Retry-After`` (a number or a date,
    RFC 9110 section 10.2.3) of the HTTP response that it or its cause has. For a group, the longest
    of its members.
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
    """True if an error reports too many calls (HTTP 429)."""
    return any(_status(each) == _TOO_MANY for chain in chains(error) for each in chain)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an HTTP response tells to wait; None if it does not.

    A date is compared with the server's ``Date``, if there is one, because clocks may differ.
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
    """Return the time that a header contains, or None."""
    from email.utils import parsedate_to_datetime  # half of this module's import time

    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _status(error: BaseException) -> int | None:
    """Return the status of an HTTP response, from httpx, requests, openai, aiohttp or urllib."""
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
    """Return an attribute; None also if reading it raises, because errors may be any object."""
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001 - such as "response has not been set"
        return None


def header(headers: Mapping[str, str], name: str) -> str:
    """Return the value of a header, ignoring the case of its name; "" if there is none."""
    # The mappings of HTTP clients ignore the case; a plain dict does not.
    found = headers.get(name)
    if found is None and isinstance(headers, dict):
        with contextlib.suppress(StopIteration):
            found = next(value for key, value in headers.items() if str(key).lower() == name)
    return str(found).strip() if found is not None else ""
