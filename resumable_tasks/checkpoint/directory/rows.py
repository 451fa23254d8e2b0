"""Reads the rows that count from the shards, each verified against its commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, TypeVar

from resumable_tasks.checkpoint.directory import schemas, shards
from resumable_tasks.checkpoint.directory.pieces import Pieces
from resumable_tasks.checkpoint.directory.reader import reading, retry_if_swept
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.form import CommittedRows
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.dataset as pads

T = TypeVar("T")


@retry_if_swept
def read(store: Store, use: Callable[[CommittedRows], T]) -> T:
    """`Reader.read` of the checkpoint in this store."""
    with reading(store) as (found, state):
        schema, pieces = _schema(state), Pieces(store, found.id, state)

        def after(count: int) -> Iterator[pa.Table]:
            return pieces.after(count, schema)

        identity = {"job": found.job, "checkpoint": found.id, "records": state.records}
        return use(CommittedRows(schema, lambda: after(0), found.key, identity, pieces, after))


@retry_if_swept
def dataset(store: Store) -> pads.Dataset:
    """`Reader.dataset` of the checkpoint in this store."""
    with reading(store) as (_, state):
        return shards.dataset(store, list(state.shards.values()), _schema(state))


def _schema(state: State) -> pa.Schema:
    """The one schema of all committed rows."""
    import pyarrow as pa

    try:
        return schemas.schema_from_text(state.schema) if state.schema else pa.schema([])
    except (pa.ArrowException, ValueError, OSError) as error:
        what = f"the schema that its records name cannot be read: {error}"
        raise CheckpointDamaged(what, place=state.place) from error
