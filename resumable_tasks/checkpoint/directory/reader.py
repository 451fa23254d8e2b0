"""Reading a checkpoint's rows while runs are at work on it."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from resumable_tasks.checkpoint.directory.driver import read_checkpoint
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import CheckpointDamaged

P = ParamSpec("P")
R = TypeVar("R")


class _Swept(Exception):
    """Rows that were to be read have been done anew since, and swept."""


@contextlib.contextmanager
def reading(checkpoint: str) -> Iterator[tuple[Store, Manifest, State]]:
    """A checkpoint's store, manifest and state, for reading its rows.

    Damage that is met gets the command that mends it. For functions that are `anew_if_swept`.
    """
    store = open_store(checkpoint)
    found, state = read_checkpoint(store)
    try:
        yield store, found, state
    except CheckpointDamaged as error:
        if error.files and not set(error.files) & read_checkpoint(store)[1].shards.keys():
            raise _Swept from error
        raise CheckpointDamaged(
            f"the checkpoint {store.url} is damaged: {error}. `resumable repair {store.url}` moves "
            "it aside; the next run then redoes only those items",
            files=error.files,
        ) from error


def anew_if_swept(function: Callable[P, R]) -> Callable[P, R]:
    """The function, from the beginning again if what it reads was superseded and swept meanwhile.

    Two runs have then begun since: the one that superseded it, and the one that swept.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        while True:
            with contextlib.suppress(_Swept):
                return function(*args, **kwargs)

    return call
