"""One record of the journal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import field
from typing import Any, Literal

from resumable_tasks.base.frozen import frozen
from resumable_tasks.items import keys as key_lines
from resumable_tasks.runners.outcome import Failure, Shard

OF_SUBMISSIONS = ("submitting", "prepared", "submitted", "withdrawn")
"""The kinds of records about submitted work."""
OF_WORK = ("commit", *OF_SUBMISSIONS)
"""The kinds of records that a run appends between its claim and its end, except merges."""
BY_HAND = {"submitted": "attached", "withdrawn": "withdrawn"}
"""The value of ``by`` in records of submitted work that a person decided, by kind."""


def is_by_hand(kind: str, info: Mapping[str, Any]) -> bool:
    """True if a person wrote this record, between two runs."""
    if kind in BY_HAND:
        return info.get("by") == BY_HAND[kind]
    return kind in ("release", "redo", "repair")


@frozen
class ShardKeys:
    """The keys of one record whose rows are in one shard.

    ``shard`` is None for keys without rows. ``number`` is the record's number. ``fingerprints`` are
    parallel to ``lines``, empty where a key has none.
    """

    shard: Shard | None
    number: int
    lines: Sequence[bytes]
    fingerprints: Sequence[bytes]


@frozen
class Commit:
    """One record of the journal: a change of the checkpoint in one step.

    ``kind``:

    * ``claim``: a driver begins its run;
    * ``commit``: completed keys, and failures;
    * ``close``: a run has ended;
    * ``repair``: keys whose shards are damaged are missing again;
    * ``lost``: replaces a damaged record;
    * ``release``: the attempts of these failures are reset;
    * ``redo``: keys that a person wants done again are missing again;
    * ``merge``: the rows of many shards are now in one; completed keys stay completed;
    * submitted work: ``submitting`` (these keys are about to be submitted), ``prepared``,
      ``submitted`` (the service has them), ``withdrawn`` (it has not and will not get them);
    * ``snapshot``: no record of the journal, but the state after the records so far (`snapshots`).
    The journal sets ``number``, ``previous`` and ``checksum`` when it appends the record.
    ``schema`` is the new unified schema of the results, if it has changed. ``info`` holds the
    fields of one kind only.

    ``retracted`` applies before ``keys``: a commit that handles items again retracts all keys of
    the shards that hold their old rows, and completes them all again. ``fingerprints`` are
    newline-joined and parallel to ``keys``, empty where a key has none. ``adopted`` are keys that
    were completed without a fingerprint and have one from now on; ``out`` are the keys that are
    submitted to a service.
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
        """The merged shards, each with the paths of the shards that it replaces."""
        if self.kind != "merge":
            return
        paths, at = self.info["retracted_shards"], 0
        for shard, parts in zip(self.shards, self.info["merged"], strict=True):
            yield shard, paths[at : at + parts]
            at += parts

    def sections(self) -> Iterator[ShardKeys]:
        """The keys by shard, in the order of the shards; keys without rows come last.

        These are the shards of the time of the record. `homes.Homes` knows into which shards merges
        have moved the rows since.
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
