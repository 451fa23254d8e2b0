"""Repairs a damaged checkpoint: first every run is fenced, then damage is moved aside.

``docs/design/0004-repair.md`` has the order of the steps, and why.
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
# A record this far ahead of those before it is a stray file, not the end of a hole.
STRAY = 10_000


@dataclass(frozen=True, slots=True)
class Findings:
    """The readable records of a checkpoint by number, and the names of what is damaged.

    ``converted`` are the records whose line endings were changed; they are readable. ``lost`` are
    the numbers of those that others come in the place of; ``unsound`` are the segments that cannot
    stay.
    """

    manifest: Manifest
    records: dict[int, Commit]
    bad: frozenset[str]
    converted: frozenset[str]
    lost: frozenset[int]
    unsound: frozenset[Segment]


class Repairs:
    """The repairs of what was found, by one run of `repair`."""

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
            self._lost = [0]  # there are shards, so there was a claim
        self._strays = sorted(n for n in numbers if n is not None and n > end)
        # What comes in the place of the lost records, and the journal as it is with that.
        self._substitutes: dict[int, bytes] = {}
        self._records = dict(found.records)
        for number in self._lost:
            self._substitutes[number], self._records[number] = self._substitute(number)
        self._epoch = 0

    def fence(self) -> None:
        """Append a record that no run which is alive has read: none of them commits after it.

        Raises `Fenced` if one of them has committed meanwhile: look again, and try again.
        """
        epoch = max((record.epoch for record in self._records.values()), default=0)
        if self._lost:
            # A lost record may have been a claim: step over every epoch that it can have taken.
            epoch += len(self._lost)
            listed = map(shards.epoch_of, self._store.list(shards.FOLDER))
            epoch = max(epoch, *listed, 0)
        log = Journal(self._store, self._found.manifest.id)
        if self._records:
            log = Journal.after(self._store, self._records[max(self._records)])
        self._epoch = epoch + 1
        log.append(Commit("repair", self._epoch, self._run, info=self._info))

    def carry_out(self) -> None:
        """Move the damage aside. Only after the fence, and only what is older than that.

        Raises `Fenced` if others have taken the checkpoint over since the fence.
        """
        snapshots.forget(self._store)  # what they were made of changes
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
            # As long as they are in the way of a sweep, the journal stays damaged.
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
        if state.epoch > self._epoch:  # a record of an older one would damage the journal
            raise _overtaken(self._store, state.epoch, self._epoch)
        if merges:
            state.apply(log.append(merging.record(self._epoch, self._run, merges, self._info)))
        gone = [shard for path, shard in state.shards.items() if path in self._found.bad]
        if gone or self._lost:
            self._retract(log, state, gone)
        self._move_all([shard.path for shard in gone])
        self._move_all(name for name in layout.odd(self._store) if name not in state.shards)

    def _substitute(self, number: int) -> tuple[bytes, Commit]:
        """The ``lost`` record that comes in the place of this one."""
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
        """Put a ``lost`` record where a damaged one stands, in one step, keeping a copy of it.

        The place is never empty in between, so that no run that sleeps can put its own there. If
        it was empty before, or what stood there could not be copied, a run that is quicker keeps
        it.
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
                f"another run has put record {number} into {self._store.url} meanwhile",
                remedy="Run the same command again",
            )

    def _replace_segment(self, segment: Segment) -> None:
        """Put one of the same records where a damaged segment stands, keeping a copy of it.

        Those that are lost have their substitutes in it. None gets a file of its own again: a run
        that was overtaken can be about to delete that.
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
        """What only lost records have named is no orphan to be swept, but evidence to be kept.

        What is ``wanted`` stays: it is about to be named again.
        """
        named = {shard.path for record in self._records.values() for shard in record.shards}
        named |= wanted
        unnamed = [path for path in self._store.list(shards.FOLDER) if path not in named]
        self._move_all(path for path in unnamed if shards.epoch_of(path) < self._epoch)

    def _retract(self, log: Journal, state: State, gone: list[Shard]) -> None:
        """Say that the keys of these shards are not completed any more. Before they are moved."""
        commits = list(Journal(self._store, self._found.manifest.id).read_new())
        copied = self._copies(commits, state)
        good = [*(shard for shard in state.shards.values() if shard not in gone), *copied.shards]
        gone = [shard for shard in gone if shard.path not in copied.retracted_shards]
        places = supersede.shard_of_each(commits)
        # The record is lost that had handled some keys again, and where their rows were before has
        # been taken back since.
        taken_back = {path for path in places.values() if path and path not in state.shards}
        without = taken_back.union(shard.path for shard in gone)
        commit = Commit(
            kind="repair",
            epoch=self._epoch,
            run=self._run,
            # Not what has been handled again since: its rows are elsewhere.
            retracted=keys.join(key for key, path in places.items() if path in without),
            # A lost record may have been the one that widened the schema.
            schema=_schema(self._store, good),
            info={**self._info, "retracted_shards": [shard.path for shard in gone]},
        )
        if copied.retracted_shards:
            copied.retracted += filter(None, [commit.retracted])
            copied.retracted_shards += commit.info["retracted_shards"]
            commit = copied.added_to(commit, [])
        log.append(commit)

    def _copies(self, commits: Sequence[Commit], state: State) -> supersede.Superseded:
        """The rows of merged shards that also hold those of a lost record, without these."""
        mixed = supersede.with_strangers(commits, state)
        if mixed:
            doubled = supersede.doubled(commits, state)
            mixed = [path for path in mixed if path not in doubled]
        state.epoch = self._epoch  # of the copies, too
        manifest = self._found.manifest.named(state.names)
        return supersede.Superseder(self._store, manifest, state).without_strangers(mixed)

    def _move_all(self, names: Iterable[str]) -> None:
        for name in list(names):
            self._move_aside(name)

    def _move_aside(self, name: str) -> None:
        """Move what has this name, whatever it is; no error if nothing has it."""
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
        safe="Nothing that it has committed was touched",
        remedy="Let it end, and repair again what is then left",
    )


def _schema(store: Store, good: list[Shard]) -> str | None:
    """The unified schema of these shards, read from the files themselves."""
    unified = None
    for shard, rows in zip(good, shards.read_all(store, good), strict=True):
        unified = schemas.unify(unified, rows.schema, shard.path)
    return schemas.schema_to_text(unified) if unified is not None else None
