"""Separates rows that do not belong to exactly one item; the others are kept without a new call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.frozen import frozen
from resumable_tasks.errors import BadResult, InvalidKey
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.keys import Key
from resumable_tasks.items.sameness import retyped
from resumable_tasks.runners.outcome import Parked, ResultsMode

Row = dict[str, Any]


@frozen
class Strays:
    """The rows of a batch, separated.

    ``kept``: the positions of rows that belong to one item. ``parked``: items with two rows.
    ``failed``: items with an `ItemFailure` and a row. ``note``: describes a row whose key is not in
    the batch, for the messages about items without a row.
    """

    kept: list[int]
    parked: list[Parked]
    failed: dict[bytes, BadResult]
    note: str = ""


def strays(
    found: Sequence[Key],
    failed: Mapping[bytes, Any],
    batch: Batch,
    results: ResultsMode,
    rows: Callable[[], Sequence[Row]],
    strict: bool = False,
) -> Strays | None:
    """Separate rows with these keys; return None if each belongs to one item.

    An item with two rows where one is allowed is parked with them. An item with a row and an
    `ItemFailure` has failed. With ``results="one"``, a row whose key is not in the batch is left
    out, with a warning: the item it was meant for has no row, and so fails. Raises `BadResult` for
    such a row if items may have any number of rows, if no row has a key of the batch, or if
    ``strict``.
    """
    lines = dict(zip(keys.split(batch.lines), batch.keys, strict=True))
    of_rows = [_line_of(key) for key in found]
    places: dict[bytes, list[int]] = {}
    for at, line in enumerate(of_rows):
        places.setdefault(line, []).append(at)
    foreign = [at for at, line in enumerate(of_rows) if line not in lines]
    contradicted = {
        line: BadResult(
            f"the handler returned a row and an ItemFailure for key {keys.shown(lines[line])}"
        )
        for line in places.keys() & failed.keys()
    }
    twice = {
        line: each
        for line, each in places.items()
        if results == "one" and len(each) > 1 and line in lines and line not in failed
    }
    if not (foreign or contradicted or twice):
        return None
    note = ""
    if foreign:
        note = (
            f"row {foreign[0]} of the handler's result has key "
            f"{keys.shown(found[foreign[0]])}, which is not in its batch"
            f"{_of_another_type(of_rows[foreign[0]], lines)}"
        )
        if strict or results == "many" or not places.keys() & lines.keys():
            error = BadResult(note)
            # If no row has a key of its batch, the same will be true for other batches.
            error.of_shape = not places.keys() & lines.keys()
            raise error
        more = f" (and {len(foreign) - 1:,} more)" if len(foreign) > 1 else ""
        log.warning("batch %d: %s%s: ignored", batch.number, note, more)
    if strict and contradicted:
        raise next(iter(contradicted.values()))
    each_row = rows() if twice else ()
    parked: list[Parked] = [
        (lines[line], [each_row[at] for at in each], _same_key(lines[line], each))
        for line, each in twice.items()
    ]
    apart = {*contradicted, *twice}
    kept = [at for at, line in enumerate(of_rows) if line in lines and line not in apart]
    return Strays(kept, parked, contradicted, note)


def _of_another_type(line: bytes, lines: Mapping[bytes, Key]) -> str:
    """Return a hint if the key matches an item's in another type: services make numbers text."""
    others = retyped(line) if line else ()
    meant = next((lines[other] for other in others if other in lines), None)
    if meant is None:
        return ""
    return f" (an item has the key {keys.shown(meant)}: return the key in that type)"


def _same_key(key: Key, rows: Sequence[int]) -> BadResult:
    return BadResult(
        f"rows {rows[0]} and {rows[1]} of the handler's result have the same key "
        f'{keys.shown(key)}; set results="many" if an item may have many rows'
    )


def _line_of(key: Any) -> bytes:
    """Return the canonical form of a row's key; b"", which matches no item, if it is no key."""
    try:
        return keys.canonical(key)
    except InvalidKey:
        return b""
