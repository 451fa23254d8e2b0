"""Notes in a checkpoint about where its rows were published: one small file per destination.

A publisher does not drive or hold the checkpoint, so it writes beside the journal, not into it, by
one replacing put. A note only says where to look: the destination may have been removed since, or
may hold other rows.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from resumable_tasks.base.frozen import frozen
from resumable_tasks.base.hashes import blake2b
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged

_NAME = r"published-[0-9a-f]{16}\.json"
_MOST_BYTES = 64 << 10


@frozen
class Note:
    """One publication of the first ``records`` records of the checkpoint with this id."""

    checkpoint: str
    dest: str
    form: str
    records: int
    rows: int
    time: str


def is_note(name: str) -> bool:
    """True for the name of a note at the top of a checkpoint."""
    return re.fullmatch(_NAME, name) is not None


def write(store: Store, note: Note) -> None:
    """Write a note, durable on return; replaces an earlier one about this destination."""
    digest = blake2b(note.dest.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    store.put(f"published-{digest}.json", json.dumps(asdict(note), indent=1).encode() + b"\n")


def read(store: Store, checkpoint: str) -> list[Note]:
    """The notes of the checkpoint with this id, the newest first.

    Skips unreadable notes; publishing again writes a new one.
    """
    names = sorted(filter(is_note, store.list("")))
    found = _parsed(disk.read_each(store, [(name, _MOST_BYTES) for name in names]))
    mine = [note for note in found if note.checkpoint == checkpoint]
    return sorted(mine, key=lambda note: note.time, reverse=True)


def _parsed(each: Iterable[bytes | FileNotFoundError | CheckpointDamaged]) -> Iterator[Note]:
    for data in each:
        try:
            if isinstance(data, bytes):
                yield _note(**json.loads(data))
        except (ValueError, TypeError, RecursionError):
            continue


def _note(
    *, checkpoint: str, dest: str, form: str, records: int, rows: int, time: str, **_: object
) -> Note:
    return Note(str(checkpoint), str(dest), str(form), int(records), int(rows), str(time))
