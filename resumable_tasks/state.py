"""What a journal says, folded into what a driver or a reader needs to know."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from resumable_tasks import keys
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.journal import record_name
from resumable_tasks.keytable import KeyTable
from resumable_tasks.model import Commit, Failure, Shard


@dataclass(slots=True)
class State:
    """The fold of a checkpoint's records.

    ``done`` are the completed keys, ``failures`` the items whose last attempt failed, by
    canonical key, ``shards`` the shards that count, by path.
    """

    done: KeyTable = field(default_factory=KeyTable)
    failures: dict[bytes, Failure] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    schema: str | None = None
    epoch: int = 0
    version: str | None = None
    records: int = 0
    runs: int = 0
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
        need not be remembered again.
        """
        if not own:
            before = len(self.done)
            self.done.add_lines(commit.keys)
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
        for key in keys.split(commit.retracted):
            self.done.remove(key)
        for path in commit.info.get("retracted_shards", ()):
            self.shards.pop(path, None)
        for shard in commit.shards:
            self.shards[shard.path] = shard
        if commit.schema:
            self.schema = commit.schema
        if commit.kind == "claim":
            self.runs += 1
            self.version = commit.info.get("version", self.version)
        self.epoch = max(self.epoch, commit.epoch)
        self.records += 1
        # Only what says when and by whom is kept of it, not its keys.
        self.last = replace(commit, keys=b"", failures=(), shards=(), retracted=b"")

    def apply_all(self, commits: Iterable[Commit]) -> None:
        for commit in commits:
            self.apply(commit)
