"""Whether a call of the handler that failed is made again, and when.

A call that was *told to wait* (HTTP 429, or an answer with ``Retry-After``) has not failed: it is
made again at the time that was told, and no retry is used up by it. The errors of HTTP clients
are known by their attributes, so that none of these clients need be installed.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from resumable_tasks.base import checks, log
from resumable_tasks.errors import BadResult, UsageError

RetryDelay = float | Sequence[float] | Callable[..., Any] | None
RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]

# The same call would raise them again.
PROGRAMMING_ERRORS = (
    *(BadResult, TypeError, NameError, AttributeError, LookupError, SyntaxError, ImportError),
    NotImplementedError,
)
_MOST_CAUSES = 5
_OF_FILES = (
    *(FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, FileExistsError),
)
_TOO_MANY, _SERVER_ERRORS = 429, 500  # statuses of HTTP; all from the latter on
_OUTAGES = {401, 402, 403, 407, 408, 425, 429}
# Clients of services, whose errors without a status are those of connections.
_CLIENTS = {"httpx", "httpcore", "requests", "urllib3", "aiohttp", "openai", "anthropic", "grpc"}
_LONGEST_SECONDS = 60


@dataclass(frozen=True, slots=True)
class Retry:
    """Further calls with a batch whose call raised. Raises `UsageError` for what does not fit.

    A call that is told to wait (HTTP 429, an error or an answer with ``Retry-After``, an error
    with ``retry_after``) waits so long and uses no retry up.

    Args:
        times: how many further calls, at most.
        delay: seconds before a retry; a list of them, one for each, of which the last one counts
            from there on; a wait strategy of ``tenacity``; by default a pause that grows from 1 to
            60 seconds, half of it random, so that many batches do not come back at once.
        on: the class of the errors that are retried, a tuple of them, or a callable that is
            given the error; by default all but errors of programming (``TypeError``,
            ``KeyError``, ``NameError``, `BadResult` …).
    """

    times: int = 0
    delay: RetryDelay = None
    on: RetryOn | None = None

    def __post_init__(self) -> None:
        checks.whole_number("Retry: times", self.times, 0)
        delay, on = self.delay, self.on
        delays = delay if isinstance(delay, Sequence) else [delay]
        known = delay is None or callable(delay) or all(map(checks.is_number, delays))
        if isinstance(delay, str) or not known:
            raise UsageError(
                f"Retry: delay={delay!r} is no number of seconds, no list of them, and no wait "
                "strategy of tenacity"
            )
        types = on if isinstance(on, tuple) else (on,)
        are_types = all(isinstance(t, type) and issubclass(t, BaseException) for t in types)
        are_types = are_types or (callable(on) and not isinstance(on, type))
        if on is not None and not are_types:
            raise UsageError(
                f"Retry: on={on!r} is no class of exceptions, no tuple of them, and no callable "
                "that is given an exception"
            )

    def policy(self, patience: float) -> RetryPolicy:
        """The policy of a run. Raises `UsageError` if the delays cannot be had."""
        return RetryPolicy(self.times, delay_of(self.delay, self.times), self.on, patience)


@dataclass(frozen=True, slots=True)
class RetryPolicy(Retry):
    """What a run makes of a `Retry`.

    ``patience``: seconds for which a batch waits, all in all, because it is told to.
    ``not_again``: the class of an error that is not retried this time.
    """

    patience: float = 600.0
    not_again: str = ""

    def without(self, error: str) -> RetryPolicy:
        """The same policy, which does not retry errors of this class."""
        return replace(self, not_again=error)

    def is_transient(self, error: BaseException) -> bool:
        """Whether the same call may succeed at another time."""
        if self.on is None:
            return not isinstance(error, PROGRAMMING_ERRORS)
        if isinstance(self.on, (type, tuple)):
            return isinstance(error, self.on)
        try:
            return bool(self.on(error))
        except Exception:  # noqa: BLE001 - said; a thread that dies of it would lose its batch
            log.exception("Retry: on= raised on %s, which is not retried", type(error).__name__)
            return False

    def pause(self, attempt: int, error: BaseException) -> float | None:
        """Seconds to wait after this attempt (from 1) has failed; None if it was the last."""
        if (
            attempt > self.times
            or type(error).__name__ == self.not_again
            or not self.is_transient(error)
        ):
            return None
        return self.growing(attempt, error)

    def growing(self, attempt: int, error: BaseException) -> float:
        """The pause before the attempt that follows this one, whether or not there is one."""
        delay = self.delay
        if isinstance(delay, (int, float)):
            return float(delay)
        if isinstance(delay, Sequence) and delay:
            return float(delay[min(attempt, len(delay)) - 1])
        import tenacity

        state = tenacity.RetryCallState(tenacity.Retrying(), None, (), {})
        state.attempt_number = attempt
        state.set_exception((type(error), error, error.__traceback__))
        # "Equal jitter": https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        wait: Callable[..., Any] = delay if callable(delay) else _default_wait(tenacity)
        return max(0.0, float(wait(state)))


def delay_of(given: RetryDelay, retries: int) -> RetryDelay:
    """The delay as a policy takes it. Raises `UsageError`."""
    if isinstance(given, Sequence):
        return tuple(given)
    if callable(given) and not type(given).__module__.startswith("tenacity"):
        # As Prefect has it: a callable of the number of retries that gives their delays.
        try:
            return tuple(given(retries)) or 0.0
        except TypeError as error:
            raise UsageError(
                f"Retry: delay={given!r} is a callable that gives no list of delays for {retries} "
                f"retries: {error}. Give it so, or give a wait strategy of tenacity"
            ) from error
    return given


def _default_wait(tenacity: Any) -> Callable[..., Any]:
    half = {"multiplier": 0.5, "max": _LONGEST_SECONDS / 2}
    wait: Callable[..., Any] = tenacity.wait_exponential(**half)
    return wait + tenacity.wait_random_exponential(**half)  # type: ignore[no-any-return]


def message_of(error: BaseException) -> str:
    """What an exception says; a broken ``__str__`` must not hide the exception."""
    try:
        return str(error)
    except Exception as broken:  # noqa: BLE001
        return f"(its message cannot be had: {type(broken).__name__})"


class GiveUp(Exception):
    """The run is to end, as interrupted: nothing is to be called before it is over anyway."""


class Attempts:
    """The calls of the handler with one batch: how many were made, what follows a failed one."""

    __slots__ = ("_policy", "_told", "_waited", "number")

    def __init__(self, policy: RetryPolicy, first: int = 1) -> None:
        self._policy = policy
        self._told = 0
        self._waited = 0.0
        self.number = first

    def pause_after(self, error: BaseException) -> float | None:
        """Seconds until the next call, which this is told of; None if there is to be none.

        Raises `GiveUp` if the call is told to wait for longer than there is patience.
        """
        told = seconds_told(error)
        if told is None and not is_throttling(error):
            pause = self._policy.pause(self.number, error)
            self.number += pause is not None
            return pause
        self._told += 1
        pause = told if told is not None else self._policy.growing(self._told, error)
        self._waited += pause
        if self._waited > self._policy.patience:
            raise GiveUp(
                f"a call that is told to wait, {self._waited:g} s in all, which is longer than "
                f"give_up_after={self._policy.patience:g}; the last time by "
                f"{type(error).__name__}: {message_of(error)}"
            )
        return pause


def overdue(timeout: float | None) -> TimeoutError:
    """A call has taken longer than the job's ``timeout``: as likely as not its items' fault."""
    error = TimeoutError(f"the handler took longer than timeout={timeout:g} s")
    error.of_the_job = True  # type: ignore[attr-defined]
    return error


def looks_like_an_outage(error: BaseException) -> bool:
    """Whether an error is rather a service's than an item's: no connection, no time, no right."""
    for each in _causes(error):
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
    9110 section 10.2.3) of the HTTP answer that it, or its cause, carries.
    """
    for each in _causes(error):
        told = _get(each, "retry_after")
        if isinstance(told, (int, float)) and not isinstance(told, bool) and 0 <= told < math.inf:
            return float(told)
        headers = _headers(each)
        if headers is not None and (found := retry_after(headers)) is not None:
            return found
    return None


def is_throttling(error: BaseException) -> bool:
    """Whether an error says that there were too many calls."""
    return any(_status(each) == _TOO_MANY for each in _causes(error))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that an HTTP answer asks to wait, by a number or a date; None if it does not.

    A date is compared to the server's own, where the answer has one: its clock may be another.
    """
    text = _header(headers, "retry-after")
    if re.fullmatch(r"\d+(\.\d*)?", text, re.ASCII):
        return float(text)
    until = http_date(text)
    if until is None:
        return None
    now = http_date(_header(headers, "date")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def http_date(text: str) -> datetime | None:
    """The moment that a header names; None if it names none."""
    from email.utils import parsedate_to_datetime  # half of what a program pays for this module

    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, LookupError, OverflowError):
        return None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _causes(error: BaseException) -> Iterator[BaseException]:
    each: BaseException | None = error
    for _ in range(_MOST_CAUSES):
        if each is None:
            return
        yield each
        each = each.__cause__


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


def _header(headers: Mapping[str, str], name: str) -> str:
    # The clients' own mappings do not mind the case; a plain dict does.
    found = headers.get(name)
    if found is None and isinstance(headers, dict):
        with contextlib.suppress(StopIteration):
            found = next(value for key, value in headers.items() if str(key).lower() == name)
    return str(found).strip() if found is not None else ""
