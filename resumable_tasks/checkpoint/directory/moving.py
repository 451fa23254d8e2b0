"""Repairs a damaged checkpoint: fences every run, then moves damaged files aside.

``docs/design/0004-repair.md`` explains the order of the steps.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass, replace

from resumable_tasks.base.clock import now
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import (
    holder,
    layout,
    lostmerges,
    manifest,
    merging,
    schemas,
    segments,
    shards,
    snapshots,
)
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.records import (
    MOST_BYTES,
    encode,
    read,
    record_name,
    record_number,
    unconverted,
)
from resumable_tasks.checkpoint.directory.segments import Segment, packed, salvaged
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import Fenced
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Shard

FOLDER = "damaged"
# A record this far ahead of the others is a stray file, not the end of a gap.
STRAY = 10_000


@dataclass(frozen=True, slots=True)
class Findings:
    """The readable records of a checkpoint by number, and the names of damaged files.

    ``converted`` are the records whose line endings were changed; they are readable. ``lost`` are
    the numbers of the records to be substituted, ``unsound`` the segments to be replaced.
    """

    manifest: Manifest
    records: dict[int, Commit]
    bad: frozenset[str]
    converted: frozenset[str]
    lost: frozenset[int]
    unsound: frozenset[Segment]


class Repairs:
    """Repairs the damage of these findings, for one run of `repair`."""

    def __init__(self, store: Store, found: Findings, run: str) -> None:
        self._store = store
        self._found = found
        self._run = run
        self._stamp = now().replace(":", "").replace("+0000", "")
        self._info = holder.me(run)
        self._info.pop("run")
        end = max(found.records, default=0) + STRAY
        numbers = {record_number(name) for name in found.bad - found.converted}
        self._lost = sorted(found.lost)
        if JOURNAL in found.bad:
            self._lost = [0]  # shards without a journal: at least the claim is lost
        self._strays = sorted(n for n in numbers if n is not None and n > end)
        # The substitutes of the lost records, and the journal with them.
        self._substitutes: dict[int, bytes] = {}
        self._records = dict(found.records)
        for number in self._lost:
            self._substitutes[number], self._records[number] = self._substitute(number)
        self._epoch = 0

    def fence(self) -> None:
        """Append a record that no live run has read, so that none of them commits after it.

        Raises `Fenced` if a run has committed meanwhile: examine the checkpoint again, then retry.
        """
        epoch = max((record.epoch for record in self._records.values()), default=0)
        if self._lost:
            # A lost record may have been a claim: skip every epoch that it can have taken.
            epoch += len(self._lost)
            listed = map(shards.epoch_of, self._store.list(shards.FOLDER))
            epoch = max(epoch, *listed, 0)
        log = Journal(self._store, self._found.manifest.id)
        if self._records:
            log = Journal.after(self._store, self._records[max(self._records)])
        self._epoch = epoch + 1
        log.append(Commit("repair", self._epoch, self._run, info=self._info))

    def carry_out(self) -> None:
        """Move the damage aside. Call it after `fence`; moves only files older than that record.

        Raises `Fenced` if another run has taken the checkpoint over since the fence.
        """
        snapshots.forget(self._store)  # the records that they summarise change
        disk.prepare(self._store, (FOLDER,))
        if manifest.NAME in self._found.bad:
            self._move_aside(manifest.NAME)
            manifest.put_back(self._store, self._found.manifest)
        for name in sorted(self._found.converted):
            self._store.put(name, unconverted(read(self._store, name)))
        for number in self._strays:
            self._move_aside(record_name(number))
        standing = [self._records[number] for number in sorted(self._records)]
        merges = lostmerges.found_again(
            self._store, self._found.manifest, standing, self._found.bad
        )
        if self._lost:
            # Before the records are replaced: after a crash here the damage still stops any run,
            # and so any sweep of these shards.
            self._keep_unnamed({shard.path for shard, _ in merges})
        replaced = set[int]()
        for segment in sorted(self._found.unsound):
            self._replace_segment(segment)
            replaced.update(segment.numbers)
        for number in self._lost:
            if number not in replaced:
                self._replace_record(number)
        log, state = Journal(self._store, self._found.manifest.id), State(place=self._store.url)
        state.apply_all(log.read_new())
        if state.epoch > self._epoch:  # a record of an older epoch would damage the journal
            raise _overtaken(self._store, state.epoch, self._epoch)
        if merges:
            state.apply(log.append(merging.record(self._epoch, self._run, merges, self._info)))
        gone = [shard for path, shard in state.shards.items() if path in self._found.bad]
        if gone or self._lost:
            self._retract(log, state, gone)
        self._move_all([shard.path for shard in gone])
        self._move_all(name for name in layout.odd(self._store) if name not in state.shards)

    def _substitute(self, number: int) -> tuple[bytes, Commit]:
        """The ``lost`` record that replaces this one."""
        before, after = self._records.get(number - 1), self._records.get(number + 1)
        anchor = self._found.manifest.id
        commit = Commit(
            kind="lost",
            epoch=0,
            run=self._run,
            number=number,
            time=now(),
            nonce=token(8),
            previous=anchor if number == 0 else before.checksum if before else "",
            info={"stands_for": after.previous} if after else {},
        )
        data, checksum = encode(commit)
        return data, replace(commit, checksum=checksum)

    def _replace_record(self, number: int) -> None:
        """Replace a damaged record by a ``lost`` record, in one step, and keep a copy of it.

        The name is never free in between, so no run that wakes up can create its own record there.
        If the record was missing, or could not be copied, a faster run keeps the name.
        """
        name, data = record_name(number), self._substitutes[number]
        size = self._store.list(JOURNAL).get(name, MOST_BYTES)
        if size < MOST_BYTES:
            self._store.put(self._aside(name), read(self._store, name))
            self._store.put(name, data)
            return
        self._move_aside(name)
        if not self._store.create(name, data):
            raise Fenced(
                f"another run has written record {number} of {self._store.url} meanwhile",
                remedy="Run the same command again",
            )

    def _replace_segment(self, segment: Segment) -> None:
        """Replace a damaged segment by one with the same records, and keep a copy of it.

        Lost records have their substitutes in it. No record gets a file of its own again, because
        an overtaken run may be about to delete that file.
        """
        data = next(disk.read_each(self._store, [(segment.name, MOST_BYTES)]))
        pieces = salvaged(self._store, segment, data)[0] | self._substitutes
        others = segments.listed(self._store)
        others.segments = [other for other in others.segments if other != segment]
        elsewhere = [number for number in segment.numbers if number not in pieces]
        found = segments.read(self._store, others, elsewhere)
        pieces |= {number: piece for number, (piece, _) in zip(elsewhere, found, strict=True)}
        if isinstance(data, bytes):
            self._store.put(self._aside(segment.name), data)
        else:
            self._move_aside(segment.name)
        self._store.put(segment.name, packed([pieces[number] for number in segment.numbers]))

    def _keep_unnamed(self, wanted: Set[str]) -> None:
        """Move shards that only lost records named aside, as evidence, out of reach of a sweep.

        Shards in ``wanted`` stay, since a record will name them again.
        """
        named = {shard.path for record in self._records.values() for shard in record.shards}
        named |= wanted
        unnamed = [path for path in self._store.list(shards.FOLDER) if path not in named]
        self._move_all(path for path in unnamed if shards.epoch_of(path) < self._epoch)

    def _retract(self, log: Journal, state: State, gone: list[Shard]) -> None:
        """Record that the keys of these shards are not completed. Call it before they are moved."""
        commits = list(Journal(self._store, self._found.manifest.id).read_new())
        copied = self._copies(commits, state)
        good = [*(shard for shard in state.shards.values() if shard not in gone), *copied.shards]
        gone = [shard for shard in gone if shard.path not in copied.retracted_shards]
        places = supersede.shard_of_each(commits)
        # The record that completed some keys again is lost, and a later one has retracted the
        # shards of their older rows.
        taken_back = {path for path in places.values() if path and path not in state.shards}
        without = taken_back.union(shard.path for shard in gone)
        commit = Commit(
            kind="repair",
            epoch=self._epoch,
            run=self._run,
            # Not keys that were handled again since: their rows are elsewhere.
            retracted=keys.join(key for key, path in places.items() if path in without),
            # A lost record may have widened the schema.
            schema=_schema(self._store, good),
            info={**self._info, "retracted_shards": [shard.path for shard in gone]},
        )
        if copied.retracted_shards:
            copied.retracted += filter(None, [commit.retracted])
            copied.retracted_shards += commit.info["retracted_shards"]
            commit = copied.added_to(commit, [])
        log.append(commit)

    def _copies(self, commits: Sequence[Commit], state: State) -> supersede.Superseded:
        """Copy merged shards that also hold rows of a lost record, without those rows."""
        mixed = supersede.with_strangers(commits, state)
        if mixed:
            doubled = supersede.doubled(commits, state)
            mixed = [path for path in mixed if path not in doubled]
        state.epoch = self._epoch  # which also names the copies
        manifest = self._found.manifest.named(state.names)
        return supersede.Superseder(self._store, manifest, state).without_strangers(mixed)

    def _move_all(self, names: Iterable[str]) -> None:
        for name in list(names):
            self._move_aside(name)

    def _move_aside(self, name: str) -> None:
        """Move whatever has this name to ``damaged``; no error if there is nothing."""
        try:
            if isinstance(self._store, disk.Disk):
                self._store.move(name, self._aside(name))
            else:
                self._store.put(self._aside(name), self._store.read(name))
                self._store.delete(name)
        except FileNotFoundError:
            return

    def _aside(self, name: str) -> str:
        return f"{FOLDER}/{self._stamp}-{name.replace('/', '-')}"


def _overtaken(store: Store, epoch: int, mine: int) -> Fenced:
    return Fenced(
        f"another run has taken {store.url} over, in epoch {epoch} after this repair's {mine}",
        safe="None of its commits was touched",
        remedy="Let it end, then run repair again",
    )


def _schema(store: Store, good: list[Shard]) -> str | None:
    """The unified schema of these shards, read from the files themselves."""
    unified = None
    for shard, rows in zip(good, shards.read_all(store, good), strict=True):
        unified = schemas.unify(unified, rows.schema, shard.path)
    return schemas.schema_to_text(unified) if unified is not None else None
