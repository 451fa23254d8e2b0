"""Fingerprints: they show that an item has changed since it was completed.

A fingerprint is a 64-bit digest of a value's canonical JSON. Two different values share one with a
probability of 1 in 18 × 10¹⁸. It decides whether an item is done again, never which item it is.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from datetime import date, time, timedelta
from enum import Enum
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.base import checks
from resumable_tasks.base.frozen import frozen, locked
from resumable_tasks.base.hashes import blake2b
from resumable_tasks.errors import InvalidItems, UsageError
from resumable_tasks.items.keys import shorten

if TYPE_CHECKING:
    import pyarrow as pa

OnChange = Literal["redo", "keep", "error"]
CONTENT = "content"


def digest(value: Any) -> int:
    """Return the fingerprint of a value; the same for equal values, in every process.

    The order of a dict's fields does not matter; dataclasses and pydantic models count as dicts of
    their fields. Raises `TypeError` or `ValueError` for a value without a canonical form.
    """
    text = _ENCODER.encode(value).encode()
    return int.from_bytes(blake2b(text, digest_size=8).digest(), "big")


def to_text(fingerprint: int) -> bytes:
    """Return a fingerprint as the journal keeps it: 16 hexadecimal digits, or b"" for -1."""
    return b"%016x" % fingerprint if fingerprint >= 0 else b""


def from_text(text: bytes) -> int:
    """Return the fingerprint that `to_text` wrote; -1 for b""."""
    return int(text, 16) if text else -1


@frozen
class Fingerprinter:
    """A way to get the fingerprint of an item.

    ``spec``: the name of a field, a callable on the item, or ``"content"`` for the whole item.
    """

    spec: str | Callable[[Any], Any]

    def __post_init__(self) -> None:
        if not callable(self.spec) and not (isinstance(self.spec, str) and self.spec):
            raise UsageError(
                f'Changes: by={self.spec!r} is not a field name, "content" or a callable',
                remedy="Give by= one of the three",
            )

    def describe(self) -> Any:
        """Return the scheme as JSON for claims. Fingerprints of two schemes are not compared."""
        if callable(self.spec):
            return {"callable": getattr(self.spec, "__qualname__", type(self.spec).__name__)}
        return CONTENT if self.spec == CONTENT else {"field": self.spec}

    def of(self, items: Sequence[Any] | pa.RecordBatch, first: int) -> list[int]:
        """Return the fingerprints of consecutive items; the first has position ``first``.

        Raises `InvalidItems` with the position of an item that has none.
        """
        values = self._values(items, first)
        try:
            return [digest(value) for value in values]
        except (TypeError, ValueError, RecursionError):
            pass  # the loop below finds the item at fault
        for at, value in enumerate(values):
            try:
                digest(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise InvalidItems(
                    f"item {first + at:,}: cannot compute a fingerprint of {shorten(value)}: "
                    f"{error}; give Changes(by=…) a field, or a callable that returns text or a "
                    "number"
                ) from None
        raise AssertionError("a digest that failed fails again")

    def _values(self, items: Any, first: int) -> Sequence[Any]:
        spec, rows = self.spec, isinstance(items, list)
        if spec == CONTENT or callable(spec):
            each: list[Any] = items if rows else items.to_pylist()
            return [spec(item) for item in each] if callable(spec) else each
        if rows:
            return [_field(item, spec, first + at) for at, item in enumerate(items)]
        if spec not in items.schema.names:
            raise _no_field(first, "items have no column", spec, items.schema.names)
        column: list[Any] = items.column(spec).to_pylist()
        return column


@locked
class Changes:
    """Detection of completed items that have changed, and the response to it.

    Raises `UsageError` for a value that does not fit. Items completed before the job had this
    setting count as unchanged, and are compared from then on.

    Args:
        by: the name of a field such as ``updated_at`` or ``etag``; a callable that takes the item;
            or ``"content"``, the whole item (to use a field of that name, give a callable).
        then: ``"redo"``: the item is handled again, and its new rows replace the old ones;
            ``"keep"``: its results stay as they are; ``"error"``: the run ends with `ChangedItem`.
    """

    by: str | Callable[[Any], Any]
    then: OnChange = "redo"

    def __post_init__(self) -> None:
        Fingerprinter(self.by)
        checks.choice("Changes: then", self.then, ("redo", "keep", "error"))


def _field(item: Any, name: str, position: int) -> Any:
    try:
        return item[name]  # dicts, and rows of databases
    except (KeyError, IndexError, TypeError, AttributeError):
        pass
    try:
        return getattr(item, name)
    except AttributeError:
        found = list(item) if isinstance(item, dict) else type(item).__name__
        raise _no_field(position, "item has no field", name, found) from None


def _no_field(position: int, what: str, name: str, found: Any) -> InvalidItems:
    return InvalidItems(
        f"item {position:,}: the {what} {name!r} (found: {shorten(found, 200)}); give "
        "Changes(by=…) a name that exists and changes when the item does"
    )


def plain(value: Any) -> Any:
    """Return a value of a type unknown to JSON as one that JSON has, marked with its type."""
    from decimal import Decimal
    from pathlib import PurePath
    from uuid import UUID

    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):  # pydantic, without importing it
        return value.model_dump()
    if isinstance(value, (date, time)):  # and datetime
        return ["time", value.isoformat()]
    if isinstance(value, timedelta):
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if isinstance(value, (Decimal, UUID, PurePath)):
        return [type(value).__name__, str(value)]
    if isinstance(value, (bytes, bytearray, memoryview)):
        return ["bytes", bytes(value).hex()]
    if isinstance(value, (set, frozenset)):
        return ["set", sorted(map(_ENCODER.encode, value))]
    if isinstance(value, Enum):
        return value.value
    if hasattr(value, "as_py"):  # a scalar of Arrow
        return value.as_py()
    if hasattr(value, "tolist"):  # arrays and scalars of numpy
        return value.tolist()
    raise TypeError(f"{type(value).__name__} has no canonical form")


_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=plain)
