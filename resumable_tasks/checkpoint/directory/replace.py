"""Items that are done anew: their old rows go, in the same record that brings the new ones.

Copy on write. A record that completes a key anew takes back the shard that holds its old rows,
retracts all keys of that shard, and completes them again: the keys that are done anew with their
new rows, the others with their old ones, which are copied into a new shard. So there is no moment
at which a key has no rows, or two, and a shard that counts counts as a whole, for every reader.
``docs/design/0007-changed-items.md`` has what lost.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from resumable_tasks.checkpoint.directory import shards
from resumable_tasks.checkpoint.directory.journal import Journal, decode, record_name
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, InvalidKey
from resumable_tasks.items import fingerprints, keys
from resumable_tasks.runners.outcome import Failure, Shard

if TYPE_CHECKING:
    import pyarrow as pa

_PER_BUCKET = 64


@dataclass(frozen=True, slots=True)
class Section:
    """A shard as its record ``number`` names it, with its keys and their fingerprints (or b"")."""

    shard: Shard | None
    number: int
    lines: Sequence[bytes]
    prints: Sequence[bytes]


@dataclass(slots=True)
class Superseded:
    """What a record that does items anew has besides them. Keys are newline-joined, by shard.

    ``shards`` hold the rows that stay, ``lines`` are their keys in the order of the shards, with
    their fingerprints in ``prints``, and ``rowless`` and ``rowless_prints`` those of keys that
    stay and have no rows; ``count`` is how many stay. ``failures`` are of keys that stay.
    """

    shards: list[Shard] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    prints: list[bytes] = field(default_factory=list)
    rowless: list[bytes] = field(default_factory=list)
    rowless_prints: list[bytes] = field(default_factory=list)
    count: int = 0
    failures: list[Failure] = field(default_factory=list)
    retracted: list[bytes] = field(default_factory=list)
    retracted_shards: list[str] = field(default_factory=list)

    def added_to(self, commit: Commit, prints: list[bytes]) -> Commit:
        """The record with this added: keys in the order of their shards."""
        return replace(
            commit,
            keys=keys.join((*self.lines, commit.keys, *self.rowless)),
            key_count=commit.key_count + self.count,
            fingerprints=_joined([*self.prints, *prints, *self.rowless_prints]),
            shards=(*self.shards, *commit.shards),
            failures=(*commit.failures, *self.failures),
            retracted=keys.join(self.retracted),
            info={
                **commit.info,
                "retracted_shards": self.retracted_shards,
                "copied": self.count,
            },
        )


class Homes:
    """In which records each completed key stands, at about ten bytes for each time it does.

    Kept are 32 bits of a key's hash and the number of the record, which then says whether it was
    this key.
    """

    def __init__(self, store: Store, anchor: str, records: int, count: int) -> None:
        """The first ``records`` records are read, which complete about ``count`` keys."""
        size = 1 << (count // _PER_BUCKET).bit_length()
        self._buckets = [array("Q") for _ in range(size)]
        self._store = store
        for commit in Journal(store, anchor).read_new():
            if commit.number >= records:
                break
            self.add(commit)

    def add(self, commit: Commit) -> None:
        """Take in one more record."""
        buckets, mask, number = self._buckets, len(self._buckets) - 1, commit.number
        for line in keys.split(commit.keys):
            found = hash(line)
            buckets[found & mask].append((found >> 31 & 0xFFFFFFFF) << 32 | number)

    def parts(self, lines: set[bytes]) -> Iterator[Section]:
        """The shards with the rows of these completed keys, one record read at a time.

        Keys that have no rows come in a part without a shard. Raises `CheckpointDamaged` for a
        key that was there and is not.
        """
        left = {line: self._numbers(line) for line in lines}
        while left:
            asked: dict[int, set[bytes]] = {}
            for line, numbers in left.items():
                if not numbers:
                    # A repair has put another record in its place: a newer driver is at work.
                    raise CheckpointDamaged(
                        f"no record completes key {keys.shorten(keys.parse(line))} any more"
                    )
                # The last record that completes it counts: whatever came before was taken back.
                asked.setdefault(numbers.pop(), set()).add(line)
            for number in sorted(asked):
                for part in _parts(self._store, number):
                    found = asked[number].intersection(part.lines)
                    for line in found:
                        del left[line]
                    if found and part.shard is None:
                        yield Section(None, number, list(found), [b""] * len(found))
                    elif found:
                        yield part

    def _numbers(self, line: bytes) -> list[int]:
        """The records in which this key may stand."""
        found = hash(line)
        tag = found >> 31 & 0xFFFFFFFF
        bucket = self._buckets[found & (len(self._buckets) - 1)]
        return sorted({entry & 0xFFFFFFFF for entry in bucket if entry >> 32 == tag})


def _parts(store: Store, number: int) -> Iterator[Section]:
    """The shards that a record names, with their keys; last, those of its keys without a shard."""
    name = record_name(number)
    commit = decode(store.read(name), name)
    lines = list(keys.split(commit.keys))
    prints = commit.fingerprints.split(b"\n") if commit.fingerprints else [b""] * len(lines)
    at = 0
    for shard in commit.shards:
        to = at + shard.keys
        yield Section(shard, number, lines[at:to], prints[at:to])
        at = to
    yield Section(None, number, lines[at:], prints[at:])


def homes(commits: Iterable[Commit]) -> dict[bytes, str]:
    """In which shard each completed key has its rows by these records; "" if it has none."""
    found: dict[bytes, str] = {}
    for commit in commits:
        for line in keys.split(commit.retracted):
            found.pop(line, None)
        lines = list(keys.split(commit.keys))
        found.update(dict.fromkeys(lines, ""))
        at = 0
        for shard in commit.shards:
            found.update(dict.fromkeys(lines[at : at + shard.keys], shard.path))
            at += shard.keys
    return found


def stale(commits: Sequence[Commit], state: State) -> dict[str, int]:
    """The shards that count and hold rows of a key that has others elsewhere.

    And how many keys have their rows there. There is none, but where the record was lost that
    had taken the shard back, and what it had completed again was superseded since.
    """
    if not state.torn:
        return {}
    at_home = homes(commits)
    result: dict[str, int] = {}
    for commit in commits:
        lines = list(keys.split(commit.keys))
        at = 0
        for shard in commit.shards:
            here = [at_home.get(line) == shard.path for line in lines[at : at + shard.keys]]
            at += shard.keys
            if shard.path in state.shards and not all(here):
                result[shard.path] = sum(here)
    return result


def check(store: Store, found: Manifest, state: State) -> None:
    """Raises `CheckpointDamaged` if there are rows that a lost record had taken back."""
    bad = stale(list(Journal(store, found.id).read_new()), state) if state.torn else {}
    for path in bad:
        raise CheckpointDamaged(f"{path}: {STALE}", files=tuple(bad))


STALE = "it holds rows that a record which was lost had taken back"


class Superseder:
    """Finds and copies what must stay when items are done anew. For one driver's tenure."""

    def __init__(self, store: Store, found: Manifest, state: State) -> None:
        """``state``: as it is with this driver's claim."""
        self._store = store
        self._manifest = found
        self._state = state
        self._homes: Homes | None = None
        # Of the keys that were completed before this run, the state knows the fingerprint; of
        # those since, the records.
        self._own_from = state.records

    def complete(self, commit: Commit, prints: Mapping[bytes, int], journal: Journal) -> Commit:
        """The commit with the fingerprints of its keys, and with all that it supersedes.

        Raises `CheckpointDamaged` if old rows are, `Fenced` if a newer driver has them.
        """
        lines = list(keys.split(commit.keys))
        found = [fingerprints.to_text(prints.get(line, -1)) for line in lines]
        anew = {line for line in lines if line in self._state.done}
        if not anew:
            return replace(commit, fingerprints=_joined(found))
        try:
            return self.supersede(anew).added_to(commit, found)
        except CheckpointDamaged:
            # A newer driver may have done them anew already, and swept what was there.
            journal.check_not_overtaken(commit)
            raise

    def supersede(self, anew: set[bytes]) -> Superseded:
        """Copy the rows that share a shard with those of these completed keys.

        Each copy is durable on return, under a name that no record knows yet. Raises
        `CheckpointDamaged` if a shard with old rows is not what was written.
        """
        if self._homes is None:
            records, count = self._state.records, len(self._state.done)
            self._homes = Homes(self._store, self._manifest.id, records, count)
        result = Superseded()
        for part in self._homes.parts(anew):
            if part.shard is None:
                result.retracted.append(keys.join(part.lines))
            else:
                self._take_back(part, part.shard, anew, result)
        return result

    def committed(self, commit: Commit) -> None:
        """A record that superseded has landed."""
        assert self._homes is not None
        self._homes.add(commit)

    def _take_back(self, part: Section, shard: Shard, anew: set[bytes], result: Superseded) -> None:
        result.retracted_shards.append(shard.path)
        result.retracted.append(keys.join(part.lines))
        stay = [at for at, line in enumerate(part.lines) if line not in anew]
        if not stay:
            return
        lines = [part.lines[at] for at in stay]
        prints = b"\n".join(self._print(part, at) for at in stay)
        failed = self._state.failures
        result.failures.extend(failed[line] for line in lines if line in failed)
        result.count += len(lines)
        rows = self._rows_that_stay(part, shard, anew)
        if self._manifest.results == "one" and rows.num_rows != len(lines):
            raise CheckpointDamaged(
                f"{shard.path}: it holds {rows.num_rows:,} rows of {len(lines):,} items",
                files=(shard.path,),
            )
        if rows.num_rows:
            result.shards.append(shards.write(self._store, self._state.epoch, rows, len(lines)))
            result.lines.append(keys.join(lines))
            result.prints.append(prints)
        else:
            result.rowless.append(keys.join(lines))
            result.rowless_prints.append(prints)

    def _print(self, part: Section, at: int) -> bytes:
        if part.number >= self._own_from:
            return part.prints[at]
        found = self._state.done.get(part.lines[at])
        return fingerprints.to_text(-1 if found is None else found)

    def _rows_that_stay(self, part: Section, shard: Shard, anew: set[bytes]) -> pa.Table:
        import pyarrow as pa

        rows = shards.read(self._store, shard)
        owners = set(part.lines)
        found = list(_keys_of(rows, self._manifest.key))
        try:
            _, each = keys.canonical_all(found)
        except InvalidKey:
            each = []
        if not owners.issuperset(each) or len(each) < len(found):
            each = [_owner(key, owners, shard) for key in found]
        return rows.filter(pa.array([line not in anew for line in each], pa.bool_()))


def _joined(prints: list[bytes]) -> bytes:
    """Fingerprints as a record carries them: none at all if no key has one."""
    joined = b"\n".join(prints)
    return joined if joined.strip(b"\n") else b""


def _keys_of(rows: pa.Table, scheme: Any) -> Iterator[Any]:
    """The key in each row, as the manifest says where it stands."""
    scheme = scheme if isinstance(scheme, dict) else {}
    named = scheme.get("fields") or [scheme.get("field", "key")]
    columns = [rows.column(name).to_pylist() for name in named]
    each: Iterable[Any] = zip(*columns, strict=True) if "fields" in scheme else columns[0]
    return iter(each)


def _owner(key: Any, owners: set[bytes], shard: Shard) -> bytes:
    """Which of the shard's keys a row belongs to."""
    try:
        line = keys.canonical(key)
    except InvalidKey:
        line = b""
    if line not in owners and isinstance(key, str):
        line = key.encode()  # a tuple that a callable made stands there as its canonical text
    if line not in owners:
        raise CheckpointDamaged(
            f"{shard.path}: it holds a row of {keys.shorten(key)}, which its record does not name",
            files=(shard.path,),
        )
    return line
