"""Where a remote worker leaves what became of a batch, until the driver commits it.

Rows go into shards, and what names them would be too much, and too much trusted, to go through an
orchestrator: a scheduler that forgets a result, or runs a task again whose worker has died, must
neither lose a batch that was paid for nor have it handled twice. So a worker puts each outcome
into the checkpoint's ``outbox`` folder, as a record like those of the journal, with its checksum.
Nothing of it counts before the driver has committed it.

``outbox/e3-open`` stands while the driver of epoch 3 wants more; workers look for it before every
batch. It goes when that driver stops, or when another takes the checkpoint over.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from resumable_tasks import keys, shards
from resumable_tasks.errors import CheckpointDamaged, StoreError
from resumable_tasks.journal import decode, encode, record_name
from resumable_tasks.model import Batch, Commit, Outcome
from resumable_tasks.store.base import Store

FOLDER = "outbox"
_OPEN = "open"


def epoch_of(path: str) -> int:
    """The epoch in the path of anything in the outbox (0 if it names none)."""
    digits = path.removeprefix(f"{FOLDER}/e").partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() else 0


@dataclass(frozen=True, slots=True)
class Outbox:
    """The outbox of one driver's tenure. Crosses to a worker as it is."""

    store: Store
    epoch: int

    def open(self) -> None:
        """Let workers begin. By the driver, before it sends the first batch."""
        self.store.prepare((FOLDER,))
        self.store.put(self._marker, b"")

    def close(self) -> None:
        """Let no worker begin another batch."""
        self.store.delete(self._marker)

    def is_open(self) -> bool:
        """Whether the driver wants more batches, as far as can be seen from here."""
        try:
            self.store.read(self._marker)
        except FileNotFoundError:
            return False
        return True

    def put(self, outcome: Outcome) -> None:
        """Leave the outcome of a batch, durable on return. Raises `StoreError`."""
        number = outcome.batch.number
        record = Commit(
            kind="commit",
            epoch=self.epoch,
            run="",
            number=number,
            keys=outcome.done,
            key_count=outcome.completed,
            shards=(outcome.shard,) if outcome.shard is not None else (),
            schema=shards.schema_to_text(outcome.schema) if outcome.schema is not None else None,
            failures=outcome.failures,
            info={"seconds": outcome.seconds, "fatal": _described(outcome.fatal)},
        )
        self.store.put(self._path(number), encode(record)[0])

    def numbers(self) -> set[int]:
        """The numbers of the batches whose outcomes are here."""
        prefix = f"{FOLDER}/e{self.epoch}-"
        names = (name.removeprefix(prefix) for name in self.store.list(FOLDER))
        return {int(name) for name in names if name.isascii() and name.isdigit()}

    def take(self, batch: Batch) -> Outcome | None:
        """The outcome of a batch; None if it is not here, or not whole, and has to be had anew."""
        try:
            data = self.store.read(self._path(batch.number))
            record = decode(data, record_name(batch.number))
        except (FileNotFoundError, CheckpointDamaged):
            return None
        fatal = record.info["fatal"]
        if not fatal and sorted(_lines(record)) != sorted(batch.lines.split(b"\n")):
            return None  # not the outcome of this batch
        return Outcome(
            batch,
            done=record.keys,
            completed=record.key_count,
            shard=record.shards[0] if record.shards else None,
            schema=shards.schema_from_text(record.schema) if record.schema else None,
            failures=record.failures,
            seconds=record.info["seconds"],
            fatal=StoreError(fatal) if fatal else None,
        )

    def remove(self, number: int) -> None:
        """Forget a batch's outcome; no error if it is not here."""
        self.store.delete(self._path(number))

    @property
    def _marker(self) -> str:
        return f"{FOLDER}/e{self.epoch}-{_OPEN}"

    def _path(self, number: int) -> str:
        return f"{FOLDER}/e{self.epoch}-{number}"


def _lines(record: Commit) -> Iterator[bytes]:
    """The keys that a record speaks of, done or failed."""
    if record.keys:
        yield from record.keys.split(b"\n")
    for failure in record.failures:
        yield keys.canonical(failure.key)


def _described(error: BaseException | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
