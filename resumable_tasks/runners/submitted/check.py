"""Checks a service before anything is sent, because a mistake found later would cost a night."""

from __future__ import annotations

import inspect
import json
from typing import Any

from resumable_tasks.base import checks
from resumable_tasks.errors import UsageError
from resumable_tasks.items.keys import shorten
from resumable_tasks.runners.submitted.protocol import Pending, takes_one_more

_GIVEN = {
    "submit": ("items", "token"),
    "poll": ("handle",),
    "collect": ("handle",),
    "prepare": ("items", "token"),
    "find": ("token",),
    "fence": ("token",),
    "cancel": ("handle",),
    "price": ("items",),
}
# A handle, or the value of `prepare`, is meant to be a name, not data.
_LONGEST = 65_536
_SECONDS = ("idempotent_for", "patience", "request_timeout")


def check_service(
    name: str, service: Any, *, batch_size: int, timeout: float | None, of_money: bool
) -> None:
    """Raise `UsageError` for methods that cannot be called and options that do not fit them.

    ``of_money``: the budget limits a cost.
    """
    kind = type(service).__name__ if not hasattr(service, "__name__") else service.__name__
    for method in _GIVEN:
        if callable(getattr(service, method, None)):
            _check_takes(f"{name}: {kind}.{method}", getattr(service, method), _GIVEN[method])
    for attribute in _SECONDS:
        if getattr(service, attribute, None) is not None:
            checks.seconds(f"{kind}.{attribute}", getattr(service, attribute))
    most = getattr(service, "max_items", None)
    checks.whole_number(f"{kind}.max_items", most, 1, or_none=True)
    if most is not None and batch_size > most:
        raise UsageError(
            f"{name}: {kind} takes at most max_items={most:,} items per submission, but batch_size "
            f"is {batch_size:,}",
            remedy=f"Give batch_size={most} or less",
        )
    if timeout is not None and not callable(getattr(service, "cancel", None)):
        raise UsageError(
            f"{name}: timeout={timeout:g} needs to cancel submissions, but {kind} has no "
            "cancel(handle)",
            remedy="Add the method, or leave timeout= out",
        )
    if of_money and not callable(getattr(service, "price", None)):
        raise UsageError(
            f"{name}: a budget with a cost counts open submissions by their expected cost, but "
            f"{kind} does not provide it",
            remedy="Add a method price(items) that returns the expected cost of a submission "
            "(OpenAIBatch and AnthropicBatch: prices=), or leave cost= and total= out of the "
            "budget",
        )


def check_pending(state: Any) -> None:
    """Raise `UsageError` if `poll` returned a value that the protocol does not allow."""
    if not isinstance(state, Pending):
        raise UsageError(
            f"poll returned {shorten(state)}, neither Pending() nor Ended()",
            remedy="Return Pending() while the service is at work, then Ended()",
        )
    again_in = state.again_in
    if again_in is not None and not (isinstance(again_in, (int, float)) and again_in < 0):
        checks.seconds("poll returned Pending: again_in", again_in)


def as_json(method: str, returned: Any) -> Any:
    """Return a method's value as it will be read from the journal. Raises `UsageError`."""
    try:
        if returned is not None and len(text := json.dumps(returned, allow_nan=False)) < _LONGEST:
            return json.loads(text)
        why = "is None" if returned is None else f"has {len(text):,} characters as JSON"
    except (TypeError, ValueError) as error:
        why = f"is not JSON: {error}"
    raise UsageError(
        f"the value that {method} returned {why}",
        remedy=f"Return a non-null JSON value of up to {_LONGEST:,} characters with which another "
        "process can continue. The next run looks for what was submitted",
    )


def _check_takes(what: str, method: Any, given: tuple[str, ...]) -> None:
    try:
        signature = inspect.signature(method)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*[None] * (len(given) + takes_one_more(method, len(given))))
    except TypeError as error:
        call = what.rpartition(".")[2]
        raise UsageError(
            f"{what}{str(signature)[:200]} cannot be called with ({', '.join(given)}): {error}",
            remedy=f"Write it as {call}({', '.join(given)})",
        ) from None
