"""One rule of the protocol switched off at a time, by a patch, in a child.

Each is a mistake that a later change could make. `test_mutants` holds that each is found out.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from resumable_tasks.checkpoint.directory import folding, journal, merging, records, shards
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.store import local
from resumable_tasks.checkpoint.store.base import CreateUnknown
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.engine import feeder

MUTANTS: dict[str, Callable[[], None]] = {}


def mutant(patch: Callable[[], None]) -> Callable[[], None]:
    MUTANTS[patch.__name__] = patch
    return patch


@mutant
def commit_before_the_shard_is_durable() -> None:
    put, append = LocalStore.put, Journal.append
    late: list[tuple[Any, ...]] = []

    def later(self: LocalStore, name: str, data: Any) -> None:
        if name.startswith(shards.FOLDER):
            late.append((self, name, bytes(data)))
        else:
            put(self, name, data)

    def first(self: Journal, commit: Commit, **how: Any) -> Commit:
        done = append(self, commit, **how)
        while late:
            put(*late.pop())
        return done

    LocalStore.put, Journal.append = later, first  # type: ignore[method-assign]


@mutant
def create_by_looking_and_replacing() -> None:
    from resumable_tasks.base.faults import fault_point

    def create(self: LocalStore, name: str, data: bytes) -> bool:
        if self._has(name):
            return False
        with self._in(name) as (folder, base):
            temp = self._write_temp(folder, base, data)
            fault_point("store.temp_written")
            os.replace(temp, base, src_dir_fd=folder, dst_dir_fd=folder)
            os.fsync(folder)
        return True

    LocalStore.create = create  # type: ignore[method-assign]


@mutant
def sweep_before_the_claim() -> None:
    claim, sweep = DirectoryCheckpoint._claim, DirectoryCheckpoint._sweep

    def first(self: DirectoryCheckpoint, *about: Any) -> None:
        self.state.epoch += 1
        sweep(self, self.store.list(shards.FOLDER))
        self.state.epoch -= 1
        claim(self, *about)

    DirectoryCheckpoint._claim = first  # type: ignore[method-assign]


@mutant
def sweep_whatever_the_epoch() -> None:
    def sweep(self: DirectoryCheckpoint, there: object) -> None:
        for path in self.store.list(shards.FOLDER):
            if path not in self.state.shards:
                self.store.delete(path)
        self.store.sweep(shards.FOLDER, lambda _: True)

    DirectoryCheckpoint._sweep = sweep  # type: ignore[method-assign]


@mutant
def no_sweep() -> None:
    DirectoryCheckpoint._sweep = lambda self, there: None  # type: ignore[method-assign]


@mutant
def files_are_not_flushed() -> None:
    def folders_are(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            os.fsync(handle)

    local._flush = folders_are


def _folder_is_not_flushed(name: str) -> None:
    flush = local._flush

    def others_are(handle: int) -> None:
        if os.path.basename(os.readlink(f"/proc/self/fd/{handle}")) != name:
            flush(handle)

    local._flush = others_are


@mutant
def shards_folder_is_not_flushed() -> None:
    _folder_is_not_flushed("shards")


@mutant
def journal_folder_is_not_flushed() -> None:
    _folder_is_not_flushed("journal")


@mutant
def checkpoint_folder_is_not_flushed() -> None:
    _folder_is_not_flushed("checkpoint")


@mutant
def new_parents_are_not_flushed() -> None:
    sync = local._sync_folder

    def known(path: str) -> None:
        if "checkpoint" in Path(path).parts:
            sync(path)

    local._sync_folder = known


@mutant
def claim_does_not_raise_the_epoch() -> None:
    append = Journal.append

    def same(self: Journal, commit: Commit, **how: Any) -> Commit:
        return append(self, replace(commit, epoch=1), **how)

    Journal.append = same  # type: ignore[method-assign]


@mutant
def no_claim() -> None:
    def claim(self: DirectoryCheckpoint, *_: Any) -> None:
        self.state.epoch += 1
        self._begin(self.state.last)

    DirectoryCheckpoint._claim = claim  # type: ignore[method-assign]


@mutant
def a_fenced_driver_goes_on() -> None:
    def judge(self: Journal, mine: Commit, other: Commit) -> None:
        self._usable = True
        raise journal.RecordTaken(other)

    append = Journal.append

    def stubborn(self: Journal, commit: Commit, **how: Any) -> Commit:
        while True:
            try:
                return append(self, commit, **how)
            except journal.RecordTaken:
                for _ in self.read_new():
                    pass
                commit = replace(commit, epoch=max(commit.epoch, self._epoch))

    Journal._judge, Journal.append = judge, stubborn  # type: ignore[method-assign]


@mutant
def told_before_it_is_created() -> None:
    create = Journal._create
    late: list[tuple[Any, ...]] = []

    def lazily(self: Journal, commit: Commit, data: bytes) -> None:
        while late:
            create(*late.pop())
        late.append((self, commit, data))
        if commit.kind != "commit":
            create(*late.pop())

    Journal._create = lazily  # type: ignore[method-assign]


@mutant
def an_unknown_create_is_taken_for_done() -> None:
    create = LocalStore.create

    def trusting(self: LocalStore, name: str, data: bytes) -> bool:
        try:
            return create(self, name, data)
        except CreateUnknown:
            return True

    LocalStore.create = trusting  # type: ignore[method-assign]


@mutant
def a_name_that_is_taken_is_taken_for_done() -> None:
    create = LocalStore.create
    LocalStore.create = lambda self, name, data: (  # type: ignore[method-assign]
        create(self, name, data) or name.startswith(records.FOLDER)
    )


def _write_temp(folder: int, base: str, data: bytes, write: Callable[..., None]) -> str:
    temp = f".{base}.{os.urandom(4).hex()}.tmp"
    handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=folder)
    try:
        write(handle, data)
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)
    return temp


@mutant
def a_short_write_is_taken_for_a_whole_one() -> None:
    LocalStore._write_temp = lambda self, folder, base, data: _write_temp(  # type: ignore[method-assign]
        folder, base, data, lambda handle, data: os.write(handle, data) and None
    )


@mutant
def errors_of_write_and_fsync_are_swallowed() -> None:
    def write(handle: int, data: bytes) -> None:
        with contextlib.suppress(OSError):
            os.write(handle, data)

    LocalStore._write_temp = lambda self, folder, base, data: _write_temp(  # type: ignore[method-assign]
        folder, base, data, write
    )


@mutant
def the_record_is_written_in_place() -> None:
    def create(self: LocalStore, name: str, data: bytes) -> bool:
        try:
            handle = os.open(self.root / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            return False
        os.write(handle, data[: len(data) // 2])
        os.write(handle, data[len(data) // 2 :])
        os.fsync(handle)
        os.close(handle)
        self.sync(name.rpartition("/")[0])
        return True

    LocalStore.create = create  # type: ignore[method-assign]


@mutant
def batches_are_out_without_limit() -> None:
    def wait(self: feeder.Feeder, items: int) -> int:
        with self._flight.changed:
            self._flight.batches += 1
            self._flight.items += items
        return 0 if self._stop.begun else items

    feeder.Feeder._wait_for_room = wait  # type: ignore[method-assign]


@mutant
def publish_in_place() -> None:
    from resumable_tasks.base.faults import fault_point
    from resumable_tasks.results import folder

    def exchange(stage: Path, target: Path) -> None:
        target.mkdir(exist_ok=True)
        for path in list(target.iterdir()):
            path.unlink()
        fault_point("publish.exchanged")
        for path in list(stage.iterdir()):
            path.rename(target / path.name)
        stage.rmdir()

    folder.put_in_place = exchange


@mutant
def an_interrupt_is_a_success() -> None:
    from resumable_tasks.task.run import Run

    Run._how = lambda self, result: "done"  # type: ignore[method-assign]


@mutant
def parts_are_deleted_before_their_merge_is_recorded() -> None:
    written = merging.Merging._written

    def early(self: merging.Merging, parts: Any, stop: Any) -> Any:
        shard = written(self, parts, stop)
        self._store.delete_all([part.path for part in parts])
        return shard

    merging.Merging._written = early  # type: ignore[method-assign]


@mutant
def records_are_deleted_before_their_segment_is_there() -> None:
    read = folding._records

    def early(store: Any, there: Any, group: Any) -> Any:
        found = read(store, there, group)
        store.delete_all(list(folding._without_need(found[1])))
        return found

    folding._records = early


@mutant
def files_that_refuse_a_sleeper_are_deleted() -> None:
    folding._without_need = (
        lambda commits: iter(  # type: ignore[assignment]
            [records.record_name(commit.number) for commit in commits[1:]]
        )
    )


@mutant
def a_claim_is_not_looked_for_in_segments() -> None:
    Journal._check_counts = lambda self, commit: None  # type: ignore[method-assign]
