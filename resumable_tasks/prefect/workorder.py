"""The message to a worker: without this library installed it still loads, and says so.

Dask (2026.8) ends a worker that cannot load what it is sent, and the run would wait for others for
ever. So this refers to nothing else of ours, and crosses by its code and not by its name.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

import cloudpickle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prefect.client.schemas.objects import State

    from resumable_tasks.items.keys import Key

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class WorkOrder:
    """The input of a task run: bytes, opaque to Prefect, and dropped once they are not needed.

    ``batches``: number, keys, their lines, pickled items; pickled too, what they are part of and
    their weights; the headers of its span.
    """

    def __init__(
        self,
        name: tuple[str, int],
        outbox: bytes,
        work: bytes,
        batches: list[tuple[int, list[Key], bytes, bytes, bytes, Mapping[str, str] | None]],
    ) -> None:
        self.name = name
        self.outbox = outbox
        self.work = work
        self.batches = batches

    def empty(self) -> None:
        """Let go of the bytes: Prefect keeps what a task run was given until it has told of it."""
        self.work, self.batches = b"", []

    def __dask_tokenize__(self) -> object:
        # Dask would read all of it to find out whether it has seen it before.
        return self.name


def handle(order: WorkOrder) -> State[None]:
    """The function that is the task."""
    worker = import_module("resumable_tasks.prefect.worker")
    state: State[None] = worker.handle_group(order)
    return state


def no_flow() -> None:
    """Stands for the flow's function, which no worker calls."""
