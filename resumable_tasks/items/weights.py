"""Weights of items, as given by the job or as bytes of JSON; and their quotas."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import InvalidItems, UsageError
from resumable_tasks.items import fingerprints
from resumable_tasks.items.batch import Rows
from resumable_tasks.items.keys import shorten


class Weight(NamedTuple):
    """The weight of an item.

    ``bytes``: of its JSON (0 if not needed). ``own``: by the job's ``weight=``. ``quota``: the name
    of the quota that it counts in, "" if there are none.
    """

    bytes: int = 0
    own: int | None = None
    quota: str = ""


Spec = str | Callable[[Any], Any]
"""The name of a field, or a callable of an item."""


@frozen
class Weigher:
    """Finds the weights of items.

    ``in_bytes``: also measure the bytes of their JSON. ``refuse``: returns why a batch of these
    weights would never pass a limit, or "" if it can.
    """

    weight: Spec | None = None
    quota: Spec | None = None
    in_bytes: bool = False
    refuse: Callable[[Sequence[Weight]], str] = lambda weights: ""

    def of(self, items: Rows, positions: Sequence[int]) -> list[Weight]:
        """Return the weights of the items at these positions.

        Raises `InvalidItems` with the position of an item without a valid weight or quota.
        """
        rows: list[Any] = items if isinstance(items, list) else items.to_pylist()
        none: list[Any] = [None] * len(rows)
        own = none if self.weight is None else self._each("weight", self.weight, rows, positions)
        quota = [""] * len(rows)
        if self.quota is not None:
            quota = self._each("quota", self.quota, rows, positions)
        sizes = map(json_bytes, rows) if self.in_bytes else [0] * len(rows)
        return [Weight(*each) for each in zip(sizes, own, quota, strict=True)]

    def _each(
        self, option: str, spec: Spec, rows: Sequence[Any], positions: Sequence[int]
    ) -> list[Any]:
        check = _whole if option == "weight" else _name
        found = []
        for row, position in zip(rows, positions, strict=True):
            try:
                found.append(check(spec(row) if callable(spec) else _field(row, spec)))
            except Exception as error:
                raise InvalidItems(
                    f"item {position:,}: {option}={_shown(spec)} gives no usable value: "
                    f"{type(error).__name__}: {shorten(str(error), 200)}",
                    remedy=f"Fix the item, or give {option}= a field or callable that works for "
                    "all items",
                ) from error
        return found


def _shown(spec: Spec) -> str:
    return repr(spec) if isinstance(spec, str) else getattr(spec, "__qualname__", repr(spec))


def _field(item: Any, name: str) -> Any:
    try:
        return item[name]
    except (TypeError, AttributeError):
        return getattr(item, name)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or value != int(value) or value < 0:
        raise ValueError(f"{value!r} is not a whole number from 0")
    return int(value)


def _name(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{value!r} is not the name of a quota")
    return value


def json_bytes(item: Any) -> int:
    """Return the bytes of an item's JSON in UTF-8; an estimate if it has no JSON form."""
    try:
        text = _ENCODER.encode(item)
    except (TypeError, ValueError, RecursionError):
        text = repr(item)
    return len(text.encode(errors="replace"))


def _plain(value: Any) -> Any:
    try:
        return fingerprints.plain(value)
    except TypeError:
        return str(value)


_ENCODER = json.JSONEncoder(ensure_ascii=False, default=_plain)


def too_heavy(why: str, position: int | None, items: int) -> UsageError:
    """Return the error for a call with ``items`` items, the first of them at ``position``."""
    first = f"item {position:,}" if position is not None else "the first of these items"
    rest = f" and the {items - 1:,} in its batch" if items > 1 else ""
    return UsageError(
        f"{first}{rest}: {why}",
        remedy="Give a smaller batch_size=; split an item that is too heavy on its own",
    )
