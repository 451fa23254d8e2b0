"""One record of the journal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from resumable_tasks.runners.outcome import Failure, Shard


@dataclass(frozen=True, slots=True)
class Commit:
    """One record of the journal: what a driver has added to the checkpoint in one step.

    ``kind``: ``claim`` (a driver begins its tenure), ``commit`` (keys and failures), ``close``
    (a run has ended), ``repair`` (keys whose shards are damaged are missing again), ``lost``
    (stands where a damaged record stood), ``release`` (failures whose attempts are forgotten).
    ``number``, ``previous`` and ``checksum`` are set by the journal when it is appended.
    ``schema`` is the unified schema of the results from here on, where it has changed. ``info``
    holds what belongs to the kind alone.

    What is ``retracted`` is so before ``keys`` are completed: a commit that does items anew takes
    back all keys of the shards that hold their old rows, and completes them all again.
    ``fingerprints`` are newline-joined and parallel to ``keys``, empty where a key has none;
    ``adopted`` are keys that were completed without one, and have one from here on.
    """

    kind: Literal["claim", "commit", "close", "repair", "lost", "release"]
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
    info: Mapping[str, Any] = field(default_factory=dict)
