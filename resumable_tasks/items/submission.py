"""The states of a submission, and the transitions between them, as the journal has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

TransitionKind = Literal["submitting", "prepared", "submitted", "withdrawn"]


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, slots=True)
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
