"""The store on a disk keeps the contract of stores, and what is particular to a disk."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import CheckpointUnusable, StoreError
from resumable_tasks.testing.store_suite import FOLDERS, DiskSuite
from tests.proof.contracts.disk_stores import Died, OnDisk, dying_at, raw_files


class TestLocalStore(OnDisk, DiskSuite):
    def test_files_and_folders_are_private(self, store: Store) -> None:
        old = os.umask(0)
        try:
            store.prepare((*FOLDERS, "snapshots"))
            store.put("a", b"1")
            store.create("journal/a", b"1")
            store.lock("holder.lock")()
            with contextlib.suppress(Died), dying_at("store.temp_written"):
                store.put("shards/a", b"1")
        finally:
            os.umask(old)
        modes = {}
        for folder, _, files in os.walk(store.url):
            modes[folder] = stat.S_IMODE(os.stat(folder).st_mode)
            for file in files:
                path = os.path.join(folder, file)
                modes[path] = stat.S_IMODE(os.stat(path).st_mode)
        assert len(modes) == 4 + 4
        wrong = {p: oct(m) for p, m in modes.items() if m != (0o700 if os.path.isdir(p) else 0o600)}
        assert not wrong

    @pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
    @pytest.mark.parametrize("call", ["write", "fsync", "close", "open", "replace"])
    def test_an_error_of_the_disk_leaves_nothing_under_the_name(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, call: str, code: int
    ) -> None:
        store.put("job.json", b"old")
        before = self.oracle(store)
        fail_at(monkeypatch, call, code)
        with pytest.raises(StoreError) as caught:
            store.put("shards/a", b"1")
        assert not isinstance(caught.value, (CreateUnknown, CheckpointUnusable))
        with pytest.raises(StoreError):
            store.put("job.json", b"new")
        if call != "replace":
            with pytest.raises(StoreError) as caught:
                store.create("journal/a", b"1")
            assert not isinstance(caught.value, CreateUnknown)
        monkeypatch.undo()
        assert self.oracle(store) == before

    @pytest.mark.parametrize("folder", [False, True])
    def test_a_flush_that_has_failed_once_is_not_tried_again(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, folder: bool
    ) -> None:
        """The second one would say yes: the kernel has marked the pages clean."""
        for write in (store.put, store.create):
            failed: list[int] = []
            real = os.fsync

            def fail_once(handle: int, failed: list[int] = failed, real=real) -> None:
                if stat.S_ISDIR(os.fstat(handle).st_mode) is folder and not failed:
                    failed.append(handle)
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                real(handle)

            monkeypatch.setattr(os, "fsync", fail_once)
            with pytest.raises(StoreError):
                write("journal/a", b"1")
            monkeypatch.undo()
            if not folder:
                assert self.oracle(store) == {}
            store.delete("journal/a")

    def test_a_link_that_fails_is_unknown(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_at(monkeypatch, "link", errno.EIO)
        with pytest.raises(CreateUnknown) as caught:
            store.create("journal/a", b"1")
        assert caught.value.readable_is_durable
        assert self.oracle(store) == {}

    @pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
    def test_a_disk_without_links_is_refused(
        self, store: Store, monkeypatch: pytest.MonkeyPatch, code: int
    ) -> None:
        fail_at(monkeypatch, "link", code)
        with pytest.raises(CheckpointUnusable, match="hard links"):
            store.create("journal/a", b"1")
        assert self.oracle(store) == {}

    def test_a_folder_that_cannot_be_flushed_leaves_the_outcome_unknown(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fail_at(monkeypatch, "fsync", errno.EIO, only=stat.S_ISDIR)
        with pytest.raises(CreateUnknown) as caught:
            store.create("journal/a", b"1")
        assert not caught.value.readable_is_durable

    def test_a_short_write_is_carried_on(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        whole = os.write
        monkeypatch.setattr(os, "write", lambda fd, data: whole(fd, data[:3]))
        data = os.urandom(1_000)
        store.put("shards/a", data)
        assert store.create("journal/a", data)
        monkeypatch.undo()
        assert self.oracle(store) == {"shards/a": data, "journal/a": data}

    def test_every_name_is_flushed_before_and_after_it_appears(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[str] = []
        for name in ("write", "fsync", "link", "replace", "unlink"):
            spy_on(monkeypatch, name, calls)
        store.create("journal/a", b"1")
        assert calls == ["write", "fsync file", "link", "unlink", "fsync folder"]
        calls.clear()
        store.put("shards/a", b"1")
        assert calls == ["write", "fsync file", "replace", "fsync folder"]

    def test_a_symbolic_link_is_never_written_through(self, store: Store, tmp_path: Path) -> None:
        outside = tmp_path / "outside"
        outside.write_bytes(b"not ours")
        (Path(store.url) / "shards" / "a").symlink_to(outside)
        assert store.create("shards/a", b"1") is False
        store.put("shards/a", b"2")
        assert outside.read_bytes() == b"not ours"
        assert store.read("shards/a") == b"2"

    @pytest.mark.parametrize("what", ["a file", "below a file", "too long"])
    def test_a_place_that_cannot_be_is_refused(self, tmp_path: Path, what: str) -> None:
        (tmp_path / "file").write_bytes(b"")
        place = {
            "a file": tmp_path / "file",
            "below a file": tmp_path / "file" / "place",
            "too long": tmp_path / ("x" * 300),
        }[what]
        with pytest.raises(CheckpointUnusable):
            LocalStore(place).prepare(FOLDERS)
        assert raw_files(tmp_path) == {"file": b""}

    def test_a_relative_place_stays_where_it_was(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        store = LocalStore("place")
        store.prepare(FOLDERS)
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        store.put("a", b"1")
        assert (tmp_path / "place" / "a").read_bytes() == b"1"

    def test_a_lock_on_one_place_says_nothing_of_another(self, tmp_path: Path) -> None:
        one, other = LocalStore(tmp_path / "one"), LocalStore(tmp_path / "other")
        for store in (one, other):
            store.prepare(())
        first, second = one.lock("holder.lock"), other.lock("holder.lock")
        assert first is not None
        assert second is not None
        first()
        second()


def fail_at(monkeypatch: pytest.MonkeyPatch, call: str, code: int, only=None) -> None:
    """Have one function of os fail, for the thread of this test and no other."""
    real, thread = getattr(os, call), threading.get_ident()

    def failing(*args, **kwargs):
        if threading.get_ident() != thread or (
            call == "open" and not args[1] & os.O_CREAT  # folders are opened to be flushed
        ):
            return real(*args, **kwargs)
        if only is not None and not only(os.fstat(args[0]).st_mode):
            return real(*args, **kwargs)
        if call == "close":
            real(*args, **kwargs)
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, call, failing)


def spy_on(monkeypatch: pytest.MonkeyPatch, name: str, calls: list[str]) -> None:
    real = getattr(os, name)

    def spied(*args, **kwargs):
        what = name
        if name == "fsync":
            is_folder = stat.S_ISDIR(os.fstat(args[0]).st_mode)
            what = "fsync folder" if is_folder else "fsync file"
        calls.append(what)
        return real(*args, **kwargs)

    monkeypatch.setattr(os, name, spied)
