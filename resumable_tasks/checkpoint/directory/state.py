"""The state of a checkpoint: its journal's records, applied one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import asdict, field, replace
from typing import Any

from resumable_tasks.base.frozen import changing
from resumable_tasks.checkpoint.directory.handlers import Handlers
from resumable_tasks.checkpoint.directory.outstanding import Outstanding
from resumable_tasks.checkpoint.directory.pace import Pace
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import record_name
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.items import fingerprints, keys
from resumable_tasks.items.keytable import KeyTable
from resumable_tasks.runners.outcome import Failure, Shard

# The kinds of records that can change which rows count, or their contents.
_OF_ROWS = ("commit", "repair", "lost", "redo")
Line = bytes
"""A key in its canonical form."""


@changing
class Lately:
    """The latest events: the last claim, the number of keys completed before it (``found``), the
    last ``close`` record (None if no run has written one), and the time of the last commit.
    """

    claim: Commit | None = None
    found: int = 0
    ended: Commit | None = None
    committed: str | None = None

    def follow(self, commit: Commit, done: int) -> None:
        """Apply one more record."""
        if commit.kind == "claim":
            self.claim, self.found = commit, done
        elif commit.kind == "close":
            self.ended = commit
        elif commit.kind == "commit":
            self.committed = commit.time

    def told(self) -> dict[str, Any]:
        """The data that a snapshot stores."""
        claim, ended = _told_commit(self.claim), _told_commit(self.ended)
        return {"claim": claim, "ended": ended, "found": self.found, "committed": self.committed}

    @classmethod
    def of_told(cls, told: Mapping[str, Any]) -> Lately:
        """Restore from a snapshot's data."""
        ended, committed = _commit_of(told["ended"]), told["committed"]
        return cls(_commit_of(told["claim"]), told["found"], ended, committed)


@changing
class State:
    """The state of a checkpoint after its records so far.

    ``done`` are the completed keys, each with the fingerprint with which it was completed, or -1 if
    that cannot be compared: only fingerprints of the latest scheme, ``fingerprint``, can.
    ``failures`` are the items whose last attempt failed, ``parked`` the items whose result does not
    fit the table, both by canonical key. ``shards`` are the shards that count, by path. ``out`` are
    the submissions with a service. ``version``, ``max_attempts`` and ``expected`` (items) are those
    of the last run. ``names`` are the manifest's fields that runs have set since it was written.
    No record after the first ``changed`` ones has changed rows that count.
    """

    done: KeyTable = field(default_factory=KeyTable)
    failures: dict[bytes, Failure] = field(default_factory=dict)
    parked: dict[bytes, Failure] = field(default_factory=dict)
    shards: dict[str, Shard] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    schema: str | None = None
    epoch: int = 0
    version: str | None = None
    max_attempts: int | None = None
    expected: int | None = None
    fingerprint: Any = None
    names: dict[str, Any] = field(default_factory=dict)
    handlers: Handlers = field(default_factory=Handlers)
    records: int = 0
    changed: int = 0
    runs: int = 0
    # A record retracts or merges a shard that no earlier record names, so a record was lost. See
    # `replace.doubled`.
    gap: bool = False
    # There are, or were, merged shards.
    merged: bool = False
    # The checkpoint is to be removed, and no run may continue it. See `archive.end`.
    pruned: bool = False
    # Where the checkpoint is, for messages.
    place: str = ""
    last: Commit | None = None
    lately: Lately = field(default_factory=Lately)
    out: Outstanding = field(default_factory=Outstanding)
    # The numbers of records and keys in the snapshot from which the state was read.
    recalled: tuple[int, int] = (0, 0)

    @property
    def holds_nothing(self) -> bool:
        """True if no result is kept, nothing was spent, and nothing is with a service."""
        kept = self.done or self.parked or self.shards or self.gap
        return not (kept or self.pace.cost or self.out.each or self.out.strays)

    def set_aside(self, max_attempts: int | None, retry_failed: bool) -> Set[Line]:
        """The items not to try: parked and quarantined, or parked and all failed ones."""
        if not retry_failed:
            return self.failures.keys() | self.parked.keys()
        if max_attempts is None:
            return self.parked.keys()
        failures = self.failures.items()
        quarantined = {line for line, failure in failures if failure.attempts >= max_attempts}
        return quarantined | self.parked.keys()

    @property
    def quarantined(self) -> list[Failure]:
        """The failed items that reached the ``max_attempts`` of the last run."""
        chosen = self.set_aside(self.max_attempts, retry_failed=True)
        return [self.failures[line] for line in chosen if line in self.failures]

    def known(self, line: Line) -> Failure | None:
        """The record of a failed or parked item; None if it is neither."""
        return self.failures.get(line) or self.parked.get(line)

    @property
    def rows(self) -> int:
        return sum(shard.rows for shard in self.shards.values())

    @property
    def bytes(self) -> int:
        return sum(shard.bytes for shard in self.shards.values())

    @property
    def closed(self) -> bool:
        """True if the last record is a run's ``close``, however the run ended."""
        return self.last is not None and self.last.kind == "close"

    def apply(self, commit: Commit, *, own: bool = False) -> None:
        """Apply one more record.

        Raises `CheckpointDamaged` if it completes a key that is completed already. This check finds
        only what costs nothing to find: keys that are no longer in the table's dict are not looked
        up; `verify` does that.
        ``own``: the record is by this driver, whose planner never plans a key twice, so its keys
        need not be added. ``done``, which the planner reads meanwhile, stays unchanged: a commit
        completes again every key that it retracts.
        """
        if not own:
            for key in keys.split(commit.retracted):
                self.done.remove(key)
            before = len(self.done)
            self.done.add_lines(commit.keys, _numbers(commit.fingerprints))
            if len(self.done) != before + commit.key_count:
                name = record_name(commit.number)
                what = "it completes a key that is completed already"
                raise CheckpointDamaged(what, files=(name,), place=self.place)
        if self.failures or self.parked:
            for key in keys.split(commit.keys):
                self._forget(key)
        for failure in commit.failures:
            line = keys.canonical(failure.key)
            self._forget(line)
            (self.parked if failure.parked else self.failures)[line] = failure
        self._adopt(commit)
        self._take_shards(commit)
        if commit.schema:
            self.schema = commit.schema
        self.names |= commit.info.get("names", {})
        if commit.kind == "claim":
            self._take_claim(commit)
        self.epoch = max(self.epoch, commit.epoch)
        self.records += 1
        if commit.kind in _OF_ROWS and (commit.keys or commit.retracted or commit.kind == "lost"):
            self.changed = self.records
        self.pace.apply(commit)
        self.out.apply(commit)
        if commit.kind in ("archive", "merge"):
            self.pruned = self.pruned or bool(commit.info.get("pruned"))
            return  # they change neither which items are done nor how the last run ended
        # Keep when and by whom the record was written, and drop its keys.
        self.last = replace(
            commit,
            keys=b"",
            failures=(),
            shards=(),
            retracted=b"",
            fingerprints=b"",
            adopted=b"",
            adopted_fingerprints=b"",
            out=b"",
            out_fingerprints=b"",
        )
        self.lately.follow(self.last, len(self.done))

    def _take_claim(self, commit: Commit) -> None:
        self.runs += 1
        version, self.version = self.version, commit.info.get("version") or self.version
        told = version not in (None, self.version)
        said = commit.info.get("handler")
        self.handlers.follow(said, completed=len(self.done) > 0, told=told)
        self.max_attempts = commit.info.get("max_attempts")
        self.expected = commit.info.get("expected")
        self.follow_scheme(commit.info.get("fingerprint"))

    def _take_shards(self, commit: Commit) -> None:
        """Remove the shards that the record retracts or merges, and add the shards it names."""
        if commit.kind == "merge":
            self.merged = True
            for shard, parts in commit.merges():
                self._merge(shard, parts)
            return
        for path in commit.info.get("retracted_shards", ()):
            self.gap = self.gap or path not in self.shards
            self.shards.pop(path, None)
        for shard in commit.shards:
            self.shards[shard.path] = shard

    def _merge(self, shard: Shard, parts: Sequence[str]) -> None:
        """Put a merged shard in the place of its parts, so that the rows keep their order.

        The parts are usually the last shards, so few others are touched.
        """
        left = {path for path in parts if path in self.shards}
        self.gap = self.gap or len(left) < len(parts)
        after = []
        while left:
            path, each = self.shards.popitem()
            if path in left:
                left.remove(path)
            else:
                after.append(each)
        self.shards[shard.path] = shard
        self.shards.update((each.path, each) for each in reversed(after))

    def _forget(self, line: Line) -> None:
        self.failures.pop(line, None)
        self.parked.pop(line, None)

    def _adopt(self, commit: Commit) -> None:
        """Keep these completed keys as they are, with the new fingerprint if there is one."""
        adopted = list(keys.split(commit.adopted))
        found = _numbers(commit.adopted_fingerprints) or [-1] * len(adopted)
        for key, fingerprint in zip(adopted, found, strict=True):
            self._forget(key)
            # `remove` is False for a key that a lost record had completed.
            if fingerprint >= 0 and self.done.remove(key):
                self.done.add(key, fingerprint)

    def follow_scheme(self, scheme: Any) -> None:
        """Use this fingerprint scheme from now on, and forget fingerprints of any other scheme."""
        if scheme is not None and scheme != self.fingerprint:
            if self.fingerprint is not None:
                self.done.forget_positions()
                self.out.forget_fingerprints()
                for line, parked in self.parked.items():
                    self.parked[line] = replace(parked, fingerprint=-1)
            self.fingerprint = scheme

    def follow_rows(self, commit: Commit) -> None:
        """`apply` a record without its keys, for callers that need only the shards."""
        self.apply(replace(commit, keys=b"", key_count=0, fingerprints=b""))

    def apply_all(self, commits: Iterable[Commit]) -> None:
        for commit in commits:
            self.apply(commit)

    def told(self) -> dict[str, Any]:
        """The data that a snapshot stores beside keys, shards, schema and failures."""
        plain = {name: getattr(self, name) for name in (*_PLAIN, *_MORE)}
        return plain | {
            "last": _told_commit(self.last),
            "lately": self.lately.told(),
            "pace": asdict(self.pace),
            "handlers": asdict(self.handlers),
            "out": self.out.told(),
        }

    @classmethod
    def of_told(cls, head: Commit, told: Mapping[str, Any], place: str) -> State:
        """Restore the state, without its keys, from a snapshot's data.

        Raises ``KeyError``, ``TypeError`` or the like if the data is malformed.
        """
        state = cls(place=place, epoch=head.epoch, schema=head.schema)
        for name in (*_PLAIN, *_MORE):
            setattr(state, name, told[name])
        state.last, state.lately = _commit_of(told["last"]), Lately.of_told(told["lately"])
        state.pace = Pace.of_told(told["pace"])
        state.handlers = Handlers.of_told(told["handlers"])
        state.out = Outstanding.of_told(told["out"])
        state.shards = {shard.path: shard for shard in head.shards}
        for failure in head.failures:
            into = state.parked if failure.parked else state.failures
            into[keys.canonical(failure.key)] = failure
        return state


_PLAIN = ("version", "max_attempts", "expected", "fingerprint", "names", "records", "runs")
_MORE = ("gap", "merged", "pruned", "changed")
_OF_A_COMMIT = ("kind", "epoch", "run", "number", "time", "nonce", "previous", "checksum", "info")


def _told_commit(commit: Commit | None) -> dict[str, Any] | None:
    if commit is None:
        return None
    return {name: getattr(commit, name) for name in _OF_A_COMMIT}


def _commit_of(told: Mapping[str, Any] | None) -> Commit | None:
    return None if told is None else Commit(**{name: told[name] for name in _OF_A_COMMIT})


def _numbers(texts: bytes) -> list[int] | None:
    return [fingerprints.from_text(text) for text in texts.split(b"\n")] if texts else None
