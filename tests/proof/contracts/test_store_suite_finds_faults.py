"""The suite of stores is worth something: each of these stores breaks one promise, and is found."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from resumable_tasks.checkpoint.store import local
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.testing.store_suite import FOLDERS, DiskSuite
from tests.proof.contracts.disk_stores import OnDisk

FOUND = (AssertionError, pytest.fail.Exception, FileNotFoundError, CheckpointDamaged)


class ChecksThenPuts(LocalStore):
    def __reduce__(self):
        return type(self), (self.root,)

    def create(self, name, data):
        if (self.root / name).exists():
            return False
        self.put(name, data)
        return True


class CreateOverwrites(LocalStore):
    def create(self, name, data):
        self.put(name, data)
        return True


class CreateSaysTheNameIsTaken(LocalStore):
    def create(self, name, data):
        super().create(name, data)
        return False


class LoserTakesAll(LocalStore):
    def create(self, name, data):
        if not (won := super().create(name, data)):
            self.put(name, data)
        return won


class WritesInPlace(LocalStore):
    def put(self, name, data):
        with open(self.root / name, "wb") as file:
            file.write(bytes(data[: len(data) // 2]))
            file.flush()
            time.sleep(0.01)
            file.write(bytes(data[len(data) // 2 :]))


_IN_TURN = threading.Lock()


class PutsInTwoSteps(LocalStore):
    def put(self, name, data):
        with _IN_TURN:
            super().put(name, data[: len(data) // 2])
        time.sleep(0.1)  # whoever else puts now comes in between
        with _IN_TURN:
            super().put(name, self.read(name) + bytes(data[len(data) // 2 :]))


class DeletesBeforeItReplaces(LocalStore):
    def put(self, name, data):
        self.delete(name)
        super().put(name, data)


class PutAppends(LocalStore):
    def put(self, name, data):
        old = b""
        with contextlib.suppress(FileNotFoundError):
            old = self.read(name)
        super().put(name, old + bytes(data))


class ReadsNothingAsEmpty(LocalStore):
    def read(self, name):
        try:
            return super().read(name)
        except FileNotFoundError:
            return b""


class ListsUnfinished(LocalStore):
    def list(self, folder):
        prefix = f"{folder}/" if folder else ""
        return {prefix + e.name: e.stat().st_size for e in self._entries(folder) if not e.is_dir()}


class ListsFolders(LocalStore):
    def list(self, folder):
        return super().list(folder) | {
            e.name: 0 for e in self._entries(folder) if e.is_dir() and not folder
        }


class ListsThousand(LocalStore):
    def list(self, folder):
        return dict(list(super().list(folder).items())[:1000])


class ListsNoSizes(LocalStore):
    def list(self, folder):
        return dict.fromkeys(super().list(folder), 0)


class DeleteMinds(LocalStore):
    def delete(self, name):
        os.unlink(self.root / name)


class SweepAsksNobody(LocalStore):
    def sweep(self, folder, dead):
        return super().sweep(folder, lambda name: True)


class SweepNamesNoFolder(LocalStore):
    def sweep(self, folder, dead):
        return super().sweep(folder, lambda name: dead(name.rpartition("/")[2]))


class SweepTakesWhatIsFinished(LocalStore):
    def sweep(self, folder, dead):
        swept = super().sweep(folder, dead)
        for name in filter(dead, self.list(folder)):
            self.delete(name)
            swept += 1
        return swept


class LeavesLitter(LocalStore):
    def create(self, name, data):
        with self._in(name) as (folder, base):
            temp = self._write_temp(folder, base, data)
            local.fault_point("store.temp_written")
            try:
                os.link(temp, base, src_dir_fd=folder, dst_dir_fd=folder)
            except FileExistsError:
                return False
        return True


class LocksNothing(LocalStore):
    def lock(self, name, *, steal=False):
        return lambda: None


class LockOutlivesItsRelease(LocalStore):
    def lock(self, name, *, steal=False):
        release = super().lock(name)
        return release and (lambda: None)


class LocksAllAtOnce(LocalStore):
    def lock(self, name, *, steal=False):
        return super().lock("one.lock")


class ArchiveForgets(LocalStore):
    def archive(self):
        url = super().archive()
        shutil.rmtree(Path(url) / "shards")
        return url


class ArchiveCopies(LocalStore):
    def archive(self):
        target = f"{self.url}.archived-{time.monotonic_ns()}"
        shutil.copytree(self.url, target)
        return target


class ArchiveOverwrites(LocalStore):
    def archive(self):
        target = f"{self.url}.archived"
        shutil.rmtree(target, ignore_errors=True)
        os.rename(self.url, target)
        return target


class Unpicklable(LocalStore):
    def __reduce__(self):
        raise AssertionError("it refuses to be pickled")


class ForgetsItsPlace(LocalStore):
    def __reduce__(self):
        return type(self), (self.root / "elsewhere",)


class PrepareClears(LocalStore):
    def prepare(self, folders):
        shutil.rmtree(self.root, ignore_errors=True)
        super().prepare(folders)


CASES = [
    (ChecksThenPuts, "of_racing_threads_exactly_one_creates_a_name"),
    (ChecksThenPuts, "of_racing_processes_exactly_one_creates_a_name"),
    (CreateOverwrites, "a_taken_name_is_left_as_it_is", "create"),
    (CreateSaysTheNameIsTaken, "a_deleted_name_can_be_created_again"),
    (LoserTakesAll, "a_taken_name_is_left_as_it_is", "put"),
    (LoserTakesAll, "of_racing_threads_exactly_one_creates_a_name"),
    (WritesInPlace, "nobody_sees_half_a_file", "put"),
    (WritesInPlace, "nobody_sees_half_a_file", "put again"),
    (PutsInTwoSteps, "racing_puts_leave_one_of_the_values_whole"),
    (DeletesBeforeItReplaces, "a_put_that_dies_leaves_the_old_value"),
    (PutAppends, "put_replaces"),
    (ReadsNothingAsEmpty, "reading_what_is_not_there", "journal/none"),
    (ListsUnfinished, "an_unfinished_write_is_neither_listed_nor_read", "", "put"),
    (ListsUnfinished, "an_unfinished_write_is_neither_listed_nor_read", "journal/", "create"),
    (ListsFolders, "list_shows_the_names_of_one_folder_with_their_sizes"),
    (ListsThousand, "list_is_whole_whatever_the_number"),
    (ListsNoSizes, "list_shows_the_names_of_one_folder_with_their_sizes"),
    (DeleteMinds, "delete_takes_away_one_name_and_minds_none_that_is_missing"),
    (SweepAsksNobody, "sweep_removes_the_unfinished_writes_that_are_dead", ""),
    (SweepNamesNoFolder, "sweep_removes_the_unfinished_writes_that_are_dead", "shards/"),
    (SweepTakesWhatIsFinished, "sweep_never_removes_what_is_finished"),
    (LeavesLitter, "a_taken_name_is_left_as_it_is", "create"),
    (LocksNothing, "a_lock_is_held_by_one_until_it_is_released"),
    (LockOutlivesItsRelease, "a_lock_is_held_by_one_until_it_is_released"),
    (LocksAllAtOnce, "a_lock_is_held_by_one_until_it_is_released"),
    (ArchiveForgets, "archive_moves_everything_aside"),
    (ArchiveCopies, "archive_moves_everything_aside"),
    (ArchiveOverwrites, "archive_moves_everything_aside"),
    (Unpicklable, "a_store_crosses_to_another_process"),
    (ForgetsItsPlace, "a_store_crosses_to_another_process"),
    (PrepareClears, "prepare_may_be_called_again_and_changes_nothing"),
]


# A test that fails while it holds a lock leaves it to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    ("kind", "test", "arguments"),
    [pytest.param(k, t, a, id=f"{k.__name__}-{n}") for n, (k, t, *a) in enumerate(CASES)],
)
def test_the_suite_finds(kind: type[LocalStore], test: str, arguments, tmp_path: Path) -> None:
    class Suite(OnDisk, DiskSuite):
        def make_store(self, tmp_path):
            return kind(tmp_path / "place")

        def store_at(self, url):
            return kind(url)

    store = kind(tmp_path / "place")
    if "new_place" in test:
        arguments = [tmp_path]
    else:
        store.prepare(FOLDERS)
        arguments = [store, *arguments]
    with pytest.raises(FOUND):
        getattr(Suite(), f"test_{test}")(*arguments)
    gc.collect()
