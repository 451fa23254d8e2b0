"""The batches that wait for a task run in another process, and what the loss of a worker means.

::

    NEW ── its worker was lost ──▶ SUSPECT ── again ──▶ ALONE ── again ──▶ failed
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from enum import IntEnum

from resumable_tasks.items.batch import Batch, Cause


class Kind(IntEnum):
    """The way to send a batch, by how many workers were lost while handling it."""

    NEW = 0  # together with others
    SUSPECT = 1  # in a task run of its own
    ALONE = 2  # in a task run of its own while no other goes on: several may share a process


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
        """Take in a batch that has just been submitted."""
        error = batch.part_of.error if batch.part_of is not None else None
        if error is None or error.cause is not Cause.WORKER_LOST:
            kind = Kind.NEW
        else:
            # It is known to be this batch: alone, once more is enough.
            kind = Kind.ALONE
            self._losses[batch.number] = kind
        self._queues[kind].append(batch)
        return kind

    def put_back(self, batches: list[Batch]) -> None:
        """Have these sent next, as they were to be sent: they had not begun."""
        for batch in reversed(batches):
            self._queues[Kind(self._losses.get(batch.number, 0))].appendleft(batch)

    def refuse(self, batches: list[Batch]) -> int:
        """Put a task run's batches back; how many task runs in a row have not begun."""
        self.put_back(batches)
        self._refused += 1
        return self._refused

    def accept(self) -> None:
        """Note that a task run has begun."""
        self._refused = 0

    def losses_of(self, batch: Batch) -> int:
        """The number of workers that were lost while handling this batch, up to now."""
        return self._losses.get(batch.number, 0)

    def lose(self, batch: Batch) -> int | None:
        """Have a batch sent again whose worker was lost; how many were lost, if that is enough."""
        losses = self._losses[batch.number] = self._losses.get(batch.number, 0) + 1
        if losses > Kind.ALONE:
            del self._losses[batch.number]
            return losses
        self._queues[Kind(losses)].append(batch)
        return None

    def next_single(self) -> Batch | None:
        """The next batch that is to have a task run of its own."""
        for kind in (Kind.ALONE, Kind.SUSPECT):
            if self._queues[kind]:
                return self._queues[kind].popleft()
        return None

    def next_group(self, size: int, most_bytes: int) -> list[Batch]:
        """Take ``size`` of the new batches, or fewer if they are large; always at least one."""
        new = self._queues[Kind.NEW]
        found = [new.popleft()]
        room = most_bytes - len(found[0].items)
        while len(found) < size and len(new[0].items) <= room:
            found.append(new.popleft())
            room -= len(found[-1].items)
        return found

    def clear(self) -> list[Batch]:
        """All of them, which wait no longer."""
        found = list(self)
        for queue in self._queues.values():
            queue.clear()
        return found
