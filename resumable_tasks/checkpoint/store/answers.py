"""Classifies the errors of object stores, and says how long a request is worth retrying."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from resumable_tasks.base.hanging import heeded
from resumable_tasks.base.panics import Panicked
from resumable_tasks.base.text import clean, without_secrets
from resumable_tasks.checkpoint.store import clients
from resumable_tasks.checkpoint.store.clients import Bucket
from resumable_tasks.errors import CheckpointUnusable, StoreError, UsageError

_LONGEST_PAUSE = 3.0
_STATUS = re.compile(r"status code: ([0-9]{3}[A-Za-z ]*)")
_CODE = re.compile(r"<Code>([A-Za-z]+)</Code>|\(code: ([A-Za-z]+)\)")
_QUERY = re.compile(r"\?\S+")
_REQUEST = re.compile(r"performing ([A-Z]+ \S+) in ")
# The error's details alone tell what happened to a connection, if possible in the system's words.
_CONNECTION = {
    "kind: Timeout": "no answer",
    "IncompleteBody": "the answer was cut off",
    "IncompleteMessage": "the connection was cut",
}
_SYSTEM = re.compile(r'(?:message|error): "([^"\n]+)"')
# Refusals with one of these statuses or codes may be temporary.
_PASSING = {404, 408, 409, 412, 425, 429}
_PASSING_CODES = {"RequestTimeout", "OperationAborted", "SlowDown"}
# The code for one object of a bulk delete, in an answer whose status is 200.
_DENIED = {"AccessDenied"}
_WITHOUT_BUCKET = {"NoSuchBucket", "ContainerNotFound"}
# The services' names of the permission that each operation needs; Azure has one role for all.
_RIGHTS = {
    "s3": {
        "write": "s3:PutObject",
        "read": "s3:GetObject",
        "look at": "s3:GetObject",
        "list": "s3:ListBucket",
        "delete": "s3:DeleteObject",
    },
    "gs": {
        "write": "storage.objects.create",
        "read": "storage.objects.get",
        "look at": "storage.objects.get",
        "list": "storage.objects.list",
        "delete": "storage.objects.delete",
    },
}
_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}


def foreign() -> tuple[type[Exception], ...]:
    """The errors that the client raises, including the ones that `panics.caught` makes."""
    from obstore.exceptions import BaseError

    return BaseError, OSError, ValueError, NotImplementedError, Panicked


@dataclass(frozen=True, slots=True)
class Answer:
    """An error of the client, without its text, which may repeat what the service was sent."""

    told: str
    """The error in one line, for messages."""
    code: str
    """The service's own error code."""
    unsure: bool
    """The request may have been carried out."""
    refused: bool
    """The name is taken. S3's 409 does not count, since it only means "not now"."""
    denied: bool
    """The service denies access to this caller."""
    final: bool
    """Repeating the request will hardly ever give another answer."""
    missing: bool
    """There is no such object."""
    without_credentials: bool
    """The environment has no credentials, and the machine has no role that provides any."""

    def error(
        self, verb: str, where: str, bucket: Bucket, *, answered: bool
    ) -> StoreError | UsageError:
        """The `StoreError` or `UsageError` to raise for it.

        ``answered``: the service has granted a request before. A refusal of the first request means
        that the place is unusable; a later refusal is an incident.
        """
        kind = StoreError if answered else CheckpointUnusable
        if self.code in _WITHOUT_BUCKET:
            return kind(
                f"cannot {verb} {where}: there is no bucket {bucket.name!r}"
                + (" any more" if answered else "")
                + ", as far as the credentials show",
                remedy="Create it, or name another bucket; see docs/buckets.md for the endpoint of "
                "a self-hosted service",
            )
        what = f"cannot {verb} {where}: {self.told}"
        if self.without_credentials:
            what = f"{where}: no credentials were found in the environment or on this machine"
        what += ". Nothing that was committed is lost"
        if not self.final:
            return StoreError(what, remedy="Run the same command again once the service responds")
        return kind(what, remedy=self._remedy(bucket.scheme, verb))

    def _remedy(self, scheme: str, verb: str) -> str:
        """The remedy for a refusal of this operation."""
        if self.without_credentials:
            return f"Set {clients.CREDENTIALS[scheme]}; see docs/buckets.md"
        if self.code == "RequestTimeTooSkewed":
            return "Set this machine's clock: the service refuses requests whose time is off"
        if self.code in _EXPIRED:
            return "The credentials have expired: get new ones, and run the same command again"
        if self.denied:
            right = _RIGHTS.get(scheme, {}).get(verb)
            return (
                "The credentials need permission to read, write, list and delete below this "
                f"prefix{f', here {right}' if right else ''}; a clock that is off by minutes "
                "causes the same error"
            )
        return "Check the endpoint, the region and the credentials; see docs/buckets.md"


def of(error: Exception) -> Answer:
    """Parse an error of the client."""
    text = str(error)
    status, coded = _STATUS.search(text), _CODE.search(text)
    code = (coded[1] or coded[2]) if coded else ""
    alone = "//169.254." in text
    denied = type(error).__name__ in ("PermissionDeniedError", "UnauthenticatedError")
    denied = denied or code in _DENIED or alone
    number = int(status[1][:3]) if status else 0
    final = 400 <= number < 500 and number not in _PASSING and code not in _PASSING_CODES
    final = final or denied or code in _WITHOUT_BUCKET or "Received redirect" in text
    final = final or isinstance(error, (ValueError, NotImplementedError))
    refused = number == 412 or "BlobAlreadyExists" in text
    panicked = isinstance(error, Panicked)
    words = filter(None, (status[1].strip() if status else "", code))
    return Answer(
        told=clean(", ".join(words)) or clean(_without_status(text, panicked=panicked), 200),
        code=code,
        unsure=not (refused or final),
        refused=refused,
        denied=denied,
        final=final or panicked,
        missing=isinstance(error, FileNotFoundError) and code not in _WITHOUT_BUCKET,
        without_credentials=alone,
    )


def _without_status(text: str, *, panicked: bool) -> str:
    """What happened to which request, for an error without an HTTP status."""
    line, _, details = text.partition("\n")
    line = without_secrets(_QUERY.sub("?…", line))
    if panicked:
        return f"the bucket client has panicked: {line}"
    system = _SYSTEM.search(details)
    known = (words for sign, words in _CONNECTION.items() if sign in details)
    what = system[1] if system else next(known, "")
    request = _REQUEST.search(line)
    return f"{what} ({request[1]})" if what and request else what or line


def tries(patience: float) -> Iterator[float]:
    """Yield the time of a request's first try, once for each try, with growing pauses between."""
    began = time.monotonic()
    for number in count():
        yield began
        pause = min(_LONGEST_PAUSE, 0.1 * 2 ** min(number, 9)) * random.uniform(0.5, 1)
        if time.monotonic() + pause > began + patience:
            return
        with heeded():
            time.sleep(pause)
