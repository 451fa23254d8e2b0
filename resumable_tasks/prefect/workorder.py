"""The message to a worker. It loads even without this library installed, and then reports that.

Dask (2026.8) ends a worker that cannot load its input, and the run would wait forever for others.
So this module refers to nothing else of ours, and is pickled by its code, not by its name.
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
    """The input of a task run: bytes, opaque to Prefect, dropped once they are not needed.

    Each of ``batches`` has its number, its keys, their lines, the pickled items, the pickled batch
    that it is part of with its weights, and the headers of its span.
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
        """Drop the bytes. Prefect keeps a task run's arguments until all its events are sent."""
        self.work, self.batches = b"", []

    def __dask_tokenize__(self) -> object:
        # Otherwise Dask would hash all the bytes to recognise the argument.
        return self.name


def handle(order: WorkOrder) -> State[None]:
    """The task's function."""
    worker = import_module("resumable_tasks.prefect.worker")
    state: State[None] = worker.handle_group(order)
    return state


def no_flow() -> None:
    """A placeholder for the flow's function, which no worker calls."""
