"""Tells whether a provider's error concerns the request, the account, or the service."""

from __future__ import annotations

import re
from typing import Any

from resumable_tasks.errors import ResumableTasksError
from resumable_tasks.runners.http_signs import seconds_told
from resumable_tasks.runners.submitted.protocol import NotAccepted, QueueFull

# A lack of funds is reported as 400, 403 or 429, with one of these in the code or the message.
_FUNDS = re.compile(
    r"credit balance|insufficient_quota|insufficient_funds|billing|current quota|spend.limit"
    r"|payment required",
    re.I,
)
_QUEUE = re.compile(r"token_limit_exceeded|enqueued token limit|batch.{0,30}queue", re.I)
_FILE_GONE = re.compile(r"(no such|unknown) file|file\b.{0,60}(not found|deleted|not exist)", re.I)
_OF_THE_SERVICE = {401, 402, 403, 407, 408, 425, 429}
_OF_THE_SERVICE_CODES = re.compile(
    r"authentication|permission|rate_limit|overloaded|timeout|api_error|server_error|invalid_api_key",
    re.I,
)
# With these statuses, the request may have been carried out.
_UNCERTAIN = {408, 409, 499}


class RequestFailed(ResumableTasksError):
    """The provider answered one request of a batch with an error, or it could not be made.

    ``status_code``: the HTTP status, 0 if there is none. ``code``: the provider's error code.
    """

    def __init__(self, what: str, *, status_code: int = 0, code: str = "", **parts: str) -> None:
        super().__init__(what, **parts)
        self.status_code = status_code
        self.code = code

    @property
    def outage(self) -> bool:
        """True if the service refuses any request: no funds, no access, too many requests."""
        if _FUNDS.search(f"{self.code} {self}"):
            return True
        if self.status_code:
            return of_the_service(self.status_code)
        return bool(_OF_THE_SERVICE_CODES.search(self.code))


def of_the_service(status: int) -> bool:
    """True for an HTTP status that does not concern the request itself."""
    return status in _OF_THE_SERVICE or status >= 500


def not_accepted(error: Exception) -> NotAccepted | None:
    """Return the error as `NotAccepted` if it is certain that nothing was started; else None."""
    status = getattr(error, "status_code", None)
    if not isinstance(status, int) or not 400 <= status < 500 or status in _UNCERTAIN:
        return None
    what = f"the provider refused the batch: {error}"
    if _FUNDS.search(what):
        return NotAccepted(what, again=True, remedy="Add credit to the account, and run again")
    told = seconds_told(error)
    if _QUEUE.search(what) or (status == 429 and told is None):
        return QueueFull(what, retry_after=told)
    if status == 429:
        return NotAccepted(what, again=True, retry_after=told)
    if of_the_service(status):
        remedy = "Check the key and its permissions"
        return NotAccepted(what, again=True, retry_after=told, remedy=remedy)
    # If our uploaded file is gone, the items are not at fault: try again.
    return NotAccepted(what, again=bool(_FILE_GONE.search(what)))


def failed_whole(batch: str, errors: list[Any]) -> NotAccepted:
    """Return the error for a batch that was refused after its creation, before any request ran."""
    told = "; ".join(f"{each.code}: {each.message}" for each in errors[:3]) or "no reason given"
    what = f"batch {batch} failed before it started: {told}"
    if _QUEUE.search(told):
        return QueueFull(
            what, remedy="Use a smaller batch_size, if no other batch of yours is running"
        )
    if _FUNDS.search(told) or _OF_THE_SERVICE_CODES.search(told) or _FILE_GONE.search(told):
        return NotAccepted(what, again=True)
    return NotAccepted(what)
