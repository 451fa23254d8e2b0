"""The real checkpoint under random commits, crashes, takeovers and damage, with a dict as model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, count, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory import (
    folding,
    holder,
    journal,
    merging,
    repair,
    segments,
    snapshots,
)
from resumable_tasks.checkpoint.directory.compacting import compact
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.folding import Folding
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.merging import Merging
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.form import Job, Opening
from resumable_tasks.checkpoint.store import local
from resumable_tasks.errors import CheckpointDamaged, CheckpointHeld, Fenced
from resumable_tasks.items import keys
from resumable_tasks.items.batch import Batch
from resumable_tasks.items.fingerprints import Changes, digest, to_text
from resumable_tasks.items.keys import KeyScheme
from resumable_tasks.items.plan import Planning
from resumable_tasks.results.rows import table as all_rows
from resumable_tasks.runners.outcome import Done, Failure
from tests.proof.properties import raw

SCHEME = KeyScheme("id")
MANIFEST = Manifest("job", "1", SCHEME.describe(), "one")
ITEMS = 14

IN_COMMIT = (
    "shard.before_put",
    "store.temp_written",
    "store.renamed",
    "shard.written",
    "commit.shard_written",
    "journal.before_create",
    "store.linked",
    "store.created",
    "journal.created",
    "commit.done",
)
IN_MERGE = (
    "shard.before_put",
    "store.temp_written",
    "store.renamed",
    "shard.written",
    "merge.shard_written",
    "journal.before_create",
    "store.linked",
    "store.created",
    "journal.created",
    "merge.done",
)
IN_FOLD = (
    "segment.before_create",
    "store.temp_written",
    "store.linked",
    "store.created",
    "segment.created",
    "segment.deleted",
)
IN_OPEN = (
    "store.temp_written",
    "store.linked",
    "store.created",
    "store.renamed",
    "journal.before_create",
    "journal.created",
    "checkpoint.claimed",
)


# Its bytes say nothing that matters, such as the time.
GZIP_HEAD = 10


class Died(BaseException):
    """The death of the process, in the one that runs the test."""


@contextmanager
def at(point: str, nth: int, act: Callable[[], None]) -> Iterator[None]:
    """Do this at the nth passing of a fault point, with none armed meanwhile."""
    passed = count(1)

    def hook(name: str) -> None:
        if name == point and next(passed) == nth:
            faults.arm(None)
            act()

    faults.arm(hook)
    try:
        yield
    finally:
        faults.arm(None)


def die() -> None:
    raise Died


class Place(local.LocalStore):
    """A store that knows who has its lock, so that a run which dies here can lose it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.owner: Callable[[], None] | None = None
        self.locks: list[Callable[[], None]] = []

    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        release = super().lock(name, steal=steal)
        if release is None:
            return None

        def let_go() -> None:
            release()
            if self.owner is let_go:
                self.owner = None

        self.owner = let_go
        self.locks.append(let_go)
        return let_go


def looks_at_changes(order: list[int]) -> bool:
    """Whether a run takes fingerprints: most do, some do not."""
    return order[0] % 4 > 0


class Driver:
    """One run of the job: its checkpoint, and the batches that it has yet to handle."""

    def __init__(
        self, checkpoint: DirectoryCheckpoint, order: list[int], versions: list[int]
    ) -> None:
        self.checkpoint = checkpoint
        items = [{"id": f"k{n}", "version": versions[n]} for n in order]
        self.planner = checkpoint.planner
        self.batches = self.planner.batches(items)

    def die(self) -> None:
        """What a death does: no more heartbeats, the lock is gone, nothing is cleaned up."""
        hold = self.checkpoint._hold
        hold._stop.set()
        hold._thread.join()
        if hold._release_lock is not None:
            hold._release_lock()
            hold._release_lock = None


class Attempt:
    """A commit that is being tried: what it will have done if it lands."""

    def __init__(self, driver: Driver, batches: list[Batch], how: int, values: Iterator[int]):
        self.rows: dict[str, int] = {}
        self.prints: dict[str, str | None] = {}
        self.again: set[str] = set()
        self.failed: list[str] = []
        self._driver = driver
        self._plan = []
        for number, batch in enumerate(batches):
            # By the bits of ``how``: who writes the shard, whether an item fails, a new column.
            remote, fails, wide = (how >> (3 * number + bit) & 1 for bit in range(3))
            good = batch.keys[1:] if fails else batch.keys
            rows = [{"id": k, "v": next(values)} | ({"w": k} if wide else {}) for k in good]
            self.rows |= {row["id"]: row["v"] for row in rows}
            taken = batch.fingerprints or [None] * len(batch)
            lines = keys.split(batch.lines)
            for row, line, print_ in zip(batch.items, lines, taken, strict=True):
                self.prints[row["id"]] = None if print_ is None else to_text(print_).decode()
                self.check_version(row, print_)
                if line in driver.checkpoint.state.done:
                    self.again.add(row["id"])
            self.failed += batch.keys[:1] if fails else []
            self._plan.append((batch, rows, remote))

    def check_version(self, row: dict[str, Any], taken: int | None) -> None:
        assert taken in (None, digest(row["version"]))

    def settles(self) -> tuple[str, ...]:
        """The tokens of the submissions that it settles."""
        return ()

    def carry_out(self) -> None:
        checkpoint = self._driver.checkpoint
        unit = checkpoint.begin()
        for batch, rows, remote in self._plan:
            good = {row["id"] for row in rows}
            table = pa.Table.from_pylist(rows) if rows else None
            shard = checkpoint.shard_writer()(table, len(rows)) if rows and remote else None
            outcome = Done(
                batch,
                done=keys.join(keys.canonical(key) for key in good),
                completed=len(good),
                unwritten=None if remote else table,
                shard=shard,
                schema=table.schema if table is not None else None,
                failures=tuple(
                    Failure(key, "ValueError", "no luck", 1, batch.id)
                    for key in batch.keys
                    if key not in good
                ),
            )
            unit.add(outcome)
        for token in self.settles():
            unit.settle(token)
        unit.commit()


class CheckpointMachine(RuleBasedStateMachine):
    """``done`` are the rows that were acknowledged, ``maybe`` the commits that died half-way."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="machine-"))
        self.store = Place(self.folder / "checkpoint")
        self.done: dict[str, int] = {}
        self.failed: set[str] = set()
        self.maybe: list[Attempt] = []
        self.current: Driver | None = None
        self.zombies: list[Driver] = []
        self.values = count()
        self.versions = [0] * ITEMS
        self.prints: dict[str, str | None] = {}
        self.ever_anew: set[str] = set()
        self.saved = holder._LOCK_TRIES, holder.BEAT_SECONDS, local._flush
        self.merged = merging.FEWEST, merging.GRACE_SECONDS
        merging.FEWEST, merging.GRACE_SECONDS = 2, 0.0
        self.folded = folding.MOST_RECORDS, folding.FEWEST_AT_FIRST, folding.FEWEST
        folding.MOST_RECORDS = segments.MOST_RECORDS = 5
        folding.FEWEST_AT_FIRST = folding.FEWEST = 2
        self.looked_at = journal.LOOKED_AT_FROM
        journal.LOOKED_AT_FROM = 8
        self.kept = folding._NEWEST, folding.GRACE_SECONDS, segments._IN_A_MEMBER
        folding._NEWEST, folding.GRACE_SECONDS, segments._IN_A_MEMBER = 1, 0.0, 2
        self.saved_snapshots = snapshots._RECORDS, snapshots._FEW_RECORDS
        snapshots._RECORDS, snapshots._FEW_RECORDS = 3, 2
        # Nobody waits here, and the page cache survives this death.
        holder._LOCK_TRIES, holder.BEAT_SECONDS, local._flush = 1, 3600.0, lambda handle: None

    def teardown(self) -> None:
        holder._LOCK_TRIES, holder.BEAT_SECONDS, local._flush = self.saved
        merging.FEWEST, merging.GRACE_SECONDS = self.merged
        folding.MOST_RECORDS, folding.FEWEST_AT_FIRST, folding.FEWEST = self.folded
        segments.MOST_RECORDS = self.folded[0]
        journal.LOOKED_AT_FROM = self.looked_at
        folding._NEWEST, folding.GRACE_SECONDS, segments._IN_A_MEMBER = self.kept
        snapshots._RECORDS, snapshots._FEW_RECORDS = self.saved_snapshots
        faults.arm(None)
        for driver in (*self.zombies, *filter(None, [self.current])):
            driver.die()
        for let_go in self.store.locks:
            let_go()
        shutil.rmtree(self.folder)

    # Opening

    orders = st.permutations(range(ITEMS))
    sizes = st.integers(1, 5)
    hows = st.integers(0, 2**9 - 1)
    some = st.integers(1, 3)

    def _open(self, order: list[int], batch_size: int, *, takeover: bool) -> Driver:
        before = len(self.store.locks)
        changes = Changes("version") if looks_at_changes(order) else None
        try:
            checkpoint = DirectoryCheckpoint.open(
                self.store,
                MANIFEST,
                Job("job", "1", "one", Planning("id", batch_size, changes=changes)),
                Opening(takeover=takeover),
            )
        except Died:
            for release in self.store.locks[before:]:
                release()
            raise
        return Driver(checkpoint, order, self.versions)

    def _enter(self, driver: Driver) -> None:
        """Of two drivers the one with the higher epoch drives; the other is a zombie."""
        if self.current is None:
            self.current = driver
        elif driver.checkpoint.state.epoch > self.current.checkpoint.state.epoch:
            self.zombies.append(self.current)
            self.current = driver
        else:
            self.zombies.append(driver)

    @rule(order=orders, size=sizes, takeover=st.booleans())
    def open(self, order: list[int], size: int, takeover: bool) -> None:
        if self.store.owner and not takeover:
            before = raw.files(self.store.root)
            with pytest.raises(CheckpointHeld):
                self._open(order, size, takeover=False)
            assert raw.files(self.store.root) == before
        else:
            self._enter(self._open(order, size, takeover=takeover))

    @rule(order=orders, size=sizes, point=st.sampled_from(IN_OPEN), nth=st.integers(1, 4))
    def die_in_open(self, order: list[int], size: int, point: str, nth: int) -> None:
        try:
            with at(point, nth, die):
                driver = self._open(order, size, takeover=True)
        except Died:
            if self.current is not None and self._epochs()[-1:] != [self._epoch_of(self.current)]:
                self.zombies.append(self.current)  # the claim has landed
                self.current = None
        else:
            self._enter(driver)

    @rule(
        order=orders,
        size=sizes,
        point=st.sampled_from(IN_OPEN),
        nth=st.integers(1, 3),
        how=hows,
        commits=st.booleans(),
    )
    def overtaken_in_open(
        self, order: list[int], size: int, point: str, nth: int, how: int, commits: bool
    ) -> None:
        """Another run opens, and may commit, while this one is opening."""
        late: list[Attempt] = []

        def overtake() -> None:
            other = self._open(order[::-1], 3, takeover=True)
            self._enter(other)
            batches = list(islice(other.batches, 1))
            if not batches:
                return
            attempt = Attempt(other, batches, how, self.values)
            if commits:
                self._settle(attempt)
            else:
                late.append(attempt)

        try:
            with at(point, nth, overtake):
                driver = self._open(order, size, takeover=True)
        except CheckpointHeld as error:  # it saw in time that it comes too late
            held = error
        else:
            self._enter(driver)
            held = None
        assert not isinstance(held, Fenced)
        for attempt in late:
            if attempt._driver is self.current:
                self._settle(attempt)

    def _epochs(self) -> list[int]:
        return [head["epoch"] for head in raw.read(self.store.root).heads]

    @staticmethod
    def _epoch_of(driver: Driver) -> int:
        return driver.checkpoint.state.epoch

    # Committing

    def _attempt(self, number: int, how: int) -> Attempt | None:
        assert self.current is not None
        batches = list(islice(self.current.batches, number))
        return Attempt(self.current, batches, how, self.values) if batches else None

    def _settle(self, attempt: Attempt) -> None:
        attempt.carry_out()
        self._acknowledge(attempt)

    def _acknowledge(self, attempt: Attempt) -> None:
        assert attempt.rows.keys() & self.done.keys() <= attempt.again
        self._note(attempt)
        self.failed = (self.failed - attempt.rows.keys()) | set(attempt.failed)

    @rule(which=st.sets(st.integers(0, ITEMS - 1), min_size=1, max_size=4))
    def items_change(self, which: set[int]) -> None:
        """For the runs that begin from now on."""
        self.versions = [v + (n in which) for n, v in enumerate(self.versions)]

    @precondition(lambda self: self.current)
    @rule(number=some, how=hows)
    def commit(self, number: int, how: int) -> None:
        if attempt := self._attempt(number, how):
            self._settle(attempt)

    @precondition(lambda self: self.current)
    @rule(number=some, how=hows, point=st.sampled_from(IN_COMMIT), nth=st.integers(1, 3))
    def die_in_commit(self, number: int, how: int, point: str, nth: int) -> None:
        attempt = self._attempt(number, how)
        driver = self.current
        if attempt is None or driver is None:
            return
        try:
            with at(point, nth, die):
                self._settle(attempt)
        except Died:
            self.maybe.append(attempt)
            driver.die()
            self.current = None

    @precondition(lambda self: self.current)
    @rule(
        number=some,
        how=hows,
        point=st.sampled_from(IN_COMMIT),
        nth=st.integers(1, 2),
        order=orders,
        other=st.sampled_from(["opens", "commits", "dies before its claim", "repairs"]),
    )
    def overtaken_in_commit(
        self, number: int, how: int, point: str, nth: int, order: list[int], other: str
    ) -> None:
        """Another run does something in the middle of this one's commit."""
        attempt = self._attempt(number, how)
        first = self.current
        if attempt is None or first is None:
            return

        def overtake() -> None:
            if other == "repairs":
                self._free_the_lock()
                repair.repair(self.store)
                return
            if other == "dies before its claim":
                try:
                    with at("journal.before_create", 1, die):
                        self._open(order, 2, takeover=True)
                except Died:
                    return
            driver = self._open(order, 2, takeover=True)
            self._enter(driver)
            batches = list(islice(driver.batches, 2)) if other == "commits" else []
            if batches:
                self._settle(Attempt(driver, batches, how >> 1, self.values))

        try:
            with at(point, nth, overtake):
                attempt.carry_out()
        except Fenced:
            self._bury(first)
        else:
            self._acknowledge_late(attempt)

    # Merging and folding: what a run does about its small files

    kinds = st.sampled_from([Merging, Folding])
    points = st.one_of(
        st.tuples(st.just(Merging), st.sampled_from(IN_MERGE)),
        st.tuples(st.just(Folding), st.sampled_from(IN_FOLD)),
    )

    @staticmethod
    def _tidy(driver: Driver, kind: type) -> None:
        for files in driver.checkpoint._small_files:
            if isinstance(files, kind):
                files._looked_at = -100
                files.step(lambda: False)
                files.step(lambda: False)

    @precondition(lambda self: self.current)
    @rule(kind=kinds)
    def tidy(self, kind: type) -> None:
        assert self.current is not None
        self._tidy(self.current, kind)

    @precondition(lambda self: self.current)
    @rule(point=points, nth=st.integers(1, 2))
    def die_in_tidying(self, point: tuple[type, str], nth: int) -> None:
        driver = self.current
        assert driver is not None
        try:
            with at(point[1], nth, die):
                self._tidy(driver, point[0])
        except Died:
            driver.die()
            self.current = None

    @precondition(lambda self: self.current)
    @rule(
        point=points,
        order=orders,
        how=hows,
        other=st.sampled_from(["opens", "commits", "merges", "folds", "repairs", "compacts"]),
    )
    def overtaken_in_tidying(
        self, point: tuple[type, str], order: list[int], how: int, other: str
    ) -> None:
        """Another run does something in the middle of what this one does about its files."""
        first = self.current
        assert first is not None

        def overtake() -> None:
            if other in ("repairs", "compacts"):
                self._free_the_lock()
                (repair.repair if other == "repairs" else compact)(self.store)
                return
            driver = self._open(order, 2, takeover=True)
            self._enter(driver)
            batches = list(islice(driver.batches, 2)) if other == "commits" else []
            if batches:
                self._settle(Attempt(driver, batches, how, self.values))
            elif other in ("merges", "folds"):
                self._tidy(driver, Merging if other == "merges" else Folding)

        try:
            with at(point[1], 1, overtake):
                self._tidy(first, point[0])
        except Fenced:
            self._bury(first)
        else:
            if first is self.current and max(self._epochs()) > self._epoch_of(first):
                self.zombies.append(first)  # it does not know yet
                self.current = None

    @precondition(lambda self: self.zombies)
    @rule(which=st.integers(0, 9), kind=kinds)
    def a_zombie_tidies(self, which: int, kind: type) -> None:
        zombie = self.zombies[which % len(self.zombies)]
        before = raw.records(self.store.root)
        try:
            self._tidy(zombie, kind)
        except Fenced:
            self._bury(zombie)
        assert raw.records(self.store.root) == before

    @precondition(lambda self: self.done and self.current is None)
    @rule(point=st.sampled_from(("", *IN_MERGE, *IN_FOLD)))
    def compact(self, point: str) -> None:
        if self.store.owner:
            with pytest.raises(CheckpointHeld):
                compact(self.store)
            return
        before = len(self.store.locks)
        try:
            with at(point, 1, die):
                compact(self.store)
        except Died:
            for release in self.store.locks[before:]:
                release()

    def _acknowledge_late(self, attempt: Attempt) -> None:
        """It came back as committed: then it was so before the other began, or the other died."""
        self.failed = set(raw.read(self.store.root).failed)
        twice = (attempt.rows.keys() & self.done.keys()) - attempt.again - self.ever_anew
        assert not twice, f"two drivers were told that they had completed {twice}"
        self._note(attempt)

    def _note(self, attempt: Attempt) -> None:
        """Its rows stand, but where the other run has done an item again since."""
        for key, value in attempt.rows.items():
            if value > self.done.get(key, -1):
                self.done[key], self.prints[key] = value, attempt.prints[key]
        self.ever_anew |= attempt.again & attempt.rows.keys()

    @precondition(lambda self: self.zombies)
    @rule(which=st.integers(0, 9), number=some, how=hows)
    def a_zombie_wakes_up(self, which: int, number: int, how: int) -> None:
        zombie = self.zombies[which % len(self.zombies)]
        batches = list(islice(zombie.batches, number))
        before = raw.records(self.store.root)
        if batches:
            try_it = Attempt(zombie, batches, how, self.values).carry_out
        else:
            try_it = partial(zombie.checkpoint.end, "done", {})
        with pytest.raises(Fenced):
            try_it()
        self._bury(zombie)
        assert raw.records(self.store.root) == before

    def _bury(self, driver: Driver) -> None:
        driver.die()
        if driver is self.current:
            self.current = None
        else:
            self.zombies.remove(driver)

    @precondition(lambda self: self.current)
    @rule(says_so=st.booleans())
    def end(self, says_so: bool) -> None:
        driver, self.current = self.current, None
        assert driver is not None
        if says_so:
            adopted = driver.planner.adopted
            driver.checkpoint.end("done", {})
            prints = adopted.fingerprints.decode().split("\n")
            for key, text in zip(keys.parse_lines(bytes(adopted.lines)), prints, strict=False):
                self.failed.discard(key)
                self.prints[key] = text or self.prints[key]
        driver.checkpoint.close()

    # Damage

    @precondition(lambda self: self.done)
    @rule(
        hits=st.lists(
            st.tuples(
                st.integers(0, 10**6),
                st.sampled_from(["flip", "cut", "delete", "grow", "swap"]),
                st.integers(0, 10**6),
                st.integers(1, 255),
            ),
            min_size=1,
            max_size=3,
        )
    )
    def damage_and_repair(self, hits: list[tuple[int, str, int, int]]) -> None:
        if self.current is not None:
            self.current.die()
            self.current = None
        self._free_the_lock()
        before = self._read()
        hit = self._damage(before, hits)
        there = self._numbers()
        last = max(there, default=-1)
        gone = {before.files[n] for n in range(last + 1, len(before.heads))}
        if gone:  # which is why the journal must never be cut: nobody can tell, nor be fenced
            while self.zombies:
                self._bury(self.zombies[0])
            # But where a snapshot can, as `test_snapshots` shows.
            shutil.rmtree(self.store.root / snapshots.FOLDER, ignore_errors=True)
        found = {damage.file for damage in repair.verify(self.store).damages}
        # Whose record is hit or lost as well, of that shard nobody knows any more.
        known = {
            n
            for n, name in enumerate(before.files)
            if not {name, raw.record(n)} & (found | hit.keys())
        }
        named = {path for path, number in before.named.items() if number in known}
        visible = {name for name in hit.keys() - gone if name in named or name[0] == "j"}
        for name in [name for name in visible if hit[name] == "delete" and raw.segment(name)]:
            visible.remove(name)  # of what is not there nobody knows the name
            missing = set(raw.segment(name) or ()) - there
            hit |= dict.fromkeys(map(raw.record, missing), "delete")
            visible |= {raw.record(n) for n in missing if n < last}
        assert found >= visible, f"{visible - found} went unnoticed"
        # What a snapshot stands for is read by nobody but `verify`.
        shutil.rmtree(self.store.root / snapshots.FOLDER, ignore_errors=True)
        self._refuses_to_open({name: hit[name] for name in visible})
        report = repair.repair(self.store)
        assert {damage.file for damage in report.damages} == found
        assert repair.verify(self.store).damages == []
        after = raw.read(self.store.root)
        # A damaged segment does not cost all of its records.
        cost = {
            n
            for n, name in enumerate(before.files)
            if name in hit and (not raw.segment(name) or after.heads[n]["kind"] == "lost")
        }
        must = {key for key in before.owner if before.owner[key] in cost or before.home[key] in hit}
        # Where a record of an earlier repair is lost, what was redone since is there twice.
        kinds = {before.heads[n]["kind"] for n in cost}
        # Where that of a merge is, its parts count again, which may have been swept.
        merged = {key for key, each in before.merges.items() if each & cost}
        may = set(before.owner) if "repair" in kinds else must | merged
        lost = before.rows.keys() - after.rows.keys()
        assert lost <= may, f"the repair has cost {lost - may}, which no damage had hit"
        # Where a record is lost that had superseded others, those count again.
        back = must & after.rows.keys()
        # A merge that had died before its record has the rows of a damaged shard; a repair that
        # looks for shards whose records were lost finds it, and records it.
        old = set(range(len(before.heads)))
        saved = {key for key in back if after.merges.get(key, set()) - old}
        assert all(after.rows[key] == before.rows[key] for key in saved)
        back -= saved
        assert not {
            key
            for key in back - merged
            if before.home[key] in hit and before.owner[key] not in cost
        }, "a key whose rows are damaged is still done"
        assert all(after.owner[key] < before.owner[key] for key in back - merged)
        assert all(after.rows[key] <= self.done[key] for key in back)
        self.done = {key: value for key, value in self.done.items() if key not in lost}
        self.done |= {key: after.rows[key] for key in back}
        # An adoption may have been lost with its record.
        self.prints |= {key: after.prints.get(key) for key in self.done}
        self.failed = set(after.failed)

    def _damage(self, before: raw.Raw, hits: list[tuple[int, str, int, int]]) -> dict[str, str]:
        root = self.store.root
        names = [*dict.fromkeys(before.files), *before.shards]
        hit: dict[str, str] = {}
        for which, how, place, mask in hits:
            name = names[which % len(names)]
            if name in hit:
                continue
            path = root / name
            data = path.read_bytes()
            # The bytes of a segment, and how many they are, differ from one try to the next: what
            # a hit does must not.
            here = len(data) * place // (10**6 + 1)
            if how == "flip":
                if raw.segment(name):
                    here = GZIP_HEAD + place % 64
                path.write_bytes(data[:here] + bytes([data[here] ^ mask]) + data[here + 1 :])
            elif how == "cut":
                path.write_bytes(data[:here])
            elif how == "grow":
                path.write_bytes(data + bytes([mask]))
            elif how == "swap":
                other = names[place % len(names)]
                if other in hit or other == name:
                    continue
                path.write_bytes((root / other).read_bytes())
            else:
                path.unlink()
            hit[name] = how
        return hit

    def _numbers(self) -> set[int]:
        """The numbers of the records that are there by their files' names."""
        names = [path.name for path in (self.store.root / "journal").glob("[!.]*")]
        each = [raw.segment(name) or [int(name.removesuffix(".jsonl"))] for name in names]
        return set(chain.from_iterable(each))

    def _refuses_to_open(self, hit: dict[str, str]) -> None:
        """But for what only reading every byte can find."""
        visible = [
            name
            for name, how in hit.items()
            if not (name.startswith("shards/") and how in ("flip", "swap"))
        ]
        if visible:
            before = raw.files(self.store.root)
            with pytest.raises(CheckpointDamaged, match="resumable repair") as caught:
                self._open(list(range(ITEMS)), 3, takeover=False)
            assert caught.value.files
            assert raw.files(self.store.root) == before

    def _free_the_lock(self) -> None:
        """As if whoever has it were on a machine that this one's locks do not reach."""
        if self.store.owner:
            self.store.owner()

    # What always holds

    def _read(self) -> raw.Raw:
        """The files, with the commits that died half-way found whole or not at all."""
        found = raw.read(self.store.root)
        for attempt in self.maybe:
            landed = attempt.rows.items() & found.rows.items()
            assert len(landed) in (0, len(attempt.rows)), "half a commit is there"
            if landed:
                self._note(attempt)
        self.failed = set(found.failed) if self.maybe else self.failed
        self.maybe = []
        return found

    @invariant()
    def the_files_hold_each_acknowledged_row_once(self) -> None:
        if (self.store.root / "job.json").exists() and (self.store.root / "journal").exists():
            found = self._read()
            assert found.rows == self.done
            assert found.prints == {key: self.prints[key] for key in self.done if self.prints[key]}
            assert set(found.failed) == self.failed

    @invariant()
    def the_library_reads_what_the_files_say(self) -> None:
        if not (self.store.root / "job.json").exists():
            return
        _, state = read_checkpoint(self.store)
        assert len(state.done) == len(self.done)
        for key in self.done:
            print_ = int(self.prints[key] or "-1", 16)
            assert state.done.get(keys.canonical(key)) == print_, key
        assert set(state.failures) == {keys.canonical(key) for key in self.failed}
        if state.schema:
            table = DirectoryReader(self.store).read(all_rows)
            found = zip(*(table.column(name).to_pylist() for name in ("id", "v")), strict=True)
            assert sorted(found) == sorted(self.done.items())
