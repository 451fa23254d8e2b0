"""The driver of a checkpoint directory: opens it, recovers it, and commits to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import replace
from functools import cached_property, partial
from itertools import chain
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.hanging import GaveUp
from resumable_tasks.base.text import command
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import (
    handlers,
    holder,
    keyless,
    layout,
    manifest,
    outbox,
    schemas,
    shards,
    snapshots,
)
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.folding import Folding
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.journal import Journal, RecordTaken
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.merging import Merging
from resumable_tasks.checkpoint.directory.notes import is_note
from resumable_tasks.checkpoint.directory.opening import is_new, look, prepare, read_manifest
from resumable_tasks.checkpoint.directory.outstanding import (
    held_back,
    lost_intents,
    record_of,
    settling,
)
from resumable_tasks.checkpoint.directory.pace import spent
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.records import record_name, record_number
from resumable_tasks.checkpoint.directory.replace import Superseder
from resumable_tasks.checkpoint.directory.schemas import ResultSchema
from resumable_tasks.checkpoint.directory.segments import Listing
from resumable_tasks.checkpoint.directory.segments import listed as listing
from resumable_tasks.checkpoint.directory.shards import FOLDER as SHARDS
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.directory.versions import described_fingerprint, is_for_another
from resumable_tasks.checkpoint.form import Checkpoint, Found, Job, Opening, Receipt, Unit
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointUnusable,
    ResultConflict,
)
from resumable_tasks.items import keys
from resumable_tasks.items.plan import Planning
from resumable_tasks.items.sameness import OfAnotherType, OfTheColumn, OfTheSameKey
from resumable_tasks.items.submission import Out
from resumable_tasks.runners import failures
from resumable_tasks.runners.outcome import Done, Failure, Shard
from resumable_tasks.runners.values.columns import Columns, json_names
from resumable_tasks.runners.values.plaintable import arrow_tables

if TYPE_CHECKING:
    import pyarrow as pa

    from resumable_tasks.checkpoint.estimate import Estimate
    from resumable_tasks.items.submission import Submission, Transition

_CLAIM_TRIES = 100
_AS_IT_COMES = Opening()


def read_checkpoint(store: Store) -> tuple[Manifest, State]:
    """Read the checkpoint's manifest and state; safe while a run is active.

    Raises `UsageError` if there is no checkpoint, `CheckpointDamaged` if it cannot be read.
    """
    found = read_manifest(store)
    state, _ = snapshots.read_state(store, found.id)
    layout.check(store, state.records)
    supersede.check(store, found, state)
    return found.named(state.names), state


class DirectoryCheckpoint(Checkpoint):
    """A checkpoint directory that this process drives: it alone commits, one thread at a time.

    Once a unit's `commit` has returned, its outcomes are durable. After any exception from it this
    object is unusable; open the checkpoint again.
    """

    def __init__(self, store: Store, found: Manifest, job: Job, hold: Holder) -> None:
        self.store = store
        self.url = store.url
        self.manifest = found
        self._first_key = found.key
        self.run = hold.run
        self.state = State(place=store.url)
        self._job = job
        self._hold = hold
        self._journal = Journal(store, found.id)

    @classmethod
    def open(
        cls,
        store: Store,
        wanted: Manifest,
        job: Job | None = None,
        opening: Opening = _AS_IT_COMES,
    ) -> DirectoryCheckpoint:
        """Open for writing: create or check the manifest, recover, claim the next epoch, sweep.

        ``job`` defaults to the job that ``wanted`` names. Raises `CheckpointHeld`,
        `CheckpointMismatch`, `CheckpointDamaged`, `CheckpointUnusable` or `StoreError`; after any
        of them nothing has changed except the heartbeat.
        """
        job = job or Job(wanted.job, wanted.version, "one", Planning())
        prepare(store)
        hold = Holder(store, token(6), opening.identity)
        try:
            new = is_new(store)
            hold.lock(steal=opening.takeover)
            stored, listed = None, Listing()
            if hold.locks or not new:
                # Listed before looking at the holder: a claim that is not in this listing was
                # made by a run that has started since.
                stored, listed = disk.together(store, partial(look, store), partial(listing, store))
            take = partial(hold.take, takeover=opening.takeover, known=len(listed), new=new)
            establish = partial(manifest.establish, store, stored, wanted)
            if new or stored is not None:
                _, found = disk.together(store, take, establish)
            else:  # the run that holds the lock is about to create the manifest
                take()
                found = establish()
            checkpoint = cls(store, found, job, hold)
            there = checkpoint._recover(listed, with_shards=len(listed) > 0 or not new)
            if checkpoint._is_over(wanted):
                hold.release()
                return cls.open(store, wanted, job, opening)
            supersede.check_types(store, checkpoint.url, checkpoint.state, checkpoint._job.columns)
            hold.check()
            checkpoint._claim(wanted, opening)
            checkpoint._sweep(there)
            if snapshots.pays(store, checkpoint.state):
                snapshots.write(store, found.id, checkpoint.state, checkpoint._journal)
            return checkpoint
        except BaseException:
            hold.release()
            disk.let_go(store)
            raise

    def _is_over(self, wanted: Manifest) -> bool:
        """True if a new checkpoint must replace this one, which has been moved out of the way.

        Raises `CheckpointMismatch` and `CheckpointDamaged`.
        """
        found, state = self.manifest.named(self.state.names), self.state
        if state.pruned:
            disk.discard(self.store)
            return True
        if not is_for_another(self.store, found, wanted, state, self._job):
            return False
        from resumable_tasks.checkpoint.directory.archive import archive

        archived = archive(self.store, self.run)
        log.info("the checkpoint of a different job or version was archived to %s", archived)
        return True

    def _recover(self, listed: Listing | None, *, with_shards: bool) -> Mapping[str, int]:
        """Read the journal. Returns the listing of the shards; empty unless ``with_shards``.

        Raises `CheckpointDamaged`, and `CheckpointHeld` if another run has taken over.
        """
        before = ""
        while True:
            try:
                return self._read_all(listed, with_shards=with_shards)
            except CheckpointDamaged as error:
                # A run that has taken over meanwhile may have replaced and swept files that were
                # being read. Real damage shows the same error on the second reading.
                disk.check_place(self.store)
                disk.check_current(self.store)
                self._hold.check()
                if str(error) == before:
                    raise
                before, listed = str(error), None

    def _read_all(self, listed: Listing | None, *, with_shards: bool) -> Mapping[str, int]:
        # A run that died may have linked files without flushing the folders: make them durable
        # before relying on them.
        disk.sync(self.store, SHARDS)
        disk.sync(self.store, JOURNAL)
        there: Mapping[str, int] = {}
        anchor, polite = self.manifest.id, self._hold.polite
        read = partial(snapshots.read_state, self.store, anchor, listed, polite)
        if with_shards:
            found, there = disk.together(self.store, read, partial(self.store.list, SHARDS))
        else:
            found = read()
        self.state, self._journal = found
        layout.check(self.store, self.state.records, shards=bool(there))
        supersede.check(self.store, self.manifest, self.state)
        shards.check_sizes(self.store, self.state.shards.values(), there)
        return there

    def _claim(self, wanted: Manifest, opening: Opening) -> None:
        """Append a claim of the next epoch to the journal, which fences every older driver."""
        me = holder.me(self.run)
        info: dict[str, Any] = {"host": me["host"], "pid": me["pid"], "version": wanted.version}
        info |= {"expected": opening.expected, **opening.identity}
        if self._job.max_attempts is not None:
            info["max_attempts"] = self._job.max_attempts
        if opening.total is not None:
            info["budget"] = opening.total
        described = described_fingerprint(self._job)
        if described is not None:
            info["fingerprint"] = described
        if self._job.origin is not None:
            info["handler"] = handlers.describe(self._job.origin)
        made, same_key = self.manifest, self._job.same_key
        if not self.state.records:
            info["manifest"] = manifest.told(made)
        for _ in range(_CLAIM_TRIES):
            names = self.state.names
            self.manifest, named = manifest.claimed(
                self.store, made, names, wanted, same_key=same_key
            )
            info |= named
            before = self.state.last
            claim = Commit(kind="claim", epoch=self.state.epoch + 1, run=self.run, info=info)
            if opening.given_up():
                raise GaveUp
            began = time.monotonic()
            try:
                claim = self._append(claim)
            except RecordTaken:
                self.state.apply_all(self._hold.polite(self._journal.read_new()))
                if self.state.pruned:
                    from resumable_tasks.checkpoint.directory.archive import pruned

                    raise pruned(self.url) from None
                continue
            seconds = time.monotonic() - began
            self.state.apply(claim)
            self._begin(before, None if isinstance(self.store, disk.Disk) else seconds)
            fault_point("checkpoint.claimed")
            return
        raise CheckpointUnusable(f"{self.store.url}: other runs keep starting; stop them first")

    def _begin(self, before: Commit | None, write_seconds: float | None = None) -> None:
        """Set up planner, counts and schema, once this run is the driver."""
        self.store = disk.patient(self.store)
        self._journal.wait_longer()
        state, job = self.state, self._job
        self.job = self.manifest.job
        self.found = Found(
            len(state.done),
            len(state.failures),
            state.epoch,
            state.pace.cost_each,
            (before.run, before.time) if before is not None else None,
            len(state.parked),
            before.info.get("how") if before is not None and before.kind == "close" else None,
            state.pace.cost,
            state.pace.used,
            state.handlers.edited,
            state.handlers.moved,
            write_seconds,
            state.lately.ended.info.get("learnt") if state.lately.ended is not None else None,
        )
        aside = state.set_aside(job.max_attempts, job.retry_failed)
        self.planner = job.planning.planner(state.done, aside, state.failures)
        if self.submissions:  # their items must not be planned
            self.planner.look_with(OfAnotherType(self.planner.out, "with a service"))
        for lost in lost_intents(state.out.strays, self.url):
            log.warning("%s: %s", self.url, lost)
        if job.same_key and state.done and self._key_has_moved:
            self.planner.look_with(OfTheSameKey(state.done, self.url))
        if state.schema:
            kinds = partial(schemas.kinds_of, state.schema)
            self.planner.look_with(OfTheColumn(state.done, job.planning.scheme, kinds))
        self._superseder = Superseder(self.store, self.manifest, state)
        self._declare(job.columns)

    @property
    def _key_has_moved(self) -> bool:
        """True if no record says yet that this run's key is the checkpoint's."""
        return self.manifest.key not in ("", self.state.names.get("key", self._first_key))

    def _declare(self, columns: Columns) -> None:
        """Give the results these columns, including the rows that are already committed.

        Rows of other types are copied and replaced by one record. Raises `CheckpointMismatch` if a
        value would change.
        """
        state = self.state
        if columns.inferred and not schemas.may_have_json(state.schema):
            self.columns, self._schema = columns, ResultSchema(state.schema)
            return  # spares a run with nothing left to do the loading of Arrow
        stored = schemas.schema_from_text(state.schema) if state.schema else None
        json = columns.json | json_names(stored)
        declared = schemas.declared(stored, columns)
        self.columns = Columns(columns.schema, json)
        self._schema = ResultSchema(state.schema, declared)
        wanted = self._schema.current
        if stored is None or wanted is None or not schemas.differ(stored, wanted):
            return
        try:
            copied = self._superseder.retype(wanted)
        except ResultConflict as error:
            raise supersede.unfit(self.url, error) from error
        text = self._schema.text_if_new(wanted)
        commit = Commit(kind="commit", epoch=state.epoch, run=self.run, schema=text)
        commit = self._append(copied.added_to(commit, []))
        state.apply(commit, own=True)
        self._schema.take(wanted)
        # The retyped rows are in other shards than the old superseder knows.
        self._superseder = Superseder(self.store, self.manifest, state)
        log.info(
            "%s: copying the rows of %s items to the types that schema= and json_columns= give",
            *(self.url, f"{copied.count:,}"),
        )

    def _sweep(self, there: Iterable[str]) -> None:
        """Remove the leftovers of crashed runs. Safe only after the claim, which fences them.

        ``there`` is the earlier listing of the shards. Raises `Fenced` after a reset.
        """
        epoch, number = self.state.epoch, self._journal.next_number
        outboxes: Iterable[str] = ()
        # A reset appends a record first, so before a first claim there was no reset.
        if self.state.records > 1:
            _, outboxes = disk.together(
                self.store,
                partial(disk.check_current, self.store),
                partial(self.store.list, outbox.FOLDER),
            )
        orphans = [
            path
            for path in there
            if 0 < shards.epoch_of(path) < epoch and path not in self.state.shards
        ]
        # The outcomes of older drivers' workers, and the files that let those workers go on.
        left = [path for path in outboxes if 0 < outbox.epoch_of(path) < epoch]
        self.store.delete_all([*orphans, *left])
        swept = disk.sweep(self.store, SHARDS, lambda path: shards.epoch_of(path) < epoch)
        swept += disk.sweep(self.store, outbox.FOLDER, lambda path: outbox.epoch_of(path) < epoch)
        swept += disk.sweep(self.store, JOURNAL, lambda name: (record_number(name) or 0) < number)
        swept += disk.sweep(self.store, snapshots.FOLDER, lambda path: snapshots.at(path) < number)
        ours = (manifest.NAME, holder.NAME)
        swept += disk.sweep(self.store, "", lambda name: name in ours or is_note(name))
        if orphans or swept:
            log.info("swept %d orphan shards and %d unfinished writes", len(orphans), swept)

    def begin(self) -> Unit:
        return DirectoryUnit(self)

    def _widened(
        self, schema: pa.Schema | None, outcome: Done, pending: Sequence[Done]
    ) -> pa.Schema:
        """The schema widened for this outcome's rows. Raises `ResultConflict`; changes nothing.

        A column gets a wider type only if none of its values changes.
        """
        assert outcome.schema is not None
        there = chain(
            (self._rows(before) for before in pending if before.schema is not None),
            shards.read_all(self.store, self.state.shards.values()),
        )
        return self._schema.widened(
            schema, outcome.schema, outcome.batch.id, lambda: self._rows(outcome), there
        )

    def rows_of(self, outcome: Done) -> pa.Table | None:
        return outcome.table if outcome.shard is None else shards.read(self.store, outcome.shard)

    def _rows(self, outcome: Done) -> pa.Table:
        rows = self.rows_of(outcome)
        assert rows is not None
        return rows

    @cached_property
    def submissions(self) -> Sequence[Submission]:  # type: ignore[override]
        """The submissions that earlier runs left with a service."""
        return held_back(self.state, self.planner)

    @property
    def out(self) -> Out:
        there = {each.token: each for each in self.submissions}
        return Out.of(there.get(each.token, each) for each in self.state.out)

    def record(self, transition: Transition) -> None:
        commit = self._append(record_of(transition, self.state.epoch, self.run))
        self.state.apply(commit, own=True)

    def _commit(
        self, outcomes: Sequence[Done], schema: pa.Schema | None, settled: Sequence[str]
    ) -> Receipt:
        """Make these outcomes durable in one step.

        The rows of local outcomes go into one shard, which is durable before the record that names
        it is created. New rows of a completed key replace its old ones. Raises `CheckpointDamaged`
        if the old rows are damaged, and what a unit's commit raises.
        """
        # Keys are in the order of their shards, keys without rows last.
        remote = [outcome for outcome in outcomes if outcome.shard is not None]
        local = [outcome for outcome in outcomes if outcome.shard is None]
        written: list[Shard] = [o.shard for o in remote if o.shard is not None]
        size = sum(shard.bytes for shard in written)
        # Cast now to the schema that readers will use, so a conversion error shows before the
        # commit.
        made = arrow_tables(o.unwritten for o in local if o.unwritten is not None and schema)
        tables = [schemas.cast(table, schema) for table in made]
        if tables:
            count = sum(outcome.completed for outcome in local)
            rows = shards.concat(tables)
            size += rows.nbytes  # not the shard's size: repeated text compresses to almost nothing
            written.append(shards.write(self.store, self.state.epoch, rows, count))
        failed = chain.from_iterable(outcome.failures for outcome in outcomes)
        commit = Commit(
            kind="commit",
            epoch=self.state.epoch,
            run=self.run,
            keys=keys.join(o.done for o in (*remote, *local) if o.completed),
            key_count=sum(outcome.completed for outcome in outcomes),
            shards=tuple(written),
            schema=self._schema.text_if_new(schema),
            failures=failures.add_earlier_attempts(tuple(failed), self.state.failures),
            info=settling(spent(outcomes), settled),
        )
        receipt = Receipt(
            self._journal.next_number,
            commit.key_count,
            sum(shard.rows for shard in written),
            sum(shard.bytes for shard in written),
            size,
            commit.failures,
        )
        taken = {line: each for outcome in outcomes for line, each in _fingerprints(outcome)}
        if taken:
            commit = self._superseder.complete(commit, taken, self._journal)
        fault_point("commit.shard_written")
        commit = self._append(commit)
        fault_point("commit.done")
        self.state.apply(commit, own=True)
        self._superseder.committed(commit)
        self._schema.take(schema)
        return receipt

    def tidy(self, stop: Callable[[], bool]) -> None:
        for files in self._small_files:
            files.step(stop)

    @cached_property
    def _small_files(self) -> tuple[Merging, Folding]:
        merging = Merging(self.store, self.state, self.run, self._append_merge)
        return merging, Folding(self.store, self._journal)

    def _append_merge(self, commit: Commit) -> None:
        commit = self._append(commit, again=True)
        self.state.apply(commit, own=True)
        self._superseder.committed(commit)

    def left_alone(self) -> list[Failure]:
        known = map(self.state.known, self.planner.set_aside_lines)
        return [failure for failure in known if failure is not None]

    def parked(self) -> list[Failure]:
        return list(self.state.parked.values())

    @property
    def redo_hint(self) -> str:
        return command("redo", self.url, "--before", f"{now()[:19]}Z")

    def estimate(self, items: int) -> Estimate:
        return self.state.pace.estimate(items)

    def shard_writer(self) -> shards.ShardWriter:
        """The writer with which a remote worker stores its shards."""
        return shards.ShardWriter(self.store, self.state.epoch)

    def outbox(self) -> outbox.Outbox:
        """The folder in which remote workers leave the outcomes of their batches."""
        return outbox.Outbox(self.store, self.state.epoch)

    def end(self, how: str, counts: Mapping[str, Any]) -> None:
        """Record the end of this run, with its counts, in the journal."""
        adopted = self.planner.adopted
        if adopted.count:
            log.warning(
                "%s items were completed without this kind of fingerprint; they count as unchanged "
                "and are compared from the next run on",
                f"{adopted.count:,}",
            )
        info = {"how": how, **counts, **keyless.told(self.planner.bad)}
        if self._key_has_moved:
            info["names"] = {**self.state.names, "key": self.manifest.key}
        close = Commit(kind="close", epoch=self.state.epoch, run=self.run, info=info)
        texts = bytes(adopted.fingerprints)
        close = replace(close, adopted=bytes(adopted.lines), adopted_fingerprints=texts)
        before = self._journal.next_number
        _, records, there, _ = disk.together(
            self.store,
            partial(self._append, close),
            partial(disk.names, self.store, JOURNAL),
            partial(self.store.list, SHARDS),
            self._hold.look,
        )
        self._check_whole(before, records, there)
        if how != "interrupted":  # an interrupted run must end soon; the next one can do this
            for files in self._small_files:
                files.end()
            snapshots.refresh(self.store, self.manifest.id, self.state, counts.get("completed", 0))

    def _append(self, commit: Commit, *, again: bool = False) -> Commit:
        """Append a record, and verify that it is where readers look for it.

        ``again`` is passed to `Journal.append`. Raises what that raises, `Fenced` if the checkpoint
        was moved away meanwhile, and `CheckpointDamaged` if it was removed or emptied.
        """
        before = self._journal.next_number - 1
        commit = self._journal.append(commit, again=again)
        try:
            layout.check_appended(self.store, commit, before)
        except CheckpointDamaged:
            # It is no damage if a newer run has superseded this run's records while it slept.
            if commit.kind != "claim":
                self._journal.check_not_overtaken(commit)
            raise
        return commit

    def _check_whole(self, count: int, records: Set[str], there: Mapping[str, int]) -> None:
        """Raise `CheckpointDamaged` if a record or shard was removed while this run was at work.

        ``records`` and ``there`` are listings of the moment when there were ``count`` records. It
        is no loss if a newer run has replaced files since this one ended.
        """
        try:
            lost = set(range(count)).difference(Listing.of(records).numbers)
            if lost:  # it may have moved into a segment while they were listed
                lost.difference_update(Listing.of(disk.names(self.store, JOURNAL)).numbers)
            if lost:
                what, name = "it was removed while this run was at work", record_name(min(lost))
                raise CheckpointDamaged(what, files=(name,), place=self.store.url)
            shards.check_sizes(self.store, self.state.shards.values(), there)
        except CheckpointDamaged:
            disk.check_current(self.store)
            if not any(True for _ in self._journal.read_new()):
                raise

    def close(self) -> None:
        """Release the checkpoint. Commits nothing; may be called more than once."""
        self._hold.release()
        disk.let_go(self.store)


class DirectoryUnit(Unit):
    """One record in the making. Writes the rows of local outcomes when it commits."""

    def __init__(self, into: DirectoryCheckpoint) -> None:
        self._into = into
        self._added: list[Done] = []
        self._settled: list[str] = []
        self._schema = into._schema.current

    def add(self, outcome: Done) -> Done:
        new = outcome.schema
        if new is not None and not (self._schema is not None and new.equals(self._schema)):
            self._schema = self._into._widened(self._schema, outcome, self._added)
        self._added.append(outcome)
        return outcome

    def settle(self, token: str) -> None:
        self._settled.append(token)

    def commit(self) -> Receipt:
        return self._into._commit(self._added, self._schema, self._settled)


def _fingerprints(outcome: Done) -> Iterator[tuple[bytes, int]]:
    """Each key of the batch with its item's fingerprint; empty if none are taken."""
    if outcome.batch.fingerprints:
        yield from zip(keys.split(outcome.batch.lines), outcome.batch.fingerprints, strict=True)
