"""Recovers merges whose records are lost, by comparing the merged shards' rows with their parts.

Without the record the parts count again, but their files have been deleted. If the rows of a shard
that no record names are exactly those of several such parts, in order, it holds what they held: a
new merge is recorded for it, and none of their items is handled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from itertools import groupby

from resumable_tasks.base.hashes import blake2b
from resumable_tasks.checkpoint.directory import shards
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.replace import shard_of_each
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, InvalidKey
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.outcome import Shard

Merge = tuple[Shard, Sequence[Shard]]


def found_again(
    store: Store, found: Manifest, commits: Sequence[Commit], bad: Set[str]
) -> list[Merge]:
    """The merged shards that exist, each with its parts, of which some are ``bad``.

    ``commits``: the records that stand, including the substitutes of lost records.
    """
    state = State(place=store.url)
    for commit in commits:
        state.follow_rows(commit)
    lost = any(commit.kind == "lost" for commit in commits)
    if not lost or bad.isdisjoint(state.shards):
        return []
    named = {shard.path for commit in commits for shard in commit.shards}
    unnamed = [path for path in store.list(shards.FOLDER) if path not in named]
    if not unnamed:
        return []
    places, scheme = shard_of_each(commits), KeyScheme.of(found.named(state.names).key)
    merges: list[Merge] = []
    for path in sorted(unnamed, key=shards.epoch_of, reverse=True):
        left = {path: shard for path, shard in state.shards.items() if path not in _parts(merges)}
        parts = _parts_of(store, path, places, scheme, left)
        if len(parts) > 1 and not bad.isdisjoint(part.path for part in parts):
            merges.append((_described(store, path, parts), parts))
    return merges


def _parts(merges: Sequence[Merge]) -> set[str]:
    return {part.path for _, parts in merges for part in parts}


def _parts_of(
    store: Store,
    path: str,
    places: Mapping[bytes, str],
    scheme: KeyScheme,
    there: Mapping[str, Shard],
) -> list[Shard]:
    """The shards whose complete rows make up this one; empty if it holds any other row."""
    try:
        lines = scheme.lines_of(shards.read_unnamed(store, path), places)
    except (CheckpointDamaged, FileNotFoundError, InvalidKey, KeyError):
        return []
    found = [(home, len(list(each))) for home, each in groupby(places.get(x, "") for x in lines)]
    homes = dict(found)
    whole = len(homes) == len(found) and all(
        home in there and there[home].rows == rows for home, rows in found
    )
    in_order = [home for home in there if home in homes] == list(homes)
    return [there[home] for home in homes] if whole and in_order else []


def _described(store: Store, path: str, parts: Sequence[Shard]) -> Shard:
    data = store.read(path)
    checksum = blake2b(data, digest_size=16).hexdigest()
    rows, count = sum(part.rows for part in parts), sum(part.keys for part in parts)
    return Shard(path, rows, len(data), checksum, count)
