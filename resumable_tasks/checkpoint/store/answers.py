"""The meaning of what a service answers, and how long it is worth asking again."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from itertools import count

from resumable_tasks.base.text import clean, without_secrets

_LONGEST_PAUSE = 3.0
_STATUS = re.compile(r"status code: ([0-9]{3}[A-Za-z ]*)")
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>|\(code: ([A-Za-z]+)\)")
_QUERY = re.compile(r"\?\S+")
# Refusals with one of these may end by themselves.
_PASSING = {404, 408, 409, 412, 425, 429}
_PASSING_CODES = {"RequestTimeout", "OperationAborted", "SlowDown"}
# Of one object among many that were to be deleted, in an answer whose status is 200.
_DENIED_CODES = {"AccessDenied"}


def foreign() -> tuple[type[Exception], ...]:
    """The errors that the client raises."""
    from obstore.exceptions import BaseError

    return BaseError, OSError, ValueError, NotImplementedError


def is_refusal(error: Exception) -> bool:
    """True if the service says that the name is taken. A 409 of S3 only says: not now."""
    return "status code: 412" in str(error) or "BlobAlreadyExists" in str(error)


def is_denial(error: Exception) -> bool:
    """True if the service refuses whoever asks."""
    named = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    return named or _code(error) in _DENIED_CODES or lacks_credentials(error)


def is_final(error: Exception) -> bool:
    """True if the same request will hardly ever be answered otherwise."""
    if isinstance(error, (ValueError, NotImplementedError)) or is_denial(error):
        return True
    if "Received redirect" in str(error):
        return True
    found = _STATUS.search(str(error))
    status = int(found[1][:3]) if found else 0
    return 400 <= status < 500 and status not in _PASSING and _code(error) not in _PASSING_CODES


def lacks_credentials(error: Exception) -> bool:
    """True if none were in the environment, and the machine, which was asked next, has no role."""
    return "//169.254." in str(error)


def is_without_bucket(error: Exception) -> bool:
    """True if the service knows no such bucket."""
    return _code(error) in ("NoSuchBucket", "ContainerNotFound")


def remedy(error: Exception, needed: str) -> str:
    """A way out for one who is refused; ``needed``: the names of the credentials."""
    if lacks_credentials(error):
        return f"Set {needed}; see docs/buckets.md"
    if _code(error) == "RequestTimeTooSkewed":
        return "Set this machine's clock: the service takes no request of another time"
    if _code(error) in ("ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"):
        return "The credentials have expired: get new ones, and run the same command again"
    if is_denial(error):
        return (
            "The credentials need permission to read, write, list and delete below this prefix; "
            "a clock that is off by minutes is refused in the same way"
        )
    return "Check the endpoint, the region and the credentials; see docs/buckets.md"


def told(error: Exception) -> str:
    """One line about an error of the client, without what a URL may hold."""
    text = str(error)
    status, code = _STATUS.search(text), _code(error)
    if status or code:
        return clean(", ".join(filter(None, (status[1].strip() if status else "", code))))
    return clean(without_secrets(_QUERY.sub("?…", text.partition("\n")[0])), 200)


def tries(patience: float) -> Iterator[float]:
    """Seconds since the first try of a request, at each; growing pauses between them."""
    began = time.monotonic()
    for number in count():
        since = time.monotonic() - began
        yield since
        pause = min(_LONGEST_PAUSE, 0.1 * 2 ** min(number, 9)) * random.uniform(0.5, 1)
        if time.monotonic() + pause > began + patience:
            return
        time.sleep(pause)


def _code(error: Exception) -> str:
    found = _CODE.search(str(error))
    return (found[1] or found[2]) if found else ""
