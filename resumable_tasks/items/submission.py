"""The states of a submission, and the transitions between them, as the journal has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import count, duration

TransitionKind = Literal["submitting", "prepared", "submitted", "withdrawn"]


@frozen
class Submission:
    """Work that is out, as the journal tells of it: not settled, and not withdrawn.

    ``lines`` are the canonical keys in the order of the items, newline-joined, ``fingerprints``
    parallel to them or empty; ``left`` are those of the keys that are not completed yet, None if
    that is all of them. ``number`` is that of the record of the intent, ``run`` its run and
    ``time`` when that was. ``prepared`` and ``handle`` are None until a record has them;
    ``prepares``: nothing is sent before the first of them. ``by`` says how the handle was got:
    ``"sent"``, ``"found"`` or ``"attached"``. ``cost`` is the expected cost.
    """

    token: str
    lines: bytes
    count: int
    fingerprints: bytes = b""
    left: bytes | None = None
    number: int = -1
    run: str = ""
    time: str = ""
    prepared: Any = None
    handle: Any = None
    by: str = ""
    cost: float | None = None
    prepares: bool = False

    @property
    def pending(self) -> bytes:
        """The keys that its results are for."""
        return self.lines if self.left is None else self.left

    @property
    def state(self) -> str:
        """Its state: ``intended``, ``prepared`` or ``submitted``."""
        if self.handle is not None:
            return "submitted"
        return "prepared" if self.prepared is not None else "intended"


@frozen
class Out:
    """So many items that a service has, in so many submissions.

    ``since`` is when the oldest was submitted, ``cost`` what they are expected to cost, as far as
    that is known.
    """

    items: int = 0
    submissions: int = 0
    since: str = ""
    cost: float | None = None

    @classmethod
    def of(cls, submissions: Iterable[Submission]) -> Out:
        """Those of these submissions, oldest first."""
        each = list(submissions)
        costs = [found.cost for found in each if found.cost is not None]
        items = sum(found.pending.count(b"\n") + 1 for found in each if found.pending)
        since = each[0].time if each else ""
        return cls(items, len(each), since, sum(costs) if costs else None)

    def __bool__(self) -> bool:
        return self.submissions > 0

    def __str__(self) -> str:
        """``600 items out in 3 submissions (oldest 2 h 10 min)``"""
        return f"{count(self.items, 'item')} out {self.where}"

    @property
    def where(self) -> str:
        """``in 3 submissions (oldest 2 h 10 min)``"""
        text = f"in {count(self.submissions, 'submission')}"
        return text + (f" (oldest {age})" if (age := age_of(self.since)) else "")


def age_of(time: str) -> str:
    """How long ago a time of a record was, by this machine's clock; empty if it is none."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return ""
    return duration(max(0, round(seconds)))


@frozen
class Transition:
    """A change of a submission's state, which must be durable before anything follows from it.

    ``kind`` is that of its record: ``submitting`` (with ``lines`` and ``fingerprints``),
    ``prepared``, ``submitted`` or ``withdrawn``. ``info`` is what the record says besides its
    token. A commit settles a submission.
    """

    kind: TransitionKind
    token: str
    info: Mapping[str, Any]
    lines: bytes = b""
    fingerprints: bytes = b""
