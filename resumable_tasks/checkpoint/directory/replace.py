"""Replacing the rows of changed items: one record removes the old rows and adds the new ones.

Copy on write. A record that completes a key again retracts the shard with its old rows and all keys
of that shard, and completes them again: the changed ones with their new rows, the others with their
old rows, copied into a new shard. So at no moment does a key have no rows or old and new ones, and
a shard counts as a whole or not at all, for every reader.
``docs/design/0007-changed-items.md`` has the rejected alternatives.
"""

from __future__ import annotations

import contextlib
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from resumable_tasks.base.frozen import changing
from resumable_tasks.checkpoint.directory import schemas, shards
from resumable_tasks.checkpoint.directory.homes import Homes
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.record import Commit, ShardKeys
from resumable_tasks.checkpoint.directory.segments import listed, read_some
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    InvalidKey,
    ResultConflict,
)
from resumable_tasks.items import keys
from resumable_tasks.items.fingerprints import to_text
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.runners.outcome import Failure, Shard
from resumable_tasks.runners.values.columns import Columns

if TYPE_CHECKING:
    import pyarrow as pa

_PER_BUCKET = 64


@changing
class Shared:
    """The keys whose rows are in one shard, by the records that completed them.

    ``shard`` is None for keys without rows.
    """

    shard: Shard | None
    sections: list[ShardKeys]

    @property
    def lines(self) -> list[bytes]:
        return [line for section in self.sections for line in section.lines]


@changing
class Superseded:
    """What a record must contain, besides the new rows, to replace old ones.

    The keys that stay are those that shared a shard with a replaced key. ``shards`` hold their
    rows, ``lines`` and ``fingerprints`` are their keys in the order of the shards; ``rowless`` and
    ``rowless_fingerprints`` are for keys that stay and have no rows. ``count`` is the number of
    keys that stay, ``failures`` are their failures. Keys are newline-joined, by shard.
    """

    shards: list[Shard] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    fingerprints: list[bytes] = field(default_factory=list)
    rowless: list[bytes] = field(default_factory=list)
    rowless_fingerprints: list[bytes] = field(default_factory=list)
    count: int = 0
    failures: list[Failure] = field(default_factory=list)
    retracted: list[bytes] = field(default_factory=list)
    retracted_shards: list[str] = field(default_factory=list)

    def take_back(self, shard: Shard, shared: Shared) -> None:
        """Retract this shard and all keys that share it."""
        self.retracted_shards.append(shard.path)
        self.retracted += filter(None, [keys.join(shared.lines)])

    def added_to(self, commit: Commit, fingerprints: list[bytes]) -> Commit:
        """The record with all this added, keys in the order of their shards."""
        rowless = sum(lines.count(b"\n") + 1 for lines in self.rowless)
        return replace(
            commit,
            keys=keys.join(filter(None, (*self.lines, commit.keys, *self.rowless))),
            key_count=commit.key_count + self.count,
            fingerprints=_joined([*self.fingerprints, *fingerprints, *self.rowless_fingerprints]),
            shards=(*self.shards, *commit.shards),
            failures=(*commit.failures, *self.failures),
            retracted=keys.join(self.retracted),
            info={
                **commit.info,
                "retracted_shards": self.retracted_shards,
                "copied": self.count,
                **({"copied_rowless": rowless} if rowless else {}),
            },
        )


class KeyIndex:
    """An index from keys to the records that name them, of about ten bytes an entry.

    An entry is 32 bits of a key's hash and the record's number. The record is read to distinguish
    keys of the same hash.
    """

    def __init__(self, store: Store, anchor: str, records: int, count: int) -> None:
        """Read the first ``records`` records, which complete about ``count`` keys."""
        size = 1 << (count // _PER_BUCKET).bit_length()
        self._buckets = [array("Q") for _ in range(size)]
        self._store = store
        self.homes = Homes()
        for commit in Journal(store, anchor).read_new():
            if commit.number >= records:
                break
            self.add(commit)

    def add(self, commit: Commit) -> None:
        """Add one more record."""
        self.homes.follow(commit)
        buckets, mask, number = self._buckets, len(self._buckets) - 1, commit.number
        for line in keys.split(commit.keys):
            found = hash(line)
            buckets[found & mask].append((found >> 31 & 0xFFFFFFFF) << 32 | number)

    def shared(self, lines: set[bytes], there: Mapping[str, Shard]) -> Iterator[Shared]:
        """Yield the shards with the rows of these completed keys, with all keys that share them.

        ``there`` are the shards that count. Raises `CheckpointDamaged` if a key or a shard is
        missing or has been replaced since this run began.
        """
        merged: dict[str, None] = {}
        for section in self._sections(lines):
            if section.shard is None:
                yield Shared(None, [section])
            elif (home := self.homes.of(section.shard.path)) == section.shard.path:
                yield Shared(section.shard, [section])
            else:
                merged[home] = None
        for home in merged:
            if home not in there:  # a newer driver is at work
                what = "it counts now, but did not when this run began"
                raise CheckpointDamaged(what, files=(home,), place=self._store.url)
            yield Shared(there[home], self.homes.sections(self._store, home))

    def _sections(self, lines: set[bytes]) -> Iterator[ShardKeys]:
        """Yield the sections that completed these keys, reading one record at a time.

        Keys without rows are in a section without a shard.
        """
        left = {line: self._numbers(line) for line in lines}
        while left:
            asked: dict[int, set[bytes]] = {}
            for line, numbers in left.items():
                if not numbers:
                    # A repair has put another record in its place: a newer driver is at work.
                    raise CheckpointDamaged(
                        f"no record completes key {keys.shown(keys.parse(line))} any more",
                        place=self._store.url,
                    )
                # The last record that completes it counts: earlier completions were retracted.
                asked.setdefault(numbers.pop(), set()).add(line)
            for commit in read_some(self._store, sorted(asked)):
                number = commit.number
                for section in commit.sections():
                    found = asked[number].intersection(section.lines)
                    for line in found:
                        del left[line]
                    if found and section.shard is None:
                        yield ShardKeys(None, number, list(found), [b""] * len(found))
                    elif found:
                        yield section

    def _numbers(self, line: bytes) -> list[int]:
        """The numbers of the records that may name this key."""
        found = hash(line)
        tag = found >> 31 & 0xFFFFFFFF
        bucket = self._buckets[found & (len(self._buckets) - 1)]
        return sorted({entry & 0xFFFFFFFF for entry in bucket if entry >> 32 == tag})


def shard_of_each(commits: Iterable[Commit]) -> dict[bytes, str]:
    """The shard with the rows of each completed key after these records; "" if it has no rows."""
    found: dict[bytes, str] = {}
    homes = Homes()
    for commit in commits:
        homes.follow(commit)
        for line in keys.split(commit.retracted):
            found.pop(line, None)
        for section in commit.sections():
            path = section.shard.path if section.shard else ""
            found.update(dict.fromkeys(section.lines, path))
    return {line: homes.of(path) for line, path in found.items()}


def doubled(commits: Sequence[Commit], state: State) -> dict[str, int]:
    """The shards that count although some of their keys have newer rows in another shard.

    Maps each to the number of keys that do have their rows there. Such a shard exists only if the
    record that retracted it was lost, and the copies that it made were superseded since.
    """
    if not state.gap:
        return {}
    homes, places = Homes(commits), shard_of_each(commits)
    here, named = Counter[str](), Counter[str]()
    for section in (section for commit in commits for section in commit.sections()):
        if section.shard is not None:
            path = homes.of(section.shard.path)
            named[path] += len(section.lines)
            here[path] += sum(places.get(line) == path for line in section.lines)
    return {path: here[path] for path in state.shards if here[path] < named[path]}


def with_strangers(commits: Iterable[Commit], state: State) -> list[str]:
    """The merged shards that count and contain rows of a lost record."""
    if not state.gap:
        return []
    homes = Homes(commits)
    return [path for path in state.shards if homes.strangers(path)]


def check(store: Store, found: Manifest, state: State) -> None:
    """Raise `CheckpointDamaged` if shards hold rows that a lost record retracted or completed."""
    if not state.gap:
        return
    journal = Journal(store, found.id)
    # Not later ones: an active run's records may name shards that this state does not know.
    journal.read_first(listed(store).since(0, state.records - 1))
    commits = list(journal.read_new())
    bad = dict.fromkeys(with_strangers(commits, state), STRANGERS)
    bad |= dict.fromkeys(doubled(commits, state), DOUBLED)
    if bad:
        files = tuple(bad)
        raise CheckpointDamaged(bad[files[0]], files=files, place=store.url)


DOUBLED = "it holds rows that a lost record had taken back"
STRANGERS = "it holds rows of items that a lost record had completed"


def check_types(store: Store, url: str, state: State, columns: Columns) -> None:
    """Raise `CheckpointMismatch` if the committed rows do not fit the types of a job.

    Call it before the claim, since a run that is refused leaves no record.
    """
    if columns.inferred or not state.schema:
        return
    stored = schemas.schema_from_text(state.schema)
    wanted = schemas.with_columns(stored, schemas.declared(stored, columns))
    if wanted is None or not schemas.differ(stored, wanted):
        return
    for shard in state.shards.values():
        try:
            schemas.retyped(shards.read(store, shard), wanted)
        except ResultConflict as error:
            raise unfit(url, error) from error


def unfit(url: str, error: ResultConflict) -> CheckpointMismatch:
    return CheckpointMismatch(
        f"{url}: {error}",
        remedy="Give schema= and json_columns= that the rows fit, or start a new checkpoint with a "
        "new version= and on_version_change='restart'",
    )


class Superseder:
    """Finds and copies the rows that stay when items are handled again, for one driver's epoch."""

    def __init__(self, store: Store, found: Manifest, state: State) -> None:
        """``state`` is the state after this driver's claim."""
        self._store = store
        self._manifest = found
        self._state = state
        self._index: KeyIndex | None = None
        # Fingerprints of keys completed before this record are in the state, later ones only in
        # the records.
        self._own_from = state.records

    def complete(
        self, commit: Commit, fingerprints: Mapping[bytes, int], journal: Journal
    ) -> Commit:
        """The commit with the fingerprints of its keys, and with everything that it supersedes.

        Raises `CheckpointDamaged` if old rows are damaged, `Fenced` if a newer driver has replaced
        them.
        """
        lines = list(keys.split(commit.keys))
        found = [to_text(fingerprints.get(line, -1)) for line in lines]
        again = {line for line in lines if line in self._state.done}
        if not again:
            return replace(commit, fingerprints=_joined(found))
        try:
            return self.supersede(again).added_to(commit, found)
        except CheckpointDamaged:
            # A newer driver may have handled the items already and swept their old rows.
            journal.check_not_overtaken(commit)
            raise

    def supersede(self, again: set[bytes]) -> Superseded:
        """Copy the rows that share a shard with the rows of these completed keys.

        Each copy is durable on return, under a name that no record names yet. Raises
        `CheckpointDamaged` if a shard with old rows is damaged.
        """
        if self._index is None:
            records, count = self._state.records, len(self._state.done)
            self._index = KeyIndex(self._store, self._manifest.id, records, count)
        result = Superseded()
        for shared in self._index.shared(again, self._state.shards):
            if shared.shard is None:
                result.retracted.append(keys.join(shared.lines))
            else:
                self._take_back(shared, again, result)
        return result

    def retype(self, wanted: pa.Schema) -> Superseded:
        """Copy all rows that count, converted to the types of this schema.

        Each copy is durable on return, under a name that no record names yet. Raises
        `ResultConflict` if a value would change, and `CheckpointDamaged`.
        """
        result = Superseded()
        homes = Homes(Journal(self._store, self._manifest.id).read_new())
        for path, shard in self._state.shards.items():
            shared = Shared(shard, homes.sections(self._store, path))
            self._take_back(shared, set(), result, wanted)
        return result

    def without_strangers(self, paths: Sequence[str]) -> Superseded:
        """Copy the rows of named keys out of shards that also hold rows of unnamed keys.

        Durable as in `retype`. Shards that cannot be read are skipped.
        """
        result = Superseded()
        homes = Homes(Journal(self._store, self._manifest.id).read_new() if paths else ())
        for path in paths:
            shared = Shared(self._state.shards[path], homes.sections(self._store, path))
            with contextlib.suppress(CheckpointDamaged):
                self._take_back(shared, set(), result, strangers=True)
        return result

    def committed(self, commit: Commit) -> None:
        """Take in a record that this driver has appended."""
        if self._index is None:
            return
        if commit.retracted:
            self._index.add(commit)
        else:
            self._index.homes.follow(commit)

    def _take_back(
        self,
        shared: Shared,
        again: set[bytes],
        result: Superseded,
        wanted: pa.Schema | None = None,
        *,
        strangers: bool = False,
    ) -> None:
        """Retract a shard, and copy the rows that stay.

        ``strangers``: drop rows of keys that the records do not name, instead of raising
        `CheckpointDamaged`.
        """
        shard = shared.shard
        assert shard is not None
        each = [(s, at, line) for s in shared.sections for at, line in enumerate(s.lines)]
        stay = [(s, at, line) for s, at, line in each if line not in again]
        if not stay:
            result.take_back(shard, shared)
            return
        lines = [line for _, _, line in stay]
        rows = self._rows_that_stay(shared, shard, again, strangers=strangers)
        if self._manifest.results == "one" and rows.num_rows != len(lines):
            raise shards.damaged(
                self._store, shard, f"it holds {rows.num_rows:,} rows of {len(lines):,} items"
            )
        if wanted is not None:
            rows = schemas.retyped(rows, wanted)
        result.take_back(shard, shared)
        known = map(self._state.known, lines)
        result.failures.extend(failure for failure in known if failure is not None)
        result.count += len(lines)
        texts = b"\n".join(self._fingerprint(s, at) for s, at, _ in stay)
        if rows.num_rows:
            result.shards.append(shards.write(self._store, self._state.epoch, rows, len(lines)))
            result.lines.append(keys.join(lines))
            result.fingerprints.append(texts)
        else:
            result.rowless.append(keys.join(lines))
            result.rowless_fingerprints.append(texts)

    def _fingerprint(self, section: ShardKeys, at: int) -> bytes:
        if section.number >= self._own_from:
            return section.fingerprints[at]
        found = self._state.done.get(section.lines[at])
        return to_text(-1 if found is None else found)

    def _rows_that_stay(
        self, shared: Shared, shard: Shard, again: set[bytes], *, strangers: bool
    ) -> pa.Table:
        import pyarrow as pa

        rows = shards.read(self._store, shard)
        owners = set(shared.lines)
        try:
            each = KeyScheme.of(self._manifest.key).lines_of(rows, owners)
        except InvalidKey as error:
            raise shards.damaged(self._store, shard, f"a row has no key: {error}") from error
        others = not owners.issuperset(each)
        for line in each if others and not strangers else ():
            if line not in owners:
                key = keys.shown(keys.parse(line))
                raise shards.damaged(
                    self._store, shard, f"it holds a row of {key}, which its record does not name"
                )
        stays = owners - again
        return rows.filter(pa.array([line in stays for line in each], pa.bool_()))


def _joined(fingerprints: list[bytes]) -> bytes:
    """Join fingerprints as a record stores them; empty if no key has one."""
    joined = b"\n".join(fingerprints)
    return joined if joined.strip(b"\n") else b""
