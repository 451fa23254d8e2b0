"""The runs of a checkpoint and their commits over time, from the records' first and last lines.

Reads no keys: a record costs two lines of JSON, however many items it has.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from resumable_tasks.checkpoint.directory import segments
from resumable_tasks.checkpoint.directory.record import OF_WORK, is_by_hand
from resumable_tasks.checkpoint.directory.records import (
    MOST_BYTES,
    UNREADABLE,
    damaged,
    record_name,
)
from resumable_tasks.checkpoint.directory.segments import Listing
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store

_TRIES = 3
COLUMNS = ("time", "keys", "net", "failures", "bytes", "seconds", "batches", "longest", "cost")


@dataclass(slots=True)
class PastRun:
    """A run: its claim's ``info``, its commits from ``first`` to ``last``, and its end.

    ``end`` is the ``info`` of its ``close``; None if there is none, because the run was killed,
    ended by an error, or is active. The times of its claim and its last record are seconds since
    1970.
    """

    epoch: int
    run: str
    info: Mapping[str, Any]
    began: float
    until: float
    first: int
    last: int
    end: Mapping[str, Any] | None = None


@dataclass(slots=True)
class Past:
    """All runs, in order, and all commits as parallel columns, named in `COLUMNS`.

    ``net`` is the change of the number of completed keys by the commit. ``bytes`` is the size of
    its shards. ``seconds`` is the time in the handler of its ``batches`` batches, ``longest`` that
    of the longest one. ``by_hand`` has the kind and time of each redo, repair and release, and of
    each submission that was attached or withdrawn by a person.
    """

    runs: list[PastRun] = field(default_factory=list)
    commits: dict[str, array[float]] = field(
        default_factory=lambda: {name: array("d") for name in COLUMNS}
    )
    by_hand: list[tuple[str, float]] = field(default_factory=list)
    journal_bytes: int = 0
    records: int = 0
    _time: float = 0.0

    @property
    def repairs(self) -> int:
        """The number of repairs, each of which can have changed earlier records."""
        return sum(kind == "repair" for kind, _ in self.by_hand)

    def follow(self, head: Mapping[str, Any], end: Mapping[str, Any]) -> None:
        """Apply one more record, given its first and its last line."""
        self.records += 1
        # Clocks of machines differ, but no record is older than the one that it continues.
        self._time = time = max(self._time, _seconds(head["time"]))
        kind, info = head["kind"], head.get("info", {})
        by_hand = is_by_hand(kind, info)
        if by_hand:
            self.by_hand.append((kind, time))
        elif kind not in ("claim", "close", *OF_WORK):
            return
        count = len(self.commits["time"])
        if kind == "claim" or not (by_hand or self._is_of_last(head)):
            told = info if kind == "claim" else {}
            self.runs.append(
                PastRun(int(head["epoch"]), str(head["run"]), told, time, time, count, count)
            )
        if kind == "close":
            self.runs[-1].end = info
        changed = int(end["keys"]) - int(end["retracted"])
        if kind == "commit" or (changed and by_hand):
            self._commit(head, info, end, time)
        if self.runs:
            run = self.runs[-1]
            run.last = len(self.commits["time"])
            run.until = run.until if by_hand else time

    def _is_of_last(self, head: Mapping[str, Any]) -> bool:
        return bool(self.runs) and self.runs[-1].run == head["run"]

    def _commit(
        self, head: Mapping[str, Any], info: Mapping[str, Any], end: Mapping[str, Any], time: float
    ) -> None:
        keys, copied = int(end["keys"]), int(info.get("copied", 0))
        told = {
            "time": time,
            "keys": keys - copied if head["kind"] == "commit" else 0,
            "net": keys - int(end["retracted"]),
            "failures": int(end["failures"]),
            "bytes": sum(int(shard["bytes"]) for shard in head.get("shards", ())),
            **{name: info.get(name) or 0.0 for name in ("seconds", "batches", "longest", "cost")},
        }
        for name, column in self.commits.items():
            column.append(float(told[name]))


def read(store: Store, found: Past) -> None:
    """Add all records to ``found`` that it does not yet contain.

    Raises `CheckpointDamaged` with the unreadable file, after it has added the records before that.
    """
    for _ in range(_TRIES):
        there = segments.listed(store, found.records)
        try:
            for name, record in _records(store, there, found):
                try:
                    found.follow(*_first_and_last(record))
                except UNREADABLE as error:
                    raise damaged(name, f"it cannot be read: {error!r}", store.url) from error
            return
        except FileNotFoundError:
            continue  # folded into a segment since it was listed
    raise damaged(record_name(found.records), "it is missing", store.url)


def _records(store: Store, there: Listing, into: Past) -> Iterator[tuple[str, bytes]]:
    """Yield the bytes of these records, each with the name of its file."""
    files = there.files(there.numbers)
    names = [segment.name if segment else record_name(at[0]) for segment, at in files]
    each = disk.read_all(store, ((name, MOST_BYTES) for name in names))
    for (segment, wanted), name, data in zip(files, names, each, strict=True):
        into.journal_bytes += len(data)
        pieces = segments.unpacked(data, segment, store.url) if segment else [data]
        first = segment.first if segment else wanted[0]
        yield from ((name, pieces[number - first]) for number in wanted)


def _first_and_last(record: bytes) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    end = json.loads(record[record.rindex(b"\n", 0, -1) + 1 :])
    return json.loads(record[: record.index(b"\n")]), end


def _seconds(time: str) -> float:
    """A record's time as seconds since 1970; 0 if malformed, since times decide nothing."""
    try:
        return datetime.fromisoformat(time).timestamp()
    except (ValueError, TypeError, OverflowError):
        return 0.0
