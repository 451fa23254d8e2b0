"""A checkpoint as one thing: manifest, journal and shards, opened, recovered, added to."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.directory import holder, manifest, outbox, schemas, shards
from resumable_tasks.checkpoint.directory import replace as supersede
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.journal import FOLDER as JOURNAL
from resumable_tasks.checkpoint.directory.journal import Journal, RecordTaken, record_number
from resumable_tasks.checkpoint.directory.manifest import Manifest
from resumable_tasks.checkpoint.directory.pace import spent
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.directory.replace import Superseder
from resumable_tasks.checkpoint.directory.shards import FOLDER as SHARDS
from resumable_tasks.checkpoint.directory.state import State
from resumable_tasks.checkpoint.form import CheckpointForm
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, CheckpointUnusable, UsageError
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Outcome, Shard
from resumable_tasks.task.options import OnVersionChange

if TYPE_CHECKING:
    import pyarrow as pa

_OURS = (manifest.NAME, holder.NAME, holder.LOCK)
_CLAIM_TRIES = 100


def read_manifest(store: Store) -> Manifest:
    """The manifest of the checkpoint at this place.

    Raises `UsageError` if there is no checkpoint, `CheckpointDamaged` with the ways out.
    """
    try:
        return manifest.read(store)
    except FileNotFoundError:
        if store.list(JOURNAL):
            raise _no_manifest() from None
        raise UsageError(
            f"{store.url} is not a checkpoint (it has no {manifest.NAME}); "
            "`resumable ls DIRECTORY` finds those below a directory"
        ) from None
    except CheckpointDamaged as error:
        raise CheckpointDamaged(
            f"{error}. Put it back from a copy; or `resumable reset {shlex.quote(store.url)}` "
            "archives the checkpoint, and the next run starts anew",
            files=error.files,
        ) from error


def read_checkpoint(store: Store) -> tuple[Manifest, State]:
    """What the checkpoint holds, read-only: safe while a run is at work on it.

    Raises `UsageError` if there is no checkpoint, `CheckpointDamaged` if it cannot be read.
    """
    found, state = read_manifest(store), State()
    with RepairHint(store):
        state.apply_all(Journal(store, found.id).read_new())
        supersede.check(store, found, state)
    return found.named(state.names), state


class Checkpoint(CheckpointForm):
    """A checkpoint that this process drives: it alone commits, from one thread at a time.

    Whatever `commit` has returned for is durable. After any exception from `commit` the object
    is of no more use; open the checkpoint again.
    """

    def __init__(
        self,
        store: Store,
        found: Manifest,
        run: str,
        hold: Holder,
        identity: Mapping[str, str] | None = None,
    ) -> None:
        self.store: Store = store
        self.url = store.url
        self.manifest = found
        self.run = run
        self.state = State()
        self.archived: str | None = None
        # The last record before this run's own: by whom and when this was driven before.
        self.before: Commit | None = None
        self._hold = hold
        self._identity = dict(identity or {})
        self._journal = Journal(store, found.id)
        self._epoch = 0
        self._fixed: set[tuple[Any, ...]] = set()
        self._schema: pa.Schema | None = None

    @classmethod
    def open(
        cls,
        store: Store,
        wanted: Manifest,
        *,
        takeover: bool = False,
        on_version_change: OnVersionChange = "error",
        expected: int | None = None,
        max_attempts: int | None = None,
        identity: Mapping[str, str] | None = None,
        fingerprint: Any = None,
    ) -> Checkpoint:
        """Open for writing: create or check the manifest, recover, claim the next epoch, sweep.

        ``expected``: how many items the run has, for those who watch it; None if that is unknown.
        ``max_attempts``: from how many on an item is quarantined, for those who list them.
        ``identity``: by what else this run is known, such as an orchestrator's id of it.
        ``fingerprint``: how fingerprints of items are had, None if they are not.
        Raises `CheckpointHeld`, `CheckpointMismatch`, `CheckpointDamaged`, `CheckpointUnusable`
        or `StoreError`; none of them leaves anything changed but a sign of life.
        """
        _refuse_foreign(store)
        store.prepare((JOURNAL, SHARDS))
        run = secrets.token_hex(6)
        hold = Holder(store, run, identity)
        hold.take(takeover=takeover)
        try:
            if store.list(JOURNAL) and manifest.NAME not in store.list(""):
                raise _no_manifest()
            found = manifest.create_or_read(store, wanted)
            checkpoint = cls(store, found, run, hold, identity)
            checkpoint._recover()
            found = found.named(checkpoint.state.names)
            manifest.check(store, found, wanted)
            version = checkpoint.state.version or found.version
            scheme = checkpoint.state.fingerprint if fingerprint is not None else None
            differs = version not in ("", wanted.version) or scheme not in (None, fingerprint)
            if differs and on_version_change == "restart":
                archived = store.archive()
                hold.release()
                log.info("the checkpoint of version %r was archived to %s", version, archived)
                fresh = cls.open(
                    store,
                    wanted,
                    takeover=takeover,
                    expected=expected,
                    max_attempts=max_attempts,
                    identity=identity,
                    fingerprint=fingerprint,
                )
                fresh.archived = archived
                return fresh
            if on_version_change != "reuse":
                manifest.check_version(store, version, wanted.version)
                manifest.check_fingerprint(store, scheme, fingerprint)
            hold.check()
            checkpoint._claim(wanted, expected, max_attempts, fingerprint)
            checkpoint._sweep()
            return checkpoint
        except BaseException:
            hold.release()
            raise

    def _recover(self) -> None:
        # What a run that died had linked but not flushed is made durable before it is believed.
        self.store.sync(SHARDS)
        self.store.sync(JOURNAL)
        with RepairHint(self.store):
            self.state.apply_all(self._journal.read_new())
            supersede.check(self.store, self.manifest, self.state)
            self._check_shards()

    def _check_shards(self) -> None:
        """Every shard is there and as long as it was; the checksums are for `verify`."""
        there = self.store.list(SHARDS)
        bad = [path for path, shard in self.state.shards.items() if there.get(path) != shard.bytes]
        if bad:
            more = f" and {len(bad) - 1:,} more" if len(bad) > 1 else ""
            what = "is cut or grown" if bad[0] in there else "is missing"
            raise CheckpointDamaged(f"{bad[0]} {what}{more}", files=tuple(bad))

    def _claim(
        self, wanted: Manifest, expected: int | None, max_attempts: int | None, fingerprint: Any
    ) -> None:
        """Enter the next epoch into the journal; from here on every older driver is fenced."""
        info = {**holder.me(self.run), "version": wanted.version, "expected": expected}
        info |= self._identity
        if max_attempts is not None:
            info["max_attempts"] = max_attempts
        info.pop("run")
        if fingerprint is not None:
            info["fingerprint"] = fingerprint
        made = self.manifest
        for _ in range(_CLAIM_TRIES):
            self.manifest, named = manifest.claimed(self.store, made, self.state.names, wanted)
            info |= named
            self.before = self.state.last
            claim = Commit(kind="claim", epoch=self.state.epoch + 1, run=self.run, info=info)
            try:
                claim = self._journal.append(claim)
            except RecordTaken:
                with RepairHint(self.store):
                    self.state.apply_all(self._journal.read_new())
                continue
            self.state.apply(claim)
            self._epoch, self.job = claim.epoch, self.manifest.job
            self._superseder = Superseder(self.store, self.manifest, self.state)
            fault_point("checkpoint.claimed")
            return
        raise CheckpointUnusable(f"{self.store.url}: other runs keep starting; stop them first")

    def _sweep(self) -> None:
        """Remove what crashed runs have left behind. Only after the claim: all of it is dead."""
        epoch, number = self._epoch, self._journal.next_number
        orphans = [
            path
            for path in self.store.list(SHARDS)
            if 0 < shards.epoch_of(path) < epoch and path not in self.state.shards
        ]
        # What workers of older drivers have left, and their leave to go on.
        left = [
            path for path in self.store.list(outbox.FOLDER) if 0 < outbox.epoch_of(path) < epoch
        ]
        for path in (*orphans, *left):
            self.store.delete(path)
        swept = self.store.sweep(SHARDS, lambda path: shards.epoch_of(path) < epoch)
        swept += self.store.sweep(outbox.FOLDER, lambda path: outbox.epoch_of(path) < epoch)
        swept += self.store.sweep(JOURNAL, lambda name: (record_number(name) or 0) < number)
        swept += self.store.sweep("", lambda name: name in (manifest.NAME, holder.NAME))
        if orphans or swept:
            log.info("swept %d orphan shards and %d unfinished writes", len(orphans), swept)

    @property
    def schema(self) -> pa.Schema | None:
        """The schema of all results so far; None before the first row."""
        if self._schema is None and self.state.schema:
            self._schema = schemas.schema_from_text(self.state.schema)
        return self._schema

    def accept(
        self, outcome: Outcome, schema: pa.Schema | None, pending: Sequence[Outcome]
    ) -> tuple[Outcome, pa.Schema | None]:
        """The unified schema with this outcome's rows. Raises `ResultConflict`; changes nothing."""
        current, new = schema if schema is not None else self.schema, outcome.schema
        if new is None or new is current:
            return outcome, current
        unified = schemas.unify(current, new, outcome.batch.id)
        if current is not None and not (unified.equals(current) and unified.equals(new)):
            self._refuse_changes(current, unified, outcome, pending)
        return outcome, unified

    def _refuse_changes(
        self, current: pa.Schema, unified: pa.Schema, outcome: Outcome, pending: Sequence[Outcome]
    ) -> None:
        """A column takes a wider type only where each of its values stays what it is."""
        assert outcome.schema is not None
        batch = outcome.batch.id
        for name in schemas.changed(outcome.schema, unified):
            if not schemas.keeps(self._rows(outcome), name, unified):
                before = current.field(name).type if name in current.names else unified
                raise schemas.conflict(name, before, outcome.schema.field(name).type, batch)
        # All rows are read for it: a type widens seldom, and that it cannot is remembered.
        for name in schemas.changed(current, unified):
            kinds = current.field(name).type, outcome.schema.field(name).type
            waiting = map(self._rows, (before for before in pending if before.schema is not None))
            there = (shards.read(self.store, shard) for shard in self.state.shards.values())
            known = (name, *kinds) in self._fixed
            if known or not all(schemas.keeps(t, name, unified) for t in chain(waiting, there)):
                self._fixed.add((name, *kinds))
                raise schemas.conflict(name, *kinds, batch)

    def _rows(self, outcome: Outcome) -> pa.Table:
        if outcome.shard is not None:
            return shards.read(self.store, outcome.shard)
        assert outcome.table is not None
        return outcome.table

    def commit(
        self,
        outcomes: Sequence[Outcome],
        schema: pa.Schema | None,
        prints: Mapping[bytes, int] | None = None,
    ) -> Commit:
        """Make these outcomes durable in one step; the record that did.

        The rows of local outcomes go into one shard, safe before the record that names it is
        created. ``schema`` is what `accept` gave for the last of them, ``prints`` the fingerprints
        of their items, if any: a key that was completed before then has its new rows in the place
        of its old ones. Raises `CheckpointDamaged` if those are, and what a form's commit raises.
        """
        # Keys stand in the order of their shards, those without rows last.
        remote = [outcome for outcome in outcomes if outcome.shard is not None]
        local = [outcome for outcome in outcomes if outcome.shard is None]
        written: list[Shard] = [o.shard for o in remote if o.shard is not None]
        # As they will be read: so that nothing can go wrong then that has not gone wrong here.
        tables = [schemas.cast(o.table, schema) for o in local if o.table is not None and schema]
        if tables:
            count = sum(outcome.completed for outcome in local)
            written.append(shards.write(self.store, self._epoch, shards.concat(tables), count))
        changed = schema is not None and (self.schema is None or not schema.equals(self.schema))
        commit = Commit(
            kind="commit",
            epoch=self._epoch,
            run=self.run,
            keys=keys.join(o.done for o in (*remote, *local) if o.completed),
            key_count=sum(outcome.completed for outcome in outcomes),
            shards=tuple(written),
            schema=schemas.schema_to_text(schema) if changed and schema is not None else None,
            failures=tuple(failure for outcome in outcomes for failure in outcome.failures),
            info=spent(outcomes),
        )
        if prints:
            with RepairHint(self.store):
                commit = self._superseder.complete(commit, prints, self._journal)
        fault_point("commit.shard_written")
        commit = self._journal.append(commit)
        fault_point("commit.done")
        self.state.apply(commit, own=True)
        if commit.retracted:
            self._superseder.committed(commit)
        if changed:
            self._schema = schema
        return commit

    def shard_writer(self) -> shards.ShardWriter:
        """What a remote worker writes its shards with."""
        return shards.ShardWriter(self.store, self._epoch)

    def outbox(self) -> outbox.Outbox:
        """Where remote workers leave what became of their batches."""
        return outbox.Outbox(self.store, self._epoch)

    def end(self, counts: dict[str, Any], adopted: bytes = b"", prints: bytes = b"") -> None:
        """Enter the end of this run, with its counts, into the journal.

        ``adopted`` are completed keys that stand as they are, ``prints`` their new fingerprints.
        """
        close = Commit(kind="close", epoch=self._epoch, run=self.run, info=counts)
        self._journal.append(replace(close, adopted=adopted, adopted_fingerprints=prints))

    def close(self) -> None:
        """Let go of the checkpoint. Commits nothing; may be called more than once."""
        self._hold.release()


def _refuse_foreign(store: Store) -> None:
    """A folder with other things in it is no place for a checkpoint."""
    try:
        there = store.list("")
    except CheckpointUnusable:
        return  # prepare() says what is wrong
    foreign = sorted(name for name in there if name not in _OURS)
    if foreign and manifest.NAME not in there:
        raise CheckpointUnusable(
            f"{store.url} holds other files ({keys.shorten(foreign[0])}) and is no checkpoint; "
            "name a directory of its own, which need not exist yet"
        )


def _no_manifest() -> CheckpointDamaged:
    return CheckpointDamaged(
        f"{manifest.NAME} is missing, and there is a journal: put it back from a copy, or "
        "`resumable reset` archives the rest and starts anew",
        files=(manifest.NAME,),
    )


class RepairHint:
    """Damage that is found gets the command that mends it."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, CheckpointDamaged):
            raise CheckpointDamaged(
                f"the checkpoint {self._store.url} is damaged: {error}. "
                f"`resumable verify {self._store.url}` lists all damage, `resumable repair "
                f"{self._store.url}` moves it aside; the next run then redoes only those items",
                files=error.files,
            ) from error
