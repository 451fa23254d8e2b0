"""Decides whether and when a failed call of the handler is retried.

A call that was *told to wait* (HTTP 429, or a response with ``Retry-After``) has not failed. It is
made again at the time it was told, and uses up no retry. `http_signs` recognises such errors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from resumable_tasks.base import checks, log
from resumable_tasks.base.frozen import locked
from resumable_tasks.errors import BadResult, UsageError
from resumable_tasks.runners.groups import leaves, message_of, name_of
from resumable_tasks.runners.http_signs import is_throttling, seconds_told
from resumable_tasks.runners.outcome import RETRIES, TOLD

RetryDelay = float | Sequence[float] | Callable[..., Any] | None
RetryOn = type[BaseException] | tuple[type[BaseException], ...] | Callable[[BaseException], bool]

# Not retried, because the same call would raise them again.
PROGRAMMING_ERRORS = (
    *(BadResult, TypeError, NameError, AttributeError, LookupError, SyntaxError, ImportError),
    NotImplementedError,
)
_LONGEST_SECONDS = 60


@locked
class Retry:
    """Further calls for a batch whose call raised. Raises `UsageError` for an invalid value.

    A call that is told to wait (HTTP 429, an error or an answer with ``Retry-After``, an error with
    ``retry_after``) waits that long and does not use up a retry.

    Args:
        times: maximum number of further calls.
        delay: seconds before a retry; a list of them, one per retry, whose last value also applies
            to all later retries; or a wait strategy of ``tenacity``. By default a pause that grows
            from 1 to 60 seconds, half of it random, so that many batches do not retry at once.
        on: the class of errors to retry, a tuple of classes, or a callable that takes the error. By
            default all except programming errors (``TypeError``, ``KeyError``, ``NameError``,
            `BadResult` …).
    """

    times: int = 0
    delay: RetryDelay = None
    on: RetryOn | None = None

    def __post_init__(self) -> None:
        checks.whole_number("Retry: times", self.times, 0)
        delay, on = self.delay, self.on
        delays = delay if isinstance(delay, Sequence) else [delay]
        known = delay is None or callable(delay) or all(map(checks.is_seconds, delays))
        if isinstance(delay, str) or not known:
            raise UsageError(
                f"Retry: delay={delay!r} is not a number of seconds, a list of them or a wait "
                "strategy of tenacity",
                remedy="Give delay= one of these",
            )
        types = on if isinstance(on, tuple) else (on,)
        are_types = all(isinstance(t, type) and issubclass(t, BaseException) for t in types)
        are_types = are_types or (callable(on) and not isinstance(on, type))
        if on is not None and not are_types:
            raise UsageError(
                f"Retry: on={on!r} is not an exception class, a tuple of them or a callable that "
                "takes an exception",
                remedy="Give on= one of these",
            )

    def policy(self, patience: float) -> RetryPolicy:
        """Return the policy of a run. Raises `UsageError` if the delays cannot be computed."""
        return RetryPolicy(self.times, delay_of(self.delay, self.times), self.on, patience)


@locked
class RetryPolicy(Retry):
    """A `Retry` as a run applies it.

    ``patience``: the most seconds, in total, that a batch waits because the service tells it to.
    ``not_again``: the name of an error class that is not retried this time.
    """

    patience: float = 600.0
    not_again: str = ""

    def without(self, error: str) -> RetryPolicy:
        """Return the same policy without retries for errors of this class."""
        return replace(self, not_again=error)

    def is_transient(self, error: BaseException) -> bool:
        """True if the same call may succeed later; for a group, if this is true for a member."""
        return any(map(self._is_transient, leaves(error)))

    def _is_transient(self, error: BaseException) -> bool:
        if self.on is None:
            return not isinstance(error, PROGRAMMING_ERRORS)
        if isinstance(self.on, (type, tuple)):
            return isinstance(error, self.on)
        try:
            return bool(self.on(error))
        except Exception:  # noqa: BLE001 - logged; a thread that died of it would lose its batch
            log.exception(
                "Retry: on= raised an error for %s, which is therefore not retried",
                type(error).__name__,
            )
            return False

    def pause(self, attempt: int, error: BaseException) -> float | None:
        """Return the seconds to wait after a failed attempt (from 1); None if it was the last."""
        if attempt > self.times or name_of(error) == self.not_again or not self.is_transient(error):
            return None
        return self.growing(attempt, error)

    def growing(self, attempt: int, error: BaseException) -> float:
        """Return the pause after this attempt, whether or not another attempt follows."""
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
    """Return the delay in the form that a policy takes. Raises `UsageError`."""
    if isinstance(given, Sequence):
        return tuple(given)
    if callable(given) and not type(given).__module__.startswith("tenacity"):
        # Prefect's form: a callable that takes the number of retries and returns their delays.
        try:
            return tuple(given(retries)) or 0.0
        except TypeError as error:
            raise UsageError(
                f"Retry: delay={given!r} does not return a list of delays for {retries} retries: "
                f"{error}. Give a callable that does, or a wait strategy of tenacity"
            ) from error
    return given


def _default_wait(tenacity: Any) -> Callable[..., Any]:
    half = {"multiplier": 0.5, "max": _LONGEST_SECONDS / 2}
    wait: Callable[..., Any] = tenacity.wait_exponential(**half)
    return wait + tenacity.wait_random_exponential(**half)  # type: ignore[no-any-return]


class GiveUp(Exception):
    """A call was told to wait longer than the run is patient; the run ends as interrupted."""


class Attempts:
    """Counts the calls with one batch and decides what follows a failed one.

    ``number``: of the present attempt, from 1. ``pauses_for``: `TOLD` if the service asked for the
    last pause, else `RETRIES`.
    """

    __slots__ = ("_policy", "_told", "_waited", "number", "pauses_for")

    def __init__(self, policy: RetryPolicy, first: int = 1) -> None:
        self._policy = policy
        self._told = 0
        self._waited = 0.0
        self.number = first
        self.pauses_for = RETRIES

    def pause_after(self, error: BaseException) -> float | None:
        """Count the next call and return the seconds until it; None if there is none.

        Raises `GiveUp` if the service tells the batch to wait longer than ``patience``.
        """
        told = seconds_told(error)
        if told is None and not is_throttling(error):
            self.pauses_for = RETRIES
            pause = self._policy.pause(self.number, error)
            self.number += pause is not None
            return pause
        self._told += 1
        self.pauses_for = TOLD
        pause = told if told is not None else self._policy.growing(self._told, error)
        self._waited += pause
        if self._waited > self._policy.patience:
            raise GiveUp(
                f"a call was told to wait for {self._waited:g} s in total, longer than "
                f"give_up_after={self._policy.patience:g}; last error: {name_of(error)}: "
                f"{message_of(error)}"
            )
        return pause


def overdue(timeout: float | None) -> TimeoutError:
    """Return the error for a call that took longer than the job's ``timeout``.

    It does not count as an outage, because the items may well be at fault.
    """
    error = TimeoutError(f"the handler took longer than timeout={timeout:g} s")
    error.of_the_job = True  # type: ignore[attr-defined]
    return error
