"""Notes in a checkpoint of where its rows were published: one small file a destination.

A publisher is no driver and holds nothing, so it writes beside the journal, not into it, by one
replacing put. A note says only where to look. Whether the rows are there is for the destination to
say, which may have been removed since, or have got other rows.
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
    """A publishing of the first ``records`` records of a checkpoint with this id, at ``time``."""

    checkpoint: str
    dest: str
    form: str
    records: int
    rows: int
    time: str


def is_note(name: str) -> bool:
    """True for a name, at the top of a checkpoint, of a note."""
    return re.fullmatch(_NAME, name) is not None


def write(store: Store, note: Note) -> None:
    """Put a note in the place of an earlier one of this destination, durable on return."""
    digest = blake2b(note.dest.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()
    store.put(f"published-{digest}.json", json.dumps(asdict(note), indent=1).encode() + b"\n")


def read(store: Store, checkpoint: str) -> list[Note]:
    """The notes of the checkpoint with this id, the newest first.

    What cannot be read is no note: publishing again writes another.
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
