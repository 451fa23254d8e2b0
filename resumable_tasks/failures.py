"""What becomes of an exception in a handler: a retry, or a record for each item.

The seam for what is to come (isolation of the bad item, limits, budgets) is `RetryPolicy`.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from resumable_tasks import keys
from resumable_tasks.errors import BadResult
from resumable_tasks.journal import now
from resumable_tasks.keys import Key
from resumable_tasks.model import Batch, Failure

_MESSAGE_CHARS = 1_000
_TRACEBACK_CHARS = 4_000
_TRACEBACK_FRAMES = -6
# The same call would raise them again.
_NEVER_RETRIED = (BadResult, TypeError, NameError, AttributeError, LookupError, SyntaxError)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """``retries`` more calls of the handler with the same batch, after a pause.

    ``delay``: seconds before each retry, or a list, whose last one counts from there on. By
    default the pause before retry n is 2ⁿ⁻¹ seconds, at most 60, of which a random half is taken
    off so that many batches do not come back at once. Errors of programming are not retried.
    """

    retries: int = 0
    delay: float | tuple[float, ...] | None = None

    def pause(self, attempt: int, error: BaseException) -> float | None:
        """Seconds to wait after this attempt (from 1) has failed; None if it was the last."""
        if attempt > self.retries or isinstance(error, _NEVER_RETRIED):
            return None
        if isinstance(self.delay, tuple) and self.delay:
            return self.delay[min(attempt, len(self.delay)) - 1]
        if isinstance(self.delay, (int, float)):
            return float(self.delay)
        return float(min(60.0, 2.0 ** (attempt - 1)) * random.uniform(0.5, 1.0))


def records(
    batch: Batch, failed: Iterable[tuple[Key, BaseException | str]], attempts: int
) -> tuple[Failure, ...]:
    """A record for each failed item; a batch's common error is described once and shared."""
    described: dict[int, tuple[str, str, str]] = {}
    time, batch_id = now(), batch.id
    found = []
    for key, error in failed:
        if id(error) not in described:
            described[id(error)] = _describe(error)
        name, message, trace = described[id(error)]
        found.append(Failure(key, name, message, attempts, batch_id, time, trace))
    return tuple(found)


def whole_batch(batch: Batch, error: BaseException, attempts: int) -> tuple[Failure, ...]:
    """A record for each item of a batch whose handler raised."""
    return records(batch, ((key, error) for key in batch.keys), attempts)


def add_earlier_attempts(
    failures: Sequence[Failure], earlier: Mapping[bytes, Failure]
) -> tuple[Failure, ...]:
    """The failures with the attempts of the runs before counted in."""
    return tuple(
        replace(failure, attempts=failure.attempts + before.attempts)
        if (before := earlier.get(keys.canonical(failure.key)))
        else failure
        for failure in failures
    )


def _describe(error: BaseException | str) -> tuple[str, str, str]:
    if isinstance(error, str):
        return "ItemFailure", _text(error, _MESSAGE_CHARS), ""
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - a broken __str__ must not hide the failure
        message = f"(its message cannot be had: {type(broken).__name__})"
    trace = ""
    if error.__traceback__ is not None:
        trace = "".join(
            traceback.format_exception(
                type(error), error, error.__traceback__, limit=_TRACEBACK_FRAMES
            )
        )[-_TRACEBACK_CHARS:]
    return type(error).__name__, _text(message, _MESSAGE_CHARS), _text(trace, _TRACEBACK_CHARS)


def _text(value: str, limit: int) -> str:
    """Text that can be written as UTF-8, whatever the exception held."""
    return value[:limit].encode("utf-8", "backslashreplace").decode()
