"""Copies of the items for the handler, so that its changes affect nothing else.

Retries, the halves of a failed batch and the keys of the rows use the original items.
"""

from __future__ import annotations

import copy
import dataclasses
import operator
from collections.abc import Sequence
from itertools import chain
from typing import Any

from resumable_tasks.items.batch import Rows

_ATOMS = frozenset({type(None), bool, int, float, str, bytes})


class Given:
    """The items for one call of the handler; pass it ``items``."""

    def __init__(self, items: Rows) -> None:
        self.items: Rows = items
        self._each: tuple[Any, ...] = ()
        if isinstance(items, list):  # Arrow data is immutable
            self.items = own(items)
            self._each = tuple(self.items)

    def order(self) -> list[int] | None:
        """Return the original position of each item of the list, in its present order.

        None if the list no longer holds the same items.
        """
        if not isinstance(self.items, list) or _are(self.items, self._each):
            return list(range(len(self.items)))
        places = {id(item): at for at, item in enumerate(self._each)}
        found = [places.get(id(item), -1) for item in self.items]
        return found if sorted(found) == list(range(len(self._each))) else None


def _are(some: Sequence[Any], others: Sequence[Any]) -> bool:
    """True if these are the same objects in the same order."""
    return len(some) == len(others) and all(map(operator.is_, some, others))


def own(items: list[Any]) -> list[Any]:
    """Return a copy of the items: of lists, dicts, sets and records of them, at any depth.

    Other objects, such as clients or rows of a database session, are not copied.
    """
    if set(map(type, items)) == {dict} and _ATOMS.issuperset(
        map(type, chain.from_iterable(map(dict.values, items)))
    ):
        return list(map(dict.copy, items))
    known: dict[int, Any] = {}
    return [_own(item, known) for item in items]


def _own(value: Any, known: dict[int, Any]) -> Any:
    kind = type(value)
    if kind in _ATOMS:
        return value
    if id(value) in known:
        return known[id(value)]
    if kind is dict:
        found = known[id(value)] = value.copy()
        for name, each in value.items():
            if type(each) not in _ATOMS:
                found[name] = _own(each, known)
        return found
    if kind is list:
        if _ATOMS.issuperset(map(type, value)):
            return value.copy()
        found = known[id(value)] = []
        found.extend(_own(each, known) for each in value)
        return found
    if kind is tuple:
        return tuple([_own(each, known) for each in value])
    if kind is set or kind is bytearray or _is_array(value):
        return value.copy()
    if dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields"):
        return _own_record(value, known)
    return value


def _is_array(value: Any) -> bool:
    """True for a numpy array, without importing numpy."""
    return type(value).__module__ == "numpy" and hasattr(value, "strides")


def _own_record(value: Any, known: dict[int, Any]) -> Any:
    found = known[id(value)] = copy.copy(value)
    for name, each in getattr(found, "__dict__", {}).items():
        if type(each) not in _ATOMS:
            found.__dict__[name] = _own(each, known)
    return found
