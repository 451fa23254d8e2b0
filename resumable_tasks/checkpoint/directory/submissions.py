"""Lets a person decide about a submission: whether the service has it or not.

As in `repair.release`, the record written for this fences every run that may still be alive.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import clean, command, count
from resumable_tasks.checkpoint.directory import holder
from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.held import Held, held
from resumable_tasks.checkpoint.directory.outstanding import (
    Outstanding,
    record_of,
    shown,
    unanswered,
)
from resumable_tasks.checkpoint.directory.record import BY_HAND
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import UsageError
from resumable_tasks.items.submission import Submission, Transition, TransitionKind


@frozen
class Known:
    """The submissions with a service: ``each``, oldest first, and ``strays``, handles by token.

    The record with a stray's items was lost.
    """

    each: Sequence[Submission]
    strays: Mapping[str, Any]


def read(store: Store) -> Known:
    """The submissions that are with a service. Safe while a run is active.

    Raises:
        CheckpointDamaged: the checkpoint is damaged.
        UsageError: there is no checkpoint.
    """
    _, state = read_checkpoint(store)
    return Known([unanswered(each, state.done) for each in state.out], state.out.strays)


def attach(store: Store, token: str, handle: Any, *, again: bool = False) -> Submission:
    """Record the handle by which the service knows a submission, durable on return.

    The next run collects it. Returns the submission as it was. ``again`` replaces a known handle.

    Raises:
        CheckpointHeld: a run is active.
        UsageError: there is no such submission, its items are not known, it has a handle already,
            or the given handle is invalid.
    """
    if handle is None:
        raise UsageError(
            "null is not a handle; nothing was changed",
            remedy="Give the id by which the service knows the submission",
        )
    with held(store) as it:
        found = _found(it.state.out, token, store.url)
        if found is None:
            raise UsageError(
                f"{store.url}: the items of submission {token} are unknown, because a record was "
                "lost; nothing was changed",
                remedy="Fetch its results from the service yourself; "
                f"{command('submissions', store.url, 'withdraw', token)} forgets it",
            )
        if found.handle is not None and not again:
            raise UsageError(
                f"submission {token} already has a handle: {shown(found.handle)}; nothing was "
                "changed",
                remedy="Give --yes to replace it",
            )
        _append(it, "submitted", token, {"handle": handle}, found.count)
    return found


def withdraw(store: Store, token: str, *, lose: bool = False) -> Submission | None:
    """Give a submission up, durable on return: the next run submits its items again.

    Returns the submission as it was, None if its items are not known. ``lose`` gives it up even if
    the service has it; its results are never collected then.

    Raises:
        CheckpointHeld: a run is active.
        UsageError: there is no such submission, or the service has it.
    """
    with held(store) as it:
        found = _found(it.state.out, token, store.url)
        if found is not None and found.handle is not None and not lose:
            raise UsageError(
                f"the service has submission {token}: {shown(found.handle)}. If you withdraw it, "
                f"its results are never collected and {count(found.count, 'item')} must be paid "
                "for again; nothing was changed",
                remedy="Run the job to collect it, or give --yes to withdraw it anyway",
            )
        items = 0 if found is None else found.count
        _append(it, "withdrawn", token, {"why": "by hand"}, items)
    return found


def _found(out: Outstanding, token: str, place: str) -> Submission | None:
    """The submission, None if it is a stray. Raises `UsageError` if there is none."""
    if token in out.strays:
        return None
    if token not in out.each:
        raise UsageError(
            f"{place}: there is no open submission {clean(token, 40)}; nothing was changed",
            remedy=f"{command('submissions', place)} lists the open ones",
        )
    return out.each[token]


def _append(
    it: Held, kind: TransitionKind, token: str, info: Mapping[str, Any], items: int
) -> None:
    me = holder.me(it.run)
    me.pop("run")
    transition = Transition(kind, token, {**info, "by": BY_HAND[kind], "items": items, **me})
    it.journal.append(record_of(transition, it.state.epoch + 1, it.run))
