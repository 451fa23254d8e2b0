"""The states of a submission and the transitions between them, as recorded in the journal."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.text import count, duration

TransitionKind = Literal["submitting", "prepared", "submitted", "withdrawn"]


@frozen
class Submission:
    """Work that is out with a service, as recorded in the journal: not settled, not withdrawn.

    ``lines``: the canonical keys in the order of the items, newline-joined. ``fingerprints``:
    parallel to the keys, or empty. ``left``: the keys that are not completed yet; None if that is
    all of them. ``number``, ``run`` and ``time``: of the record of the intent. ``prepared`` and
    ``handle``: None until recorded. ``prepares``: nothing is sent before ``prepared`` is recorded.
    ``by``: how the handle was obtained: ``"sent"``, ``"found"`` or ``"attached"``. ``cost``: the
    expected cost.
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
        """The keys whose results are still awaited."""
        return self.lines if self.left is None else self.left

    @property
    def state(self) -> str:
        """The state: ``intended``, ``prepared`` or ``submitted``."""
        if self.handle is not None:
            return "submitted"
        return "prepared" if self.prepared is not None else "intended"


@frozen
class Out:
    """The numbers of items and submissions that are out with a service.

    ``since``: when the oldest was submitted. ``cost``: the expected cost, as far as known.
    """

    items: int = 0
    submissions: int = 0
    since: str = ""
    cost: float | None = None

    @classmethod
    def of(cls, submissions: Iterable[Submission]) -> Out:
        """Return the totals of these submissions, which come oldest first."""
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
    """Return how long ago a record's time was, by this machine's clock; "" if it is not a time."""
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(time)).total_seconds()
    except (ValueError, TypeError):
        return ""
    return duration(max(0, round(seconds)))


@frozen
class Transition:
    """A change of a submission's state, which must be durable before the run acts on it.

    ``kind``: the kind of its record: ``submitting`` (with ``lines`` and ``fingerprints``),
    ``prepared``, ``submitted`` or ``withdrawn``. ``info``: the fields of the record besides its
    token. The last transition, settling, is part of a commit.
    """

    kind: TransitionKind
    token: str
    info: Mapping[str, Any]
    lines: bytes = b""
    fingerprints: bytes = b""
