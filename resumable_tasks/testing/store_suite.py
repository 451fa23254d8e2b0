"""The contract of every store, as a pytest class to inherit from.

::

    class TestMyStore(StoreSuite):
        def make_store(self, tmp_path): return MyStore(tmp_path / "place")
        def oracle(self, store): ...        # reads the medium itself, bypassing the store
        def store_at(self, url): return MyStore(url)

For detailed failures, call ``pytest.register_assert_rewrite(...)`` before the import.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import ResumableTasksError

FOLDERS = ("journal", "shards")
_PROCESSES = 5
_PATIENCE = 60.0


class StoreSuite:
    """The contract of `resumable_tasks.checkpoint.store.base.Store`."""

    half_seen_rounds = 15
    """The number of large values to write while readers look."""
    changing_rounds = 20
    """How often 30 names are created and deleted while readers look."""
    racers = 50
    """The number of creators that race for one name; a multiple of 5."""
    secret = ""
    """A secret with which the stores access their medium; tests check that it does not leak."""
    processes: Any = multiprocessing.get_context("spawn")
    """The context that creates the suite's processes and their shared objects."""
    faults: Sequence[str] = ()
    """The faults that `failing` can cause in the medium, by name."""

    def make_store(self, tmp_path: Path) -> Store:
        """A new store at a place below ``tmp_path`` that does not exist yet."""
        raise NotImplementedError

    def store_at(self, url: str) -> Store:
        """Another store object for the place with this url."""
        raise NotImplementedError

    def oracle(self, store: Store) -> dict[str, bytes]:
        """All names with their bytes, including foreign ones, read bypassing the store."""
        raise NotImplementedError

    def failing(self, store: Store, fault: str, share: float) -> AbstractContextManager[Any]:
        """Within it, requests fail by this fault: the next one (share 0), or this share of all.

        At its end, nothing is still in progress in the medium.
        """
        raise NotImplementedError

    def mark_folders(self, store: Store) -> bool:
        """Put the markers that consoles create for the place and its ``journal`` folder.

        In a bucket these are empty objects whose names end in a slash. Returns False if the medium
        has no such markers.
        """
        return False

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        if "fault" in metafunc.fixturenames:
            metafunc.parametrize("fault", self.faults)

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        store = self.make_store(tmp_path)
        disk.prepare(store, FOLDERS)
        return store

    # Reading and writing

    def test_a_new_place_is_empty_until_something_is_put(self, tmp_path: Path) -> None:
        store = self.make_store(tmp_path)
        assert store.list("") == {}
        assert store.list("journal") == {}
        disk.prepare(store, FOLDERS)
        assert store.list("") == {}
        store.put("job.json", b"{}")
        assert store.list("") == {"job.json": 2}

    @pytest.mark.parametrize("size", [0, 1, 4095, 4096, 3_000_000])
    @pytest.mark.parametrize("name", ["top.json", "journal/0007.jsonl", "shards/e1-a9.parquet"])
    def test_what_was_written_is_read(self, store: Store, name: str, size: int) -> None:
        data = os.urandom(size)
        store.put(name, data)
        assert store.read(name) == data
        assert self.oracle(store) == {name: data}
        other = os.urandom(size)
        created = name.replace(".", "-2.")
        assert store.create(created, other) is True
        assert store.read(created) == other
        assert self.oracle(store) == {name: data, created: other}

    def test_put_takes_a_view_of_bytes(self, store: Store) -> None:
        store.put("shards/a", memoryview(bytearray(b"xabcx"))[1:4])
        assert self.oracle(store) == {"shards/a": b"abc"}

    @pytest.mark.parametrize("code", ["b", "h", "d"])
    def test_put_takes_a_view_of_items_of_any_kind_for_its_bytes(
        self, store: Store, code: str
    ) -> None:
        """Arrow's views have signed bytes."""
        items = array(code, [-1, 0, 1, -100, 100] * 1000)
        store.put("shards/a", memoryview(items))
        assert self.oracle(store) == {"shards/a": items.tobytes()}
        assert store.list("shards") == {"shards/a": len(items.tobytes())}

    @pytest.mark.parametrize("name", ["none", "journal/none", "no-such-folder/none"])
    def test_reading_what_is_not_there(self, store: Store, name: str) -> None:
        with pytest.raises(FileNotFoundError):
            store.read(name)

    def test_put_replaces(self, store: Store) -> None:
        store.put("holder.json", b"a long first value")
        store.put("holder.json", b"short")
        assert store.read("holder.json") == b"short"
        assert self.oracle(store) == {"holder.json": b"short"}

    # Many names at once

    def test_read_all_gives_the_bytes_in_the_order_of_the_names(self, store: Store) -> None:
        names = [f"journal/{number * 37 % 300}" for number in range(300)]
        self._put_all(store, names)
        assert list(store.read_all(names)) == [name.encode() for name in names]
        assert list(store.read_all(iter(names[:3] * 2))) == [n.encode() for n in names[:3] * 2]
        assert list(store.read_all([])) == []

    def test_read_all_names_what_is_missing_in_its_place(self, store: Store) -> None:
        names = [f"journal/{number}" for number in range(100)]
        self._put_all(store, [name for name in names if name != "journal/50"])
        found = store.read_all(names)
        assert [next(found) for _ in range(50)] == [name.encode() for name in names[:50]]
        with pytest.raises(FileNotFoundError):
            next(found)

    def test_read_all_may_be_left_before_its_end(self, store: Store) -> None:
        names = [f"journal/{number}" for number in range(100)]
        self._put_all(store, names)
        found = store.read_all(names)
        assert next(found) == names[0].encode()
        del found
        assert list(store.read_all(names[:2])) == [name.encode() for name in names[:2]]

    def test_delete_all_takes_away_these_names_and_minds_none_that_is_missing(
        self, store: Store
    ) -> None:
        names = [f"shards/{number}" for number in range(2500)]
        there = [names[at] for at in (0, 1, 998, 999, 1000, 1001, 1999, 2000, 2001, -1)]
        self._put_all(store, [*there, "top", "journal/stays"])
        store.delete_all(iter(["no-such-folder/a", *names[1:], "top", "top"]))
        assert self.oracle(store) == {"shards/0": b"shards/0", "journal/stays": b"journal/stays"}
        store.delete_all([])

    def _put_all(self, store: Store, names: Iterable[str]) -> None:
        for name in names:
            store.put(name, name.encode())

    # Put-if-absent

    @pytest.mark.parametrize("first", ["create", "put"])
    def test_a_taken_name_is_left_as_it_is(self, store: Store, first: str) -> None:
        getattr(store, first)("journal/7", b"first")
        for data in (b"second", b"first", b""):
            assert store.create("journal/7", data) is False
            assert self.oracle(store) == {"journal/7": b"first"}

    def test_a_deleted_name_can_be_created_again(self, store: Store) -> None:
        assert store.create("journal/7", b"first")
        store.delete("journal/7")
        assert store.create("journal/7", b"second") is True
        assert self.oracle(store) == {"journal/7": b"second"}

    def test_of_racing_threads_exactly_one_creates_a_name(self, store: Store) -> None:
        for name in (f"journal/{number}" for number in range(10)):
            won = _race(store, name, range(self.racers))
            assert len(won) == 1
            assert self.oracle(store)[name] == _value(won[0])
        assert len(self.oracle(store)) == 10

    def test_of_racing_processes_exactly_one_creates_a_name(self, store: Store) -> None:
        names = [f"journal/{number}" for number in range(20)]
        answers = self.processes.SimpleQueue()
        barrier = self.processes.Barrier(_PROCESSES)
        each = self.racers // _PROCESSES
        processes = [
            self.processes.Process(
                target=_race_in_process,
                args=(store, names, range(at * each, (at + 1) * each), barrier, answers),
            )
            for at in range(_PROCESSES)
        ]
        for process in processes:
            process.start()
        won: dict[str, list[int]] = {name: [] for name in names}
        for _ in processes:
            for name, winners in answers.get().items():
                won[name] += winners
        for process in processes:
            process.join()
        assert {name: len(winners) for name, winners in won.items()} == dict.fromkeys(names, 1)
        assert self.oracle(store) == {name: _value(won[name][0]) for name in names}

    def test_racing_puts_leave_one_of_the_values_whole(self, store: Store) -> None:
        _together([partial(store.put, "holder.json", _value(n)) for n in range(self.racers)])
        assert list(self.oracle(store)) == ["holder.json"]
        assert self.oracle(store)["holder.json"] in {_value(n) for n in range(self.racers)}

    def test_threads_that_write_different_names_do_not_disturb_each_other(
        self, store: Store
    ) -> None:
        wanted = {f"shards/{n}": _value(n) for n in range(self.racers)}
        _together([partial(store.put, name, value) for name, value in wanted.items()])
        assert self.oracle(store) == wanted

    @pytest.mark.parametrize("how", ["put", "put again", "create"])
    def test_nobody_sees_half_a_file(self, store: Store, how: str) -> None:
        size = 4_000_000
        values = [letter * size for letter in (b"a", b"b")]

        def look() -> None:
            for name, length in store.list("shards").items():
                assert length == size, f"{name} was listed with {length} bytes"
                data = store.read(name)
                assert data in values, f"{len(data)} bytes of {name} were read"

        with _meanwhile(look):
            for number in range(self.half_seen_rounds):
                name = "shards/big" if how == "put again" else f"shards/{number}"
                if how == "create":
                    assert store.create(name, values[number % 2])
                else:
                    store.put(name, values[number % 2])

    def test_list_is_not_troubled_by_names_that_come_and_go(self, store: Store) -> None:
        store.put("shards/stays", b"1")
        names = [f"shards/{number}" for number in range(30)]

        def look() -> None:
            assert store.list("shards")["shards/stays"] == 1

        with _meanwhile(look):
            for _ in range(self.changing_rounds):
                for name in names:
                    store.put(name, b"1")
                for name in names:
                    store.delete(name)

    # Listing, deleting, flushing

    def test_list_shows_the_names_of_one_folder_with_their_sizes(self, store: Store) -> None:
        for name, size in {"job.json": 3, "journal/b": 0, "journal/a": 5, "shards/a": 7}.items():
            store.put(name, b"x" * size)
        assert store.list("") == {"job.json": 3}
        assert store.list("journal") == {"journal/a": 5, "journal/b": 0}
        assert store.list("shards") == {"shards/a": 7}
        assert store.list("no-such-folder") == {}

    def test_list_is_whole_whatever_the_number(self, store: Store) -> None:
        names = {f"shards/{number}" for number in range(1_200)}
        for name in names:
            store.put(name, b"")
        assert set(store.list("shards")) == names

    def test_delete_takes_away_one_name_and_minds_none_that_is_missing(self, store: Store) -> None:
        for name in ("a", "journal/a", "shards/a"):
            store.put(name, b"1")
        store.delete("journal/a")
        store.delete("journal/a")
        store.delete("no-such-folder/a")
        assert self.oracle(store) == {"a": b"1", "shards/a": b"1"}
        assert store.list("journal") == {}

    def test_a_store_crosses_to_another_process(self, store: Store) -> None:
        other: Store = pickle.loads(pickle.dumps(store))  # noqa: S301 - made in this line
        assert type(other) is type(store)
        assert other.url == store.url
        assert other.create("journal/a", b"1") is True
        assert store.read("journal/a") == b"1"
        assert store.create("journal/a", b"2") is False

    def test_a_pickle_works_in_another_process_and_holds_no_secret(self, store: Store) -> None:
        store.put("journal/a", b"1")
        if self.secret:
            for shown in (pickle.dumps(store), repr(store).encode(), store.url.encode()):
                assert self.secret.encode() not in shown, "the store shows its secret"
        process = self.processes.Process(target=_work_there, args=(store,))
        process.start()
        process.join(_PATIENCE)
        assert process.exitcode == 0
        assert self.oracle(store) == {"journal/a": b"1", "journal/b": b"2"}

    def test_the_url_leads_back_to_the_place(self, store: Store) -> None:
        store.put("journal/a", b"1")
        assert self.store_at(store.url).read("journal/a") == b"1"

    # Failing requests

    def test_a_create_that_fails_is_settled(self, store: Store, fault: str) -> None:
        with self.failing(store, fault, 0):
            told = _told(partial(store.create, "journal/7", b"mine"))
        there = self.oracle(store).get("journal/7")
        assert told is not False, "nobody else has taken the name"
        assert there in (None, b"mine")
        if told is True:
            assert there == b"mine"
        elif not isinstance(told, CreateUnknown):
            assert there is None, f"{told!r}, and the name is taken"
        assert store.create("journal/7", b"again") is (there is None)

    @pytest.mark.parametrize("data", [b"mine", b"another's"])
    def test_a_create_of_a_taken_name_that_fails_is_never_won(
        self, store: Store, fault: str, data: bytes
    ) -> None:
        """Even if the same bytes are there."""
        store.create("journal/7", b"another's")
        with self.failing(store, fault, 0):
            told = _told(partial(store.create, "journal/7", data))
        assert told is False or isinstance(told, Exception)
        assert self.oracle(store) == {"journal/7": b"another's"}

    def test_of_racers_whose_requests_fail_at_most_one_wins(self, store: Store, fault: str) -> None:
        for name in ("journal/0", "journal/1", "journal/2"):
            told: dict[int, object] = {}

            def create(racer: int, name: str = name, told: dict[int, object] = told) -> None:
                told[racer] = _told(partial(store.create, name, b"%d" % racer))

            with self.failing(store, fault, 0.3):
                _together([partial(create, racer) for racer in range(self.racers)])
            there = self.oracle(store).get(name)
            won = [racer for racer, answer in told.items() if answer is True]
            unknown = [racer for racer, answer in told.items() if isinstance(answer, CreateUnknown)]
            assert len(won) <= 1
            if there is None:
                assert not won
                assert False not in told.values(), "the name was taken, and nobody has it"
            else:
                assert int(there) in (won or unknown)

    def test_what_fails_raises_an_error_of_the_tree_and_what_does_not_is_done(
        self, store: Store, fault: str
    ) -> None:
        names = ["journal/0", "journal/1", "journal/2"]
        values = [name.encode() for name in names]
        self._put_all(store, names)
        calls: dict[str, tuple[Callable[[], object], object]] = {
            "read": (partial(store.read, names[0]), values[0]),
            "read all": (lambda: list(store.read_all(names)), values),
            "list": (partial(store.list, "journal"), dict.fromkeys(names, 9)),
            "put": (partial(store.put, "holder.json", b"new"), None),
            "delete": (partial(store.delete, "shards/none"), None),
            "delete all": (partial(store.delete_all, ["shards/none", "top"]), None),
        }
        told: dict[str, object] = {}
        for what, (call, wanted) in calls.items():
            with self.failing(store, fault, 0):
                told[what] = _told(call)
            assert isinstance(told[what], Exception) or told[what] == wanted, what
        there = self.oracle(store)
        if there.pop("holder.json", None) != b"new":
            assert told["put"] is not None
        assert there == dict(zip(names, values, strict=True))

    def test_markers_of_folders_are_no_files(self, store: Store) -> None:
        if not self.mark_folders(store):
            pytest.skip("this medium has no markers of folders")
        assert store.list("") == {}
        assert store.list("journal") == {}
        assert store.create("journal/a", b"1")
        store.put("job.json", b"{}")
        assert store.list("journal") == {"journal/a": 1}
        assert store.list("") == {"job.json": 2}
        for name in ("journal", "journal/"):
            with pytest.raises(FileNotFoundError):
                store.read(name)


class DiskSuite(StoreSuite):
    """The contract of a store that is also a `resumable_tasks.checkpoint.store.disk.Disk`."""

    def dying_writes(self, store: Store) -> AbstractContextManager[Any] | None:
        """Within it, ``put`` and ``create`` die by a BaseException before the name appears.

        None if this medium has no unfinished writes.
        """
        return None

    def test_prepare_may_be_called_again_and_changes_nothing(self, store: Store) -> None:
        store.put("journal/a", b"1")
        disk.prepare(store, FOLDERS)
        disk.prepare(store, (*FOLDERS, "snapshots"))
        assert self.oracle(store) == {"journal/a": b"1"}

    def test_sync_changes_nothing(self, store: Store) -> None:
        store.put("journal/a", b"1")
        for folder in ("", *FOLDERS):
            disk.sync(store, folder)
        assert self.oracle(store) == {"journal/a": b"1"}

    # The remains of a death

    def _dying(self, store: Store) -> AbstractContextManager[Any]:
        dying = self.dying_writes(store)
        if dying is None:
            pytest.skip("this medium has no unfinished writes")
        return dying

    def _leave_unfinished(self, store: Store, name: str, how: str = "put") -> None:
        died = False
        with self._dying(store):
            try:
                getattr(store, how)(name, b"unfinished")
            except BaseException:  # noqa: BLE001 - stands for the death of a process
                died = True
        assert died, "dying_writes() let the write through"

    @pytest.mark.parametrize("how", ["put", "create"])
    @pytest.mark.parametrize("folder", ["", "journal/"])
    def test_an_unfinished_write_is_neither_listed_nor_read(
        self, store: Store, folder: str, how: str
    ) -> None:
        store.put(f"{folder}b", b"1")
        self._leave_unfinished(store, f"{folder}a", how)
        assert store.list(folder.rstrip("/")) == {f"{folder}b": 1}
        with pytest.raises(FileNotFoundError):
            store.read(f"{folder}a")
        assert store.create(f"{folder}a", b"finished") is True
        assert store.read(f"{folder}a") == b"finished"

    def test_a_put_that_dies_leaves_the_old_value(self, store: Store) -> None:
        store.put("holder.json", b"old")
        self._leave_unfinished(store, "holder.json")
        assert store.read("holder.json") == b"old"

    @pytest.mark.parametrize("folder", ["", "shards/"])
    def test_sweep_removes_the_unfinished_writes_that_are_dead(
        self, store: Store, folder: str
    ) -> None:
        whole = {f"{folder}e1-dead.x": b"1", f"{folder}e2-live.x": b"2"}
        for name, data in whole.items():
            store.put(name, data)
        for name in ("e1-dead.x", "e1-other.x", "e2-live.x"):
            self._leave_unfinished(store, folder + name)
        before = self.oracle(store)
        offered: list[str] = []

        def dead(name: str) -> bool:
            offered.append(name)
            return name.startswith(f"{folder}e1-")

        assert disk.sweep(store, folder.rstrip("/"), lambda name: False) == 0
        assert self.oracle(store) == before
        assert disk.sweep(store, folder.rstrip("/"), dead) == 2
        assert sorted(offered) == [f"{folder}{n}" for n in ("e1-dead.x", "e1-other.x", "e2-live.x")]
        left = self.oracle(store)
        assert left.items() >= whole.items()
        assert len(left) == len(before) - 2
        assert disk.sweep(store, folder.rstrip("/"), dead) == 0

    def test_sweep_of_a_folder_that_is_not_there(self, store: Store) -> None:
        assert disk.sweep(store, "no-such-folder", lambda name: True) == 0

    def test_sweep_never_removes_what_is_finished(self, store: Store) -> None:
        store.put("shards/a", b"1")
        assert store.create("journal/b", b"2")
        assert [disk.sweep(store, folder, lambda name: True) for folder in ("", *FOLDERS)] == [
            0,
            0,
            0,
        ]
        assert self.oracle(store) == {"shards/a": b"1", "journal/b": b"2"}

    # Locks

    def _lock(self, store: Store) -> Callable[[], None]:
        try:
            release = disk.lock(store, "holder.lock")
        except NotImplementedError:
            pytest.skip("this medium has no locks")
        assert release is not None
        return release

    def _lock_in_process(self, store: Store) -> str:
        """Try to take the lock in a process that then ends without releasing it."""
        answers = self.processes.SimpleQueue()
        process = self.processes.Process(target=_try_lock, args=(store, answers))
        process.start()
        answer: str = answers.get()
        process.join()
        return answer

    def test_a_lock_is_held_by_one_until_it_is_released(self, store: Store) -> None:
        release = self._lock(store)
        other = self.store_at(store.url)
        assert disk.lock(store, "holder.lock") is None
        assert disk.lock(other, "holder.lock") is None
        assert self._lock_in_process(store) == "held"
        another = disk.lock(other, "other.lock")
        assert another is not None
        another()
        release()
        again = disk.lock(other, "holder.lock")
        assert again is not None
        again()

    def test_a_lock_dies_with_its_process(self, store: Store) -> None:
        self._lock(store)()
        assert self._lock_in_process(store) == "taken"  # the process has ended since
        self._lock(store)()

    # The place

    def test_archive_moves_everything_aside(self, store: Store) -> None:
        for name in ("job.json", "journal/a", "shards/a"):
            store.put(name, name.encode())
        before = self.oracle(store)
        url = disk.archive(store)
        assert url != store.url
        assert self.oracle(self.store_at(url)) == before
        assert store.list("") == {}
        assert store.list("journal") == {}
        disk.prepare(store, FOLDERS)
        assert store.create("job.json", b"new") is True
        second = disk.archive(store)
        assert second not in (url, store.url)
        assert self.oracle(self.store_at(url)) == before

    def test_discard_sets_everything_aside_to_be_removed(self, store: Store) -> None:
        for name in ("job.json", "journal/a", "shards/a"):
            store.put(name, name.encode())
        before = self.oracle(store)
        gone = disk.discard(store)
        assert {name: gone.read(name) for name in before} == before
        assert (store.list(""), store.list("journal")) == ({}, {})
        disk.prepare(store, FOLDERS)
        assert store.create("job.json", b"new") is True
        assert disk.discarded(store) is False
        # A later process that finds it can continue.
        found = self.store_at(gone.url)
        assert disk.discarded(found) is True
        again = disk.discard(found)
        assert again.url == gone.url
        assert disk.remove(again, FOLDERS) is not isinstance(store, disk.Disk)
        again.delete_all(before)
        assert disk.remove(again, FOLDERS) is True
        assert again.list("journal") == {}
        assert store.read("job.json") == b"new"

    def test_what_is_archived_can_be_discarded(self, store: Store) -> None:
        store.put("job.json", b"old")
        archived = self.store_at(disk.archive(store))
        assert disk.discarded(archived) is False
        gone = disk.discard(archived)
        assert disk.discarded(self.store_at(gone.url)) is True
        assert gone.read("job.json") == b"old"

    def test_pyarrow_finds_the_names_in_the_file_system(self, store: Store) -> None:
        store.put("shards/a", b"data")
        assert isinstance(store, disk.Disk)
        filesystem, root = store.filesystem()
        with filesystem.open_input_file(f"{root}/shards/a") as file:
            assert file.read() == b"data"


def _value(racer: int) -> bytes:
    return b"%d," % racer * 2_000


def _told(call: Callable[[], object]) -> object:
    """The result of a call, or the library's own error that it raises."""
    try:
        return call()
    except ResumableTasksError as error:
        return error


def _work_there(store: Store) -> None:
    assert store.read("journal/a") == b"1"
    assert store.create("journal/a", b"2") is False
    assert store.create("journal/b", b"2") is True


def _race(store: Store, name: str, racers: Iterable[int]) -> list[int]:
    """Let one thread per racer create the name at once. Returns the racers that won."""
    won: SimpleQueue[int] = SimpleQueue()

    def create(racer: int) -> None:
        if store.create(name, _value(racer)) is True:
            won.put(racer)

    _together([partial(create, racer) for racer in racers])
    return [won.get() for _ in range(won.qsize())]


def _together(calls: list[Callable[[], object]]) -> None:
    """Make all these calls at the same time; raises an error that one of them raised."""
    barrier = threading.Barrier(len(calls))
    errors: SimpleQueue[BaseException] = SimpleQueue()

    def run(call: Callable[[], object]) -> None:
        try:
            barrier.wait(_PATIENCE)
            call()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.put(error)

    threads = [threading.Thread(target=run, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not errors.empty():
        raise errors.get()


@contextmanager
def _meanwhile(look: Callable[[], None]) -> Iterator[None]:
    """Within this block, two threads call ``look`` repeatedly; raises what one of them raised."""
    ended = threading.Event()
    errors: SimpleQueue[BaseException] = SimpleQueue()

    def run() -> None:
        try:
            while not ended.is_set():
                look()
        except BaseException as error:  # noqa: BLE001 - raised below
            errors.put(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    if not errors.empty():
        raise errors.get()


def _race_in_process(
    store: Store, names: list[str], racers: range, barrier: Barrier, answers: Any
) -> None:
    won: dict[str, list[int]] = {}
    for name in names:
        barrier.wait(_PATIENCE)
        won[name] = _race(store, name, racers)
    answers.put(won)


def _try_lock(store: Store, answers: Any) -> None:
    answers.put("held" if disk.lock(store, "holder.lock") is None else "taken")
