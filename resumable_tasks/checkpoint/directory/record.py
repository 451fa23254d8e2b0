"""One record of the journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from resumable_tasks.base.frozen import frozen
from resumable_tasks.items import keys as key_lines
from resumable_tasks.runners.outcome import Failure, Shard

OF_SUBMISSIONS = ("submitting", "prepared", "submitted", "withdrawn")
"""Kinds of records that say what becomes of submitted work."""
OF_WORK = ("commit", *OF_SUBMISSIONS)
"""Kinds of records that a run at work appends, between its claim and its end."""
BY_HAND = {"submitted": "attached", "withdrawn": "withdrawn"}
"""What a record of submitted work has as ``by`` if a person has decided it, by its kind."""


def is_by_hand(kind: str, info: Mapping[str, Any]) -> bool:
    """True for what a person has done between two runs."""
    if kind in BY_HAND:
        return info.get("by") == BY_HAND[kind]
    return kind in ("release", "redo", "repair")


@frozen
class ShardKeys:
    """The keys of one record that have their rows in one shard.

    ``shard`` is None for keys without rows, ``number`` that of the record. ``fingerprints`` are
    parallel to ``lines``, empty where a key has none.
    """

    shard: Shard | None
    number: int
    lines: Sequence[bytes]
    fingerprints: Sequence[bytes]


@frozen
class Commit:
    """One record of the journal: what a driver has added to the checkpoint in one step.

    ``kind``: ``claim`` (a driver begins its run), ``commit`` (keys and failures), ``close``
    (a run has ended), ``repair`` (keys whose shards are damaged are missing again), ``lost``
    (stands where a damaged record stood), ``release`` (failures whose attempts are forgotten),
    ``redo`` (keys that a person wants to be missing again), ``merge`` (the rows of many shards are
    in one: no keys, which stay what they were), and those of submitted work: ``submitting`` (the
    keys that are to be handed to a service), ``prepared``, ``submitted`` (it has them),
    ``withdrawn`` (it has not, and will not). ``snapshot``
    is of no record, but of the state by those so far: see `snapshots`.
    ``number``, ``previous`` and ``checksum`` are set by the journal when it is appended.
    ``schema`` is the unified schema of the results from here on, where it has changed. ``info``
    holds what belongs to the kind alone.

    What is ``retracted`` is so before ``keys`` are completed: a commit that handles items again
    takes back all keys of the shards that hold their old rows, and completes them all again.
    ``fingerprints`` are newline-joined and parallel to ``keys``, empty where a key has none;
    ``adopted`` are keys that were completed without one, and have one from here on; ``out`` those
    that are handed to a service.
    """

    kind: Literal[
        "claim",
        "commit",
        "close",
        "repair",
        "lost",
        "release",
        "archive",
        "redo",
        "merge",
        "submitting",
        "prepared",
        "submitted",
        "withdrawn",
        "snapshot",
    ]
    epoch: int
    run: str
    number: int = -1
    time: str = ""
    nonce: str = ""
    previous: str = ""
    checksum: str = ""
    keys: bytes = b""
    key_count: int = 0
    shards: tuple[Shard, ...] = ()
    schema: str | None = None
    failures: tuple[Failure, ...] = ()
    retracted: bytes = b""
    fingerprints: bytes = b""
    adopted: bytes = b""
    adopted_fingerprints: bytes = b""
    out: bytes = b""
    out_fingerprints: bytes = b""
    info: Mapping[str, Any] = field(default_factory=dict)

    def merges(self) -> Iterator[tuple[Shard, Sequence[str]]]:
        """The merged shards, each with the paths of those in whose place it comes."""
        if self.kind != "merge":
            return
        paths, at = self.info["retracted_shards"], 0
        for shard, parts in zip(self.shards, self.info["merged"], strict=True):
            yield shard, paths[at : at + parts]
            at += parts

    def sections(self) -> Iterator[ShardKeys]:
        """The keys by shard, in the order of the shards; last, those that have no rows.

        The shards are those that were written with the record: `homes.Homes` tells where a merge
        has brought their rows since.
        """
        if self.kind == "merge":
            return
        lines = list(key_lines.split(self.keys))
        texts = self.fingerprints.split(b"\n") if self.fingerprints else [b""] * len(lines)
        at = 0
        for shard in self.shards:
            to = at + shard.keys
            yield ShardKeys(shard, self.number, lines[at:to], texts[at:to])
            at = to
        yield ShardKeys(None, self.number, lines[at:], texts[at:])
