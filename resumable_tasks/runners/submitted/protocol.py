"""The protocol of a service that takes work under a token and gives the results later.

A handler with `submit`, `poll` and `collect` is *submitted work*, as in
`resumable_task(Embed(), …)`. Each batch becomes one submission, whose states are in the journal::

    intended → prepared → submitted → settled
                              or      withdrawn

What is paid is paid once, whenever the process dies, if the service can `find` what was submitted
under a token, or starts nothing twice under one (`idempotent_for`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

from resumable_tasks.errors import ResumableTasksError, UsageError
from resumable_tasks.items.keys import Key

Handle = Any
"""Whatever JSON has. It is stored in the journal in plain text: no secrets, no signed URLs."""


class Submitted(Protocol):
    """A service that takes work now and gives the results later. Each method may be a coroutine.

    Optional methods and attributes:

    * ``prepare(items, token)``: do what must come before `submit` and neither starts nor costs
      anything, such as the upload of a file. What it returns (JSON) is durable before `submit`,
      which gets it as its third argument.
    * ``find(token, prepared)``: the handle of what was submitted under this token, None if there
      is nothing. Raises `CannotTell`.
    * ``fence(token, prepared)``: once it has returned, a `submit` that is still on its way
      elsewhere cannot start anything.
    * ``cancel(handle)``: ask the service to end it. What is done by then is collected.
    * ``price(items)``: the expected cost, which a budget of money needs.
    * ``idempotent_for``: seconds for which `submit` with the same token starts nothing again.
    * ``patience``: seconds until what was submitted is in what `find` looks through, at most.
    * ``request_timeout``: seconds that `submit` takes, at most.
    * ``max_items``: items of one submission, at most.
    """

    def submit(self, items: Any, token: str) -> Handle:
        """Start the work, once. Raises `NotAccepted` where it is certain that nothing has started.

        Whatever else is raised means that it is unknown, and is looked into by `find`. So nothing
        in here may repeat the request by itself.
        """
        ...

    def poll(self, handle: Handle) -> Pending | Ended:
        """Look how far it is. Raises `NotReady` while the service does not know of it yet."""
        ...

    def collect(self, handle: Handle) -> Any:
        """The results, as a handler returns them, each with its key. May be called again.

        With a second parameter it is given the keys of the submission, in the order in which
        `submit` was given their items. Among the rows may be an `ItemFailure` and an `Undone`;
        items that are left out count as `Undone` too, unless ``results`` of the job is ``"many"``
        or ``"none"``: those are done without a row. Nothing at all for a submission, where each
        item has one row, counts as `NotReady`: it may be a mistake in here. Raises `NotAccepted`
        if it is certain that nothing was done and nothing charged, `NotReady` if the results are
        not there yet.
        Whatever else it raises ends the run, and the submission stays where it is.
        """
        ...


@dataclass(frozen=True, slots=True)
class Pending:
    """The service is at work. ``progress`` is for people, such as ``"12 of 69"``.

    ``again_in``: seconds after which to look again, if the service says so.
    """

    progress: str = ""
    again_in: float | None = None


@dataclass(frozen=True, slots=True)
class Ended:
    """The service has come to an end, whichever. ``how`` is its word for it, for people."""

    how: str = ""


@dataclass(frozen=True, slots=True)
class Undone:
    """In the place of a result: the service has not handled the item, nor charged for it.

    It is submitted again, and no attempt counts. ``error``: why, where the service says so.
    ``outage``: the service refuses, whatever the item: no funds, no access, too many requests.
    """

    key: Key
    error: BaseException | str = ""
    outage: bool = False


@dataclass(frozen=True, slots=True)
class Collected:
    """What `collect` may return instead of the results alone: with what they have cost.

    Where neither this nor the job's ``cost`` tells it, the expected cost counts.
    """

    results: Any
    cost: float | None = None


class NotAccepted(ResumableTasksError):
    """The service has not begun the work, and will not: certain.

    ``again``: the same may be accepted later (limits, no funds, no access); otherwise it is the
    work itself that is refused. ``retry_after``: seconds, if the service says so.
    """

    def __init__(
        self, what: str, *, again: bool = False, retry_after: float | None = None, **parts: str
    ) -> None:
        super().__init__(what, **parts)
        self.again = again
        self.retry_after = retry_after


class QueueFull(NotAccepted):
    """The service has as much work of this account as it takes; later it takes more."""

    def __init__(self, what: str, *, retry_after: float | None = None, **parts: str) -> None:
        super().__init__(what, again=True, retry_after=retry_after, **parts)


class CannotTell(ResumableTasksError):
    """`find` cannot tell yet whether something was submitted under the token."""


class NotReady(ResumableTasksError):
    """The service does not know of the submission yet, or not of its results."""


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
    """Make submitted work of plain functions, for `resumable_task`.

    Args:
        submit: as in `Submitted`.
        poll: as there.
        collect: as there.
        more: its optional methods and attributes, by their names.

    Raises:
        UsageError: one of the three is no function, or `Submitted` has no optional method of a
            name.
    """
    for name, function in (("submit", submit), ("poll", poll), ("collect", collect)):
        if not callable(function):
            raise UsageError(
                f"submitted() got {name}={function!r}, which is no function",
                remedy="Give it submit, poll and collect, in this order",
            )
    unknown = sorted(set(more) - set(_OPTIONAL))
    if unknown:
        raise UsageError(
            f"submitted() has no parameter {unknown[0]!r}",
            remedy=f"It takes submit, poll, collect, and by name {', '.join(_OPTIONAL)}",
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
