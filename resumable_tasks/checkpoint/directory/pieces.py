"""The rows that count, in pieces: the shards in which they were first written.

A copy that names its pieces can be extended later, because merges move rows without changing them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, overload

from resumable_tasks.checkpoint.directory import schemas, shards
from resumable_tasks.checkpoint.directory.homes import Homes
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.form import Piece
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.runners.outcome import Shard

if TYPE_CHECKING:
    import pyarrow as pa


class Pieces(Sequence[Piece]):
    """The pieces of all rows, in order. Finds them when the first one is asked for."""

    def __init__(self, store: Store, anchor: str, state: State) -> None:
        self._store = store
        self._anchor = anchor
        self._there = list(state.shards.values())
        # Without merged shards the journal need not be read again.
        self._records = state.records if state.merged else 0

    def after(self, count: int, schema: pa.Schema) -> Iterator[pa.Table]:
        """The rows without those of the first ``count`` pieces, in this schema."""
        first = skipped = 0
        if count:
            while first < len(self._there) and count >= len(self._origins[first]):
                count -= len(self._origins[first])
                first += 1
            some = self._origins[first][:count] if count else ()
            skipped = sum(origin.rows for origin in some)
        for rows in shards.read_all(self._store, self._there[first:]):
            yield schemas.cast(rows.slice(skipped), schema)
            skipped = 0

    @cached_property
    def _origins(self) -> list[list[Shard]]:
        """The origins of each shard that counts; the shard itself if they are not known."""
        homes, named = Homes(), dict[str, Shard]()
        if self._records:
            for commit in Journal(self._store, self._anchor).read_new():
                if commit.number >= self._records:
                    break
                homes.follow(commit)
                named.update((shard.path, shard) for shard in commit.shards)
        return [_known(shard, homes, named) for shard in self._there]

    @cached_property
    def _each(self) -> list[Piece]:
        origins = (origin for each in self._origins for origin in each)
        return [Piece(f"{origin.path} {origin.checksum}", origin.rows) for origin in origins]

    def __len__(self) -> int:
        return len(self._each)

    @overload
    def __getitem__(self, at: int) -> Piece: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[Piece]: ...
    def __getitem__(self, at: int | slice) -> Piece | Sequence[Piece]:
        return self._each[at]


def _known(shard: Shard, homes: Homes, named: dict[str, Shard]) -> list[Shard]:
    found = [named[path] for path in homes.origins(shard.path) if path in named]
    return found if sum(origin.rows for origin in found) == shard.rows else [shard]
