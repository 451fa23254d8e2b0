"""The protocol of a service that takes work under a token and gives the results later.

A handler with `submit`, `poll` and `collect` is *submitted work*, as in
`resumable_task(Embed(), …)`. Each batch becomes one submission, whose states are in the journal::

    intended → prepared → submitted → settled
                              or      withdrawn

Nothing is paid for twice, whenever the process dies, if the service can `find` what was submitted
under a token, or starts nothing twice under the same one (`idempotent_for`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from resumable_tasks.errors import ResumableTasksError, UsageError
from resumable_tasks.items.keys import Key

Handle = Any
"""Any JSON value. It is stored in the journal in plain text: no secrets, no signed URLs."""


class Submitted(Protocol):
    """A service that takes work now and delivers results later. Each method may be a coroutine.

    Optional methods and attributes:

    * ``prepare(items, token)``: do what must precede `submit` but neither starts nor costs
      anything, such as uploading a file. Its return value (JSON) is durable before `submit`, which
      gets it as its third argument.
    * ``find(token, prepared)``: return the handle of what was submitted under this token, or None.
      Raises `CannotTell`.
    * ``fence(token, prepared)``: make sure that a `submit` still under way elsewhere can no longer
      start anything once this returns.
    * ``cancel(handle)``: ask the service to end the work. What is done by then is collected.
    * ``price(items)``: return the expected cost; needed for a budget with a cost.
    * ``idempotent_for``: seconds during which `submit` with the same token starts nothing again.
    * ``patience``: maximum seconds until `find` can see what was submitted.
    * ``request_timeout``: maximum seconds that `submit` takes.
    * ``max_items``: maximum number of items per submission.
    """

    def submit(self, items: Any, token: str) -> Handle:
        """Start the work, once. Raises `NotAccepted` if it is certain that nothing has started.

        Any other error means that the state is unknown; `find` then resolves it. So this method
        must never repeat the request automatically.
        """
        ...

    def poll(self, handle: Handle) -> Pending | Ended:
        """Check how far the work is. Raises `NotReady` while the service does not know it yet."""
        ...

    def collect(self, handle: Handle) -> Any:
        """Return the results, as a handler does, each with its key. May be called again.

        If it has a second parameter, it gets the keys of the submission, in the order of the items
        given to `submit`. The rows may include `ItemFailure` and `Undone` objects. Items that are
        left out also count as `Undone`, unless the job has ``results="many"`` or ``"none"``: then
        they are done without a row. If each item should have a row, no rows at all count as
        `NotReady`, since this may be a mistake in `collect`. Raises `NotAccepted` if it is certain
        that nothing was done and nothing charged, and `NotReady` if the results are not there yet.
        Any other error ends the run; the submission stays with the service.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pending:
    """The service is at work. ``progress`` is text for people, such as ``"12 of 69"``.

    ``again_in``: seconds after which to check again, if the service says so.
    """

    progress: str = ""
    again_in: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The service has finished, successfully or not. ``how`` is its word for it, for people."""

    how: str = ""


@dataclass(frozen=True, slots=True)
class Undone:
    """In place of a result: the service neither handled the item nor charged for it.

    The item is submitted again, and no attempt is counted. ``error``: the reason, if the service
    gives one. ``outage``: the service refuses every item: no funds, no access, too many requests.
    """

    key: Key
    error: BaseException | str = ""
    outage: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """Results with their cost, which `collect` may return instead of the results alone.

    If neither this nor the job's ``cost`` gives the cost, the expected cost counts.
    """

    results: Any
    cost: float | None = None


class NotAccepted(ResumableTasksError):
    """The service certainly has not started the work, and will not.

    ``again``: the same work may be accepted later (limits, no funds, no access); otherwise the work
    itself is refused. ``retry_after``: seconds, if the service says so.
    """

    def __init__(
        self, what: str, *, again: bool = False, retry_after: float | None = None, **parts: str
    ) -> None:
        super().__init__(what, **parts)
        self.again = again
        self.retry_after = retry_after


class QueueFull(NotAccepted):
    """The service accepts no more work from this account now; later it will."""

    def __init__(self, what: str, *, retry_after: float | None = None, **parts: str) -> None:
        super().__init__(what, again=True, retry_after=retry_after, **parts)


class CannotTell(ResumableTasksError):
    """`find` cannot yet tell whether something was submitted under the token."""


class NotReady(ResumableTasksError):
    """The service does not know the submission yet, or does not have its results yet."""


@dataclass(frozen=True)
class _OfFunctions:
    submit: Callable[..., Handle]
    poll: Callable[[Handle], Pending | Ended]
    collect: Callable[..., Any]

    @property
    def __name__(self) -> str:
        return getattr(self.submit, "__name__", "submitted")


_OPTIONAL = (
    *("prepare", "find", "fence", "cancel", "price"),
    *("idempotent_for", "patience", "request_timeout", "max_items"),
)


def submitted(
    submit: Callable[..., Handle],
    poll: Callable[[Handle], Pending | Ended],
    collect: Callable[..., Any],
    **more: Any,
) -> Submitted:
    """Build a `Submitted` service from plain functions, for `resumable_task`.

    Args:
        submit: as in `Submitted`.
        poll: as there.
        collect: as there.
        more: the optional methods and attributes, by name.

    Raises:
        UsageError: one of the three is not a function, or `Submitted` has no optional method of
            that name.
    """
    for name, function in (("submit", submit), ("poll", poll), ("collect", collect)):
        if not callable(function):
            raise UsageError(
                f"submitted() got {name}={function!r}, which is not a function",
                remedy="Give it submit, poll and collect, in this order",
            )
    unknown = sorted(set(more) - set(_OPTIONAL))
    if unknown:
        raise UsageError(
            f"submitted() has no parameter {unknown[0]!r}",
            remedy=f"Give submit, poll, collect, and optionally by name {', '.join(_OPTIONAL)}",
        )
    made = _OfFunctions(submit, poll, collect)
    for name, value in more.items():
        object.__setattr__(made, name, value)
    return made


_MORE = ("prepared", "keys")


def takes_one_more(method: Callable[..., Any], given: int) -> bool:
    """True if a method has one more parameter after the first ones, for ``prepared`` or ``keys``.

    A parameter with another name and a default is the service's own, such as ``timeout=60``.
    """
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    found = inspect.signature(method).parameters.values()
    if any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in found):
        return True
    more = [each for each in found if each.kind in kinds][given:]
    return bool(more) and (more[0].default is inspect.Parameter.empty or more[0].name in _MORE)
