"""Checks a run's first items, before any is handled, against the completed ones."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from resumable_tasks.errors import CheckpointMismatch, InvalidItems, InvalidKey
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.keytable import KeyTable

# The most items that are checked while none is known.
_ENOUGH = 10_000
_INTEGER = r"0|-?[1-9][0-9]{0,19}"


class Look:
    """A check of the keys of a run's first items: of a sample, if possible, and then in order.

    ``sample``: the size of the sample. `look` is called until it returns True; an error that it
    raises ends the run.
    """

    sample = 100

    def look(self, lines: Sequence[bytes]) -> bool:
        """Check the canonical keys of some items; return True once no more are needed."""
        raise NotImplementedError


class Known(Protocol):
    """Keys of earlier runs."""

    def has_any(self, lines: Sequence[bytes]) -> bool: ...

    def __contains__(self, line: bytes) -> bool: ...


class OfAnotherType(Look):
    """Refuses keys that were integers and are text now, or the other way round.

    ``how``: how the message describes the known keys.
    """

    def __init__(self, known: Known, how: str = "completed") -> None:
        self._known, self._how = known, how
        self._seen = 0

    def look(self, lines: Sequence[bytes]) -> bool:
        """Raise `InvalidItems` if no key is known as it is, but one is known in the other type."""
        if self._known.has_any(lines):
            return True
        pairs = [(line, other) for line in lines for other in retyped(line) if other in self._known]
        if pairs:
            now, before = map(keys.parse, pairs[0])
            raise InvalidItems(
                "the keys of the items have changed their type: an item now has key "
                f"{keys.shown(now)}, but {keys.shown(before)} is {self._how} ({len(pairs):,} of "
                f"the first {len(lines):,} items). These count as different items, and all would "
                "be handled again",
                safe="Nothing was handled",
                remedy="Convert the keys back with int() or str() of the field; or, if these are "
                "other items, name another checkpoint=",
            )
        self._seen += len(lines)
        return self._seen >= _ENOUGH


class OfTheColumn(Look):
    """Refuses keys whose type does not fit the result column that holds the earlier keys."""

    def __init__(
        self, done: KeyTable, scheme: KeyScheme, kinds: Callable[[], Mapping[str, type]]
    ) -> None:
        """``kinds``: returns the types of the text and integer result columns; called if needed."""
        self._done = done
        self._scheme = scheme
        self._kinds = kinds

    def look(self, lines: Sequence[bytes]) -> bool:
        """Raise `InvalidItems` if none of these keys is completed and none fits its column."""
        if self._done.has_any(lines):
            return True
        kinds = self._kinds()
        each = [self._scheme.values(keys.parse(line)) for line in lines]
        for at, name in enumerate(self._scheme.columns):
            kind = kinds.get(name)
            if kind is not None and not any(isinstance(values[at], kind) for values in each):
                raise InvalidItems(
                    "the keys of the items have changed their type: an item now has "
                    f"{keys.shown(each[0][at])}, but column {name!r} of the results holds "
                    f"{'text' if kind is str else 'integers'}, so no row could be stored",
                    safe="Nothing was handled",
                    remedy="Give the keys their earlier type (`resumable keys` lists them); or, if "
                    "these are other items, name another checkpoint=",
                )
        return True


class OfTheSameKey(Look):
    """Refuses a key function that claims to be the same but returns no completed key."""

    sample = _ENOUGH

    def __init__(self, done: KeyTable, place: str) -> None:
        self._done = done
        self._place = place

    def look(self, lines: Sequence[bytes]) -> bool:
        """Raise `CheckpointMismatch` if none of these keys is completed."""
        if not self._done.has_any(lines):
            raise CheckpointMismatch(
                f"same_key=True, but none of the {len(lines):,} items checked has a key that is "
                f"completed in {self._place} (the first has {keys.shown(keys.parse(lines[0]))})",
                safe="Nothing was handled",
                remedy="Let key= return the same keys as before (`resumable keys` prints them), or "
                "name another checkpoint=",
            )
        return True


def retyped(line: bytes) -> set[bytes]:
    """Return the keys equal to this one with its integers as text, or its text as integers."""
    key = keys.parse(line)
    parts = key if isinstance(key, tuple) else (key,)
    as_text = tuple(map(str, parts))
    as_integers = tuple(
        int(part) if isinstance(part, str) and re.fullmatch(_INTEGER, part) else part
        for part in parts
    )
    found = set()
    for other in (as_text, as_integers):
        if other != parts:
            found.add(keys.join([_canonical(other if isinstance(key, tuple) else other[0])]))
    return found - {b""}


def _canonical(key: Any) -> bytes:
    try:
        return keys.canonical(key)
    except InvalidKey:  # an integer that is too wide
        return b""


def sample_of(items: Any, most: int) -> Any:
    """Return up to ``most`` evenly spaced items of a list or table; None for other items."""
    if isinstance(items, (list, tuple)):
        return list(items[:: -(-len(items) // most)]) if items else None
    if hasattr(items, "take") and hasattr(items, "num_rows") and items.num_rows:
        import pyarrow as pa

        # Slices, because Arrow cannot take rows from views or from columns of more than 2 GiB.
        table = items if isinstance(items, pa.Table) else pa.Table.from_batches([items])
        places = range(0, items.num_rows, -(-items.num_rows // most))
        return pa.concat_tables([table.slice(at, 1) for at in places])
    return None
