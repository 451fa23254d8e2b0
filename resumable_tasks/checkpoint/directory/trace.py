"""The trace of one key in the journal, and its rows now.

Searches the bytes of the journal's files for the key, and decodes only the records that name it. So
a key among millions is found without a Python object for each of the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from resumable_tasks.checkpoint.directory import schemas, segments, shards
from resumable_tasks.checkpoint.directory.completed import copied
from resumable_tasks.checkpoint.directory.homes import Homes
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import (
    FOLDER,
    MOST_BYTES,
    damaged,
    decode,
    record_name,
)
from resumable_tasks.checkpoint.directory.segments import Listing
from resumable_tasks.checkpoint.directory.state import Line, State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.items import keys
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.outcome import Failure, Shard

if TYPE_CHECKING:
    import pyarrow as pa

What = Literal[
    "completed", "failed", "parked", "released", "taken back", "lost", "out", "withdrawn"
]
# First bytes of the records that are decoded even if they do not name the key.
_FIRST = (b'{"kind":"claim"', b'{"kind":"merge"', b'{"kind":"withdrawn"')
_TRIES = 5
_TAKEN_BACK: dict[str, What] = {"redo": "taken back", "repair": "lost", "lost": "lost"}


@dataclass(frozen=True, slots=True)
class Event:
    """One event of an item, from one record.

    ``run`` counts the runs from 1; None for an event between two runs. ``cost`` is that of the
    whole commit of ``items`` items, None if unknown.
    """

    what: What
    time: str
    commit: int
    by: str
    run: int | None
    items: int
    cost: float | None
    failure: Failure | None = None


@dataclass(frozen=True, slots=True)
class Trace:
    """All events of one item, in order, and the shard that has its rows now."""

    events: Sequence[Event]
    shard: Shard | None


def trace(store: Store, state: State, line: Line) -> Trace:
    """The trace of this canonical key, up to the last record of this state.

    Raises `CheckpointDamaged`.
    """
    homes, runs, shard, out = Homes(), dict[str, int](), None, set[str]()
    events: list[Event] = []
    for commit in _naming(store, line, state.records):
        homes.follow(commit)
        if commit.kind == "claim":
            runs[commit.run] = len(runs) + 1
        for what, failure in (*_what(commit, line), *_of_a_service(commit, line, out)):
            if failure is None or failure not in [event.failure for event in events]:
                events.append(_event(what, commit, runs.get(commit.run), failure))
        for section in commit.sections():
            if line in section.lines:
                shard = section.shard
    if shard is None or not state.done.has_any([line]):
        return Trace(events, None)
    return Trace(events, state.shards.get(homes.of(shard.path)))


def _event(what: What, commit: Commit, run: int | None, failure: Failure | None) -> Event:
    items = commit.key_count - commit.info.get("copied", 0) + len(commit.failures)
    items += commit.out.count(b"\n") + 1 if commit.out else 0
    cost = commit.info.get("cost")
    return Event(what, commit.time, commit.number, commit.run, run, items, cost, failure)


def _what(commit: Commit, line: Line) -> Iterator[tuple[What, Failure | None]]:
    """Yield the events of the key in a record, except that its rows were moved."""
    again = line in copied(commit)
    if line in keys.split(commit.retracted) and not again:
        yield from [(_TAKEN_BACK[commit.kind], None)] if commit.kind in _TAKEN_BACK else []
    if line in keys.split(commit.keys) and not again:
        yield "completed", None
    for failure in commit.failures:
        if keys.canonical(failure.key) == line:
            released = commit.kind in ("release", "redo")
            yield "released" if released else "parked" if failure.parked else "failed", failure


def _of_a_service(
    commit: Commit, line: Line, out: set[str]
) -> Iterator[tuple[What, Failure | None]]:
    """Yield the events of the key with a service. ``out`` are the submissions that had it."""
    if line in keys.split(commit.out):
        out.add(commit.info["token"])
        yield "out", None
    elif commit.kind == "withdrawn" and commit.info["token"] in out:
        yield "withdrawn", None


def _naming(store: Store, line: Line, records: int) -> list[Commit]:
    """The records that name a key, and all claims, merges and withdrawals of submissions.

    Reads the first ``records`` records. Raises `CheckpointDamaged`.
    """
    starts = (b'\n{"key":', b'\n{"failed":', b'\n{"retracted":', b'\n{"out":')
    needles = [start + line + end for start in starts for end in (b"}", b",")]
    for _ in range(_TRIES):
        there = segments.listed(store).since(0, records - 1)
        try:
            found = [
                decode(piece, record_name(number), store.url)
                for number, piece in _pieces(store, there)
                if piece.startswith(_FIRST) or any(each in piece for each in needles)
            ]
        except FileNotFoundError:
            continue  # a record has just moved into a segment
        # A record read from its own file may be void if a segment has its number by now.
        now = segments.listed(store)
        if all(now.segment_with(c.number) == there.segment_with(c.number) for c in found):
            return found
    raise damaged(FOLDER, "its files changed while being read", store.url)


def _pieces(store: Store, there: Listing) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the bytes of all records."""
    files = there.files(there.numbers)
    names = (segment.name if segment else record_name(at[0]) for segment, at in files)
    each = disk.read_all(store, ((name, MOST_BYTES) for name in names))
    for (segment, wanted), data in zip(files, each, strict=True):
        if segment is None:
            yield wanted[0], data
            continue
        pieces = segments.unpacked(data, segment, store.url)
        yield from ((number, pieces[number - segment.first]) for number in wanted)


def rows_of(store: Store, state: State, shard: Shard, described: Any, line: Line) -> pa.Table:
    """The rows of this canonical key in a shard. ``described`` is the key's scheme.

    Raises `CheckpointDamaged`.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = shards.read(store, shard)
    if state.schema:
        rows = schemas.cast(rows, schemas.schema_from_text(state.schema))
    scheme, key = KeyScheme.of(described), keys.parse(line)
    try:
        mask = None
        for name, value in zip(scheme.columns, scheme.values(key), strict=True):
            here = pc.equal(rows.column(name), pa.scalar(value))
            mask = here if mask is None else pc.and_(mask, here)
        return rows.filter(mask)
    except (pa.ArrowException, TypeError, ValueError, KeyError):
        # Only Python can compare the values of some columns, such as JSON.
        found = scheme.lines_of(rows, state.done)
        return rows.take([at for at, each in enumerate(found) if each == line])
