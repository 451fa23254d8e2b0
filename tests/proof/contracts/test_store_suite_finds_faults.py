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
from resumable_tasks.checkpoint.store.base import CreateUnknown
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import CheckpointDamaged, StoreError
from resumable_tasks.testing.store_suite import FOLDERS, DiskSuite
from tests.proof.contracts.disk_stores import OnDisk

FOUND = (AssertionError, pytest.fail.Exception, OSError, CheckpointDamaged)


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


class CountsItems(LocalStore):
    def put(self, name, data):
        super().put(name, bytes(data)[: len(data)])


class TakesViewsForNumbers(LocalStore):
    def put(self, name, data):
        super().put(name, bytes(int(number) & 127 for number in data))


class ReadsInItsOwnOrder(LocalStore):
    def read_all(self, names):
        return map(self.read, sorted(names))


class ReadsFirstThings(LocalStore):
    def read_all(self, names):
        return super().read_all(list(names)[:256])


class ReadsAllOrNothing(LocalStore):
    def read_all(self, names):
        return iter(list(super().read_all(names)))


class PassesOverWhatIsMissing(LocalStore):
    def read_all(self, names):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                yield self.read(name)


class DeletesThousand(LocalStore):
    def delete_all(self, names):
        super().delete_all(list(names)[:1000])


class DeletesUpToWhatIsMissing(LocalStore):
    def delete_all(self, names):
        with contextlib.suppress(FileNotFoundError):
            for name in names:
                os.unlink(self.root / name)


class ShowsMarkers(LocalStore):
    def list(self, folder):
        return super().list(folder) | {folder: 0}


class ReadsMarkers(LocalStore):
    def read(self, name):
        return b"" if name.rstrip("/") == "journal" else super().read(name)


class Failing(LocalStore):
    """Of those below each deals with a create that fails in a way that it should not."""

    broken = False

    def create(self, name, data):
        return self.after_failing(name, data) if self.broken else super().create(name, data)

    def after_failing(self, name, data):
        raise StoreError("the request failed")


class RaisesWhatTheClientRaises(Failing):
    def after_failing(self, name, data):
        raise OSError("the client says so")


class TakesItsOwnForAnothers(Failing):
    def after_failing(self, name, data):
        super(Failing, self).create(name, data)
        return False


class SaysDoneUnasked(Failing):
    def after_failing(self, name, data):
        return True


class SaysFailedThoughDone(Failing):
    def after_failing(self, name, data):
        super(Failing, self).create(name, data)
        raise StoreError("the request failed")


class TakesTheSameBytesForItsOwn(Failing):
    def after_failing(self, name, data):
        return super(Failing, self).create(name, data) or self.read(name) == data


class PutsWhatItIsUnsureOf(Failing):
    def after_failing(self, name, data):
        self.put(name, data)
        raise CreateUnknown("the request failed")


class SaysTakenWhereNothingIs(Failing):
    def after_failing(self, name, data):
        return False


class WhoeverComesWins(Failing):
    def after_failing(self, name, data):
        super(Failing, self).create(name, data)
        return True


class PutsNothing(Failing):
    def put(self, name, data):
        if not self.broken:
            super().put(name, data)


class ListsNothing(Failing):
    def list(self, folder):
        return {} if self.broken else super().list(folder)


class CarriesItsSecret(LocalStore):
    secret = "canary"

    def __reduce__(self):
        return _with_secret, (self.root, self.secret)


def _with_secret(root, secret):
    return CarriesItsSecret(root)


class ShowsItsSecret(LocalStore):
    def __repr__(self):
        return "LocalStore(key='canary')"


_MADE = {}


class WorksInItsOwnProcess(LocalStore):
    def __reduce__(self):
        _MADE[str(self.root)] = self
        return _MADE.__getitem__, (str(self.root),)


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
    (CountsItems, "put_takes_a_view_of_items_of_any_kind_for_its_bytes", "h"),
    (TakesViewsForNumbers, "put_takes_a_view_of_items_of_any_kind_for_its_bytes", "b"),
    (ReadsInItsOwnOrder, "read_all_gives_the_bytes_in_the_order_of_the_names"),
    (ReadsFirstThings, "read_all_gives_the_bytes_in_the_order_of_the_names"),
    (ReadsAllOrNothing, "read_all_names_what_is_missing_in_its_place"),
    (PassesOverWhatIsMissing, "read_all_names_what_is_missing_in_its_place"),
    (DeletesThousand, "delete_all_takes_away_these_names_and_minds_none_that_is_missing"),
    (DeletesUpToWhatIsMissing, "delete_all_takes_away_these_names_and_minds_none_that_is_missing"),
    (DeleteMinds, "delete_all_takes_away_these_names_and_minds_none_that_is_missing"),
    (ShowsMarkers, "markers_of_folders_are_no_files"),
    (ReadsMarkers, "markers_of_folders_are_no_files"),
    (RaisesWhatTheClientRaises, "a_create_that_fails_is_settled", "error"),
    (TakesItsOwnForAnothers, "a_create_that_fails_is_settled", "error"),
    (SaysDoneUnasked, "a_create_that_fails_is_settled", "error"),
    (SaysFailedThoughDone, "a_create_that_fails_is_settled", "error"),
    (
        TakesTheSameBytesForItsOwn,
        "a_create_of_a_taken_name_that_fails_is_never_won",
        "error",
        b"another's",
    ),
    (PutsWhatItIsUnsureOf, "a_create_of_a_taken_name_that_fails_is_never_won", "error", b"mine"),
    (SaysTakenWhereNothingIs, "of_racers_whose_requests_fail_at_most_one_wins", "error"),
    (SaysFailedThoughDone, "of_racers_whose_requests_fail_at_most_one_wins", "error"),
    (WhoeverComesWins, "of_racers_whose_requests_fail_at_most_one_wins", "error"),
    (PutsNothing, "what_fails_raises_an_error_of_the_tree_and_what_does_not_is_done", "error"),
    (ListsNothing, "what_fails_raises_an_error_of_the_tree_and_what_does_not_is_done", "error"),
    (CarriesItsSecret, "a_pickle_works_in_another_process_and_holds_no_secret"),
    (ShowsItsSecret, "a_pickle_works_in_another_process_and_holds_no_secret"),
    (WorksInItsOwnProcess, "a_pickle_works_in_another_process_and_holds_no_secret"),
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
        faults = ("error",)
        secret = "canary"

        @contextlib.contextmanager
        def failing(self, store, fault, share):
            store.broken = True
            try:
                yield
            finally:
                store.broken = False

        def mark_folders(self, store):
            return True

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
