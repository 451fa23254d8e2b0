"""What a journal says, folded into what a driver or a reader needs to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from resumable_tasks import fingerprints, keys
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.journal import record_name
from resumable_tasks.keytable import KeyTable
from resumable_tasks.model import Commit, Failure, Shard


@dataclass(slots=True)
class State:
    """The fold of a checkpoint's records.

    ``done`` are the completed keys, ``failures`` the items whose last attempt failed, by
    canonical key, ``shards`` the shards that count, by path. ``done`` has for each key the
    fingerprint with which it was completed, -1 if there is none that can be compared: only those
    of the last scheme, ``fingerprint``, can.
    """

    done: KeyTable = field(default_factory=KeyTable)
    failures: dict[bytes, Failure] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    schema: str | None = None
    epoch: int = 0
    version: str | None = None
    fingerprint: Any = None
    records: int = 0
    runs: int = 0
    # A commit has superseded what no record names: one that was lost. See `supersede.stale`.
    torn: bool = False
    last: Commit | None = None

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards.values())

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards.values())

    @property
    def closed(self) -> bool:
        """Whether the last run ended by itself, however it ended."""
        return self.last is not None and self.last.kind == "close"

    def apply(self, commit: Commit, *, own: bool = False) -> None:
        """Take one more record in.

        Raises `CheckpointDamaged` if it names a key as completed that is completed already (as
        far as that costs nothing: keys that are no longer in the table's dict are not looked up;
        `verify` does).
        ``own``: the record is by this driver, whose planner never plans a key twice; its keys
        need not be remembered again, and ``done``, which the planner reads meanwhile, stays as it
        is: whatever a commit retracts it completes again.
        """
        if not own:
            for key in keys.split(commit.retracted):
                self.done.remove(key)
            before = len(self.done)
            self.done.add_lines(commit.keys, _numbers(commit.fingerprints))
            if len(self.done) != before + commit.key_count:
                name = record_name(commit.number)
                raise CheckpointDamaged(
                    f"{name}: it completes a key that is completed already", files=(name,)
                )
        if self.failures:
            for key in keys.split(commit.keys):
                self.failures.pop(key, None)
        for failure in commit.failures:
            self.failures[keys.canonical(failure.key)] = failure
        self._adopt(commit)
        for path in commit.info.get("retracted_shards", ()):
            known = self.shards.pop(path, None)
            self.torn = self.torn or (known is None and commit.kind == "commit")
        for shard in commit.shards:
            self.shards[shard.path] = shard
        if commit.schema:
            self.schema = commit.schema
        if commit.kind == "claim":
            self.runs += 1
            self.version = commit.info.get("version", self.version)
            self._follow_scheme(commit.info.get("fingerprint"))
        self.epoch = max(self.epoch, commit.epoch)
        self.records += 1
        # Only what says when and by whom is kept of it, not its keys.
        self.last = replace(
            commit,
            keys=b"",
            failures=(),
            shards=(),
            retracted=b"",
            fingerprints=b"",
            adopted=b"",
            adopted_fingerprints=b"",
        )

    def _adopt(self, commit: Commit) -> None:
        """Keys that are completed stand as they are, with another fingerprint if one is named."""
        adopted = list(keys.split(commit.adopted))
        prints = _numbers(commit.adopted_fingerprints) or [-1] * len(adopted)
        for key, fingerprint in zip(adopted, prints, strict=True):
            self.failures.pop(key, None)
            # Not one that the loss of a record has taken since.
            if fingerprint >= 0 and self.done.remove(key):
                self.done.add(key, fingerprint)

    def _follow_scheme(self, scheme: Any) -> None:
        """A run takes fingerprints in this way; those that were taken in another say nothing."""
        if scheme is not None and scheme != self.fingerprint:
            if self.fingerprint is not None:
                self.done.forget_positions()
            self.fingerprint = scheme

    def apply_all(self, commits: Iterable[Commit]) -> None:
        for commit in commits:
            self.apply(commit)


def _numbers(prints: bytes) -> list[int] | None:
    return [fingerprints.from_text(text) for text in prints.split(b"\n")] if prints else None
