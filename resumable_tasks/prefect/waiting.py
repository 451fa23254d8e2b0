"""The batches that wait for a task run in another process, and the handling of lost workers.

::

    NEW ── its worker was lost ──▶ SUSPECT ── again ──▶ ALONE ── again ──▶ failed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum

from resumable_tasks.items.batch import Batch, Cause


class Kind(IntEnum):
    """The way to send a batch, by the number of workers lost while handling it."""

    NEW = 0  # together with others
    SUSPECT = 1  # in a task run of its own
    ALONE = 2  # in a task run of its own while no other is active: several may share a process


class Waiting:
    """The batches without a task run, by kind, in the order of sending."""

    def __init__(self) -> None:
        self._queues: dict[Kind, deque[Batch]] = {kind: deque() for kind in Kind}
        self._losses: dict[int, int] = {}
        self._refused = 0

    def __iter__(self) -> Iterator[Batch]:
        for queue in self._queues.values():
            yield from queue

    def count(self, kind: Kind) -> int:
        return len(self._queues[kind])

    def add(self, batch: Batch) -> Kind:
        """Add a newly submitted batch."""
        error = batch.part_of.error if batch.part_of is not None else None
        if error is None or error.cause is not Cause.WORKER_LOST:
            kind = Kind.NEW
        else:
            # This batch is known to lose workers: one more try alone is enough.
            kind = Kind.ALONE
            self._losses[batch.number] = kind
        self._queues[kind].append(batch)
        return kind

    def put_back(self, batches: list[Batch]) -> None:
        """Put batches that had not begun at the front again, each of its old kind."""
        for batch in reversed(batches):
            self._queues[Kind(self._losses.get(batch.number, 0))].appendleft(batch)

    def refuse(self, batches: list[Batch]) -> int:
        """Put a task run's batches back. Returns how many task runs in a row have not begun."""
        self.put_back(batches)
        self._refused += 1
        return self._refused

    def accept(self) -> None:
        """Note that a task run has begun."""
        self._refused = 0

    def losses_of(self, batch: Batch) -> int:
        """The number of workers lost so far while handling this batch."""
        return self._losses.get(batch.number, 0)

    def lose(self, batch: Batch) -> int | None:
        """Send a batch again whose worker was lost; returns the losses if it must fail instead."""
        losses = self._losses[batch.number] = self._losses.get(batch.number, 0) + 1
        if losses > Kind.ALONE:
            del self._losses[batch.number]
            return losses
        self._queues[Kind(losses)].append(batch)
        return None

    def next_single(self) -> Batch | None:
        """The next batch that needs a task run of its own."""
        for kind in (Kind.ALONE, Kind.SUSPECT):
            if self._queues[kind]:
                return self._queues[kind].popleft()
        return None

    def next_group(self, size: int, most_bytes: int) -> list[Batch]:
        """Take ``size`` new batches, or fewer if they are large, but at least one."""
        new = self._queues[Kind.NEW]
        found = [new.popleft()]
        room = most_bytes - len(found[0].items)
        while len(found) < size and len(new[0].items) <= room:
            found.append(new.popleft())
            room -= len(found[-1].items)
        return found

    def clear(self) -> list[Batch]:
        """Remove and return all waiting batches."""
        found = list(self)
        for queue in self._queues.values():
            queue.clear()
        return found
