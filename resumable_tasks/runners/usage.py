"""The weights of calls: estimated beforehand from earlier calls, and corrected by reports."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil

from resumable_tasks.base import checks
from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import UsageError
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.weights import Weight
from resumable_tasks.runners.rates import Unit

# Tokens per byte before any report; about right for English prose.
_TOKENS_A_BYTE = 0.25
# Recent calls count more: a call a hundred calls ago counts about a third.
_FORGET = 0.99


@frozen
class Load:
    """The items of one call: their number, their bytes, and their weight by ``weight=``, if given.

    ``parts``: the same for the items of each quota, by its name.
    """

    items: int = 1
    bytes: int = 0
    own: int | None = None
    parts: Mapping[str, Load] = field(default_factory=dict)

    @classmethod
    def of(cls, batch: Batch) -> Load:
        """Return the load of a call with this batch."""
        weights = batch.weights
        if not weights:
            return cls(len(batch))
        quotas = dict.fromkeys(each.quota for each in weights if each.quota)
        parts = {name: _load(each for each in weights if each.quota == name) for name in quotas}
        return _load(weights, parts)

    def part(self, quota: str) -> Load | None:
        """Return the part that counts in this quota, or None; the whole load for ""."""
        return self.parts.get(quota) if quota else self


def _load(weights: Iterable[Weight], parts: Mapping[str, Load] | None = None) -> Load:
    weights = list(weights)
    own = [each.own for each in weights if each.own is not None]
    size = sum(each.bytes for each in weights)
    return Load(len(weights), size, sum(own) if own else None, parts or {})


@dataclass(slots=True)
class Used:
    """The usage of one call: the sums of all reports of its handler."""

    tokens: int | None = None
    input_tokens: int | None = None
    bytes: int | None = None

    def add(self, **reported: int | None) -> None:
        """Add one report. Raises `UsageError` for a value that is not a number from 0."""
        for name, value in reported.items():
            if value is None:
                continue
            if not checks.is_number(value):
                raise UsageError(
                    f"report({name}={value!r}) is not a number from 0",
                    remedy="Report a number from the answer, or None",
                )
            setattr(self, name, (getattr(self, name) or 0) + ceil(value))

    def of(self, unit: Unit) -> int | None:
        """Return the usage in this unit; None if it was not reported."""
        match unit:
            case "tokens":
                return self.tokens
            case "input tokens":
                return self.input_tokens
            case "bytes":
                return self.bytes
            case "output tokens" if self.tokens is not None and self.input_tokens is not None:
                return max(0, self.tokens - self.input_tokens)
        return None


@dataclass(slots=True)
class Learnt:
    """Estimates tokens from bytes, based on the reports of earlier calls.

    The fields are weighted sums over those calls, of the bytes, items and tokens; recent calls
    count most. Tokens that are not reported as input or output count as input.
    """

    bytes: float = 0.0
    items: float = 0.0
    input: float = 0.0
    output: float = 0.0

    def add(self, load: Load, used: Used) -> None:
        """Learn from a call that has ended."""
        sent = used.tokens if used.input_tokens is None else used.input_tokens
        if sent is None:
            return
        received = used.of("output tokens") or 0
        new = (load.bytes, load.items, sent, received)
        for name, value in zip(("bytes", "items", "input", "output"), new, strict=True):
            setattr(self, name, _FORGET * getattr(self, name) + value)

    def weight(self, unit: Unit, load: Load) -> int:
        """Return the estimated weight of a call in this unit; the exact one where known."""
        match unit:
            case "calls":
                return 1
            case "items":
                return load.items
            case "bytes":
                return load.bytes
        if load.own is not None and unit != "output tokens":
            return load.own
        a_byte = self.input / self.bytes if self.bytes else _TOKENS_A_BYTE
        tokens = 0.0 if unit == "output tokens" else a_byte * load.bytes
        if unit != "input tokens" and self.items:
            tokens += self.output / self.items * load.items
        return max(1, round(tokens))

    def told(self) -> dict[str, float]:
        """Return the sums for the next run; {} if nothing was learnt."""
        found = {name: round(getattr(self, name), 1) for name in self.__slots__}
        return found if self.items else {}

    def resume(self, told: Mapping[str, float] | None) -> None:
        """Continue from the sums of an earlier run."""
        for name in self.__slots__ if told else ():
            value = told.get(name) if told else None
            if isinstance(value, (int, float)) and value >= 0:
                setattr(self, name, float(value))


def known(unit: Unit, weights: Sequence[Weight]) -> int | None:
    """Return the weight of a call with these items if it is known exactly; else None."""
    load = _load(weights)
    if unit in ("calls", "items", "bytes"):
        return Learnt().weight(unit, load)
    return load.own if unit != "output tokens" else None
