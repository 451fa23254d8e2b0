"""A store in a directory of a local (or POSIX-like network) file system.

Nothing between Python and the disk calls fsync by itself, so this module does: file, then folder.
See ``docs/design/0002-commit-protocol.md`` for the purpose of each call.

After `prepare` the store works through a handle of the directory, not through its path, so it never
writes to another directory that gets the path later.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import re
import stat
import sys
import weakref
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING

from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.files import (
    LINK_TO_FILE,
    NotPlain,
    TooLarge,
    kind_of,
    open_plain,
    read_plain,
)
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.checkpoint.store.disk import Disk
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointUnusable,
    Fenced,
    StoreError,
    UsageError,
)

if TYPE_CHECKING:
    from pathlib import Path

    import pyarrow.fs

_UNUSABLE = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "part of the path is a file",
    errno.EISDIR: "a folder has this name",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ELOOP: "the path is a loop of symbolic links",
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_TEMP_SUFFIX = ".tmp"
_PRUNED = r"\.pruned-\d{8}T\d{6}-[0-9a-f]+$"
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
# Folders that a restart empties, and folders that survive one, whatever TMPDIR is.
_TEMPORARY = ("/tmp", "/dev/shm")  # noqa: S108
_KEPT = ("/var/tmp",)  # noqa: S108


# The locks of this process. A forked child inherits them and would keep them after our death.
_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _close_in_child() -> None:
    for handle in list(_held):
        _close_quietly(handle)


os.register_at_fork(after_in_child=_close_in_child)


class LocalStore(Store, Disk):
    """A directory. Files are 0600, folders 0700; every file appears whole or not at all.

    In a directory with the setgid bit, which a group shares, the umask decides the group's rights.
    """

    def __init__(self, root: str | Path) -> None:
        self.url = os.path.abspath(root)
        # A handle of the directory, from `prepare` to `let_go`.
        self._handle: int | None = None
        self._close_handle: Callable[[], object] = lambda: None

    @property
    def root(self) -> Path:
        from pathlib import Path

        return Path(self.url)

    @classmethod
    def at_url(cls, url: str) -> LocalStore:
        """The directory of a ``file://`` URL (RFC 8089), as ``Path.as_uri`` makes it."""
        import urllib.parse

        parts = urllib.parse.urlsplit(url)
        if parts.netloc.lower() not in ("", "localhost") or parts.query or parts.fragment:
            raise UsageError(
                f"{url!r} names another machine, or more than a path: give a path on this machine, "
                "or file:///the/path with %3F for ? and %23 for #"
            )
        return cls("/" + urllib.parse.unquote(parts.path).lstrip("/"))

    def __reduce__(self) -> tuple[type[LocalStore], tuple[str]]:
        return LocalStore, (self.url,)

    def prepare(self, folders: tuple[str, ...]) -> None:
        with self._errors("prepare", ""):
            if self._handle is None:
                if os.path.exists(self.url) and not os.path.isdir(self.url):
                    raise CheckpointUnusable(
                        f"{self.url} is a file; a checkpoint is a directory: name another path"
                    )
                _make_durably(self.url)
                self._handle = os.open(self.url, _FOLDER)
                self._close_handle = weakref.finalize(self, _close_folder, self._handle)
            mode = 0o770 if _is_shared(os.fstat(self._handle)) else 0o700
            for folder in folders:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(folder, mode, dir_fd=self._handle)
                _close_folder(self._open(folder))
            # A run that died between mkdir and this flush left folders that are only in memory.
            self._flush_folder("")
            for path in _parents(self.url):
                with contextlib.suppress(PermissionError):  # then we have created nothing there
                    _sync_folder(path)

    def let_go(self) -> None:
        self._handle = None
        self._close_handle()

    def check_place(self, names: Iterable[str] = ()) -> None:
        if self._handle is None:
            return
        with self._errors("look at", ""):
            mine = os.fstat(self._handle)
            here = self._is_here(mine)
            gone = [name for name in names if not self._has(name)]
        if here and not gone:
            return
        if mine.st_nlink and not gone:
            raise Fenced(
                f"the checkpoint {self.url} was moved away while this run was at work on it"
                f"{self._new_place()}",
                safe="Everything this run committed is in the moved checkpoint",
                remedy="Use the moved checkpoint; nothing was written to what is now at the old "
                "path",
            )
        raise CheckpointDamaged(
            f"the checkpoint {self.url} was removed or emptied while this run was at work on it"
            + (f": {gone[0]} is missing" if gone else ""),
            files=tuple(gone),
            remedy="Restore it from a copy, or run the same command again: missing items are done "
            "again",
        )

    def _is_here(self, mine: os.stat_result) -> bool:
        try:
            return os.path.samestat(mine, os.stat(self.url))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _has(self, name: str) -> bool:
        try:
            with self._in(name) as (folder, base):
                os.stat(base, dir_fd=folder, follow_symlinks=False)
                return True
        except (FileNotFoundError, NotADirectoryError):
            return False

    def _new_place(self) -> str:
        """The directory's current path, for a message; empty if the system does not tell."""
        try:
            return f", to {os.readlink(f'/proc/self/fd/{self._handle}')}"
        except OSError:
            return ""

    def read(self, name: str) -> bytes:
        return self.read_within(name, None)

    def read_within(self, name: str, limit: int | None) -> bytes:
        with self._errors("read", name), self._in(name) as (folder, base):
            try:
                return read_plain(base, limit, dir_fd=folder)
            except (NotPlain, TooLarge) as error:
                raise CheckpointDamaged(
                    str(error.strerror), files=(name,), place=self.url
                ) from error

    def list(self, folder: str) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, entry in self._all(folder):
            if entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # gone since
                    found[name] = entry.stat(follow_symlinks=False).st_size
        return found

    def names(self, folder: str) -> set[str]:
        return {name for name, _ in self._all(folder)}

    def odd(self, folder: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for name, entry in self._all(folder):
            if not entry.is_file(follow_symlinks=False):
                with contextlib.suppress(FileNotFoundError):  # gone since
                    kind = kind_of(entry.stat(follow_symlinks=False).st_mode)
                    if kind is not None:
                        found[name] = LINK_TO_FILE if self._leads_to_file(name) else kind
        return found

    def _all(self, folder: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Every name in a folder except those of unfinished writes."""
        prefix = f"{folder}/" if folder else ""
        with self._errors("list", folder):
            for entry in self._entries(folder):
                if not entry.name.endswith(_TEMP_SUFFIX):
                    yield prefix + entry.name, entry

    def _leads_to_file(self, name: str) -> bool:
        try:
            with self._in(name) as (folder, base):
                return kind_of(os.stat(base, dir_fd=folder).st_mode) is None
        except OSError:
            return False

    def create(self, name: str, data: bytes) -> bool:
        with self._errors("write", name), self._in(name) as (folder, base):
            temp = self._write_temp(folder, base, data)
            fault_point("store.temp_written")
            try:
                os.link(temp, base, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise CheckpointUnusable(
                        f"the file system of {self.url} has no hard links ({error.strerror}), so "
                        "two runs could not be kept apart there; put the checkpoint on a local disk"
                    ) from error
                raise CreateUnknown(
                    f"cannot tell whether {self._at(name)} was created: {error}"
                ) from error
            finally:
                _unlink_quietly(temp, folder)
        fault_point("store.linked")
        try:
            self._flush_folder(_folder_of(name))
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                self.check_place((name,))
            # The name exists, but may not survive a power loss. A second fsync would succeed
            # without having written anything.
            raise CreateUnknown(
                f"{self._at(name)} was written, but its folder could not be flushed: {error}",
                readable_is_durable=False,
            ) from error
        fault_point("store.created")
        return True

    def put(self, name: str, data: bytes | memoryview) -> None:
        with self._errors("write", name):
            with self._in(name) as (folder, base):
                try:
                    self._replace(folder, base, data)
                except FileNotFoundError:
                    # A run that took over while this one slept may have swept the temporary file.
                    # The journal decides about that, not the disk, so write again.
                    self._replace(folder, base, data)
            fault_point("store.renamed")
            self._flush_folder(_folder_of(name))

    def _replace(self, folder: int, base: str, data: bytes | memoryview) -> None:
        temp = self._write_temp(folder, base, data)
        fault_point("store.temp_written")
        try:
            os.replace(temp, base, src_dir_fd=folder, dst_dir_fd=folder)
        except BaseException:
            _unlink_quietly(temp, folder)
            raise

    def move(self, name: str, to: str) -> None:
        with (
            self._errors("move", name),
            self._in(name) as (folder, base),
            self._in(to) as (target, new),
        ):
            os.rename(base, new, src_dir_fd=folder, dst_dir_fd=target)
            _flush(target)
            _flush(folder)

    def delete(self, name: str) -> None:
        with (
            self._errors("delete", name),
            contextlib.suppress(FileNotFoundError),
            self._in(name) as (folder, base),
        ):
            os.unlink(base, dir_fd=folder)

    def sync(self, folder: str) -> None:
        with self._errors("flush", folder):
            self._flush_folder(folder)

    def sweep(self, folder: str, dead: Callable[[str], bool]) -> int:
        swept = 0
        with (
            self._errors("sweep", folder),
            contextlib.suppress(FileNotFoundError),
            self._opened(folder) as handle,
        ):
            for entry in self._entries(folder):
                # .<name>.<random>.tmp
                if entry.name.startswith(".") and entry.name.endswith(_TEMP_SUFFIX):
                    name = entry.name[1 : -len(_TEMP_SUFFIX)].rpartition(".")[0]
                    if dead(f"{folder}/{name}" if folder else name):
                        _unlink_quietly(entry.name, handle)
                        swept += 1
        return swept

    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        with self._errors("lock", name), self._in(name) as (folder, base):
            while True:
                if steal:  # the other's lock then is on a file without a name
                    _unlink_quietly(base, folder)
                # A file object, so that garbage collection releases a forgotten lock.
                handle = open(  # noqa: SIM115 - open for as long as the lock is held
                    base,
                    "a",
                    opener=lambda base, flags: open_plain(
                        base, flags, self._mode(folder), dir_fd=folder
                    ),
                )
                try:
                    if not self._flock(handle, exclusive=True):
                        handle.close()
                        return None
                    if _is_at(handle, base, folder):
                        _held.add(handle)
                        return functools.partial(_close_quietly, handle)
                except BaseException:
                    handle.close()
                    raise
                handle.close()  # stolen since it was opened: try again with the new file

    def locked(self, name: str) -> bool:
        try:
            with (
                self._errors("read", name),
                self._in(name) as (folder, base),
                os.fdopen(open_plain(base, dir_fd=folder)) as handle,
            ):
                return not self._flock(handle, exclusive=False)
        except FileNotFoundError:
            return False
        except CheckpointUnusable as error:  # another user's
            raise NotImplementedError(str(error)) from error

    def _flock(self, handle: IO[str], *, exclusive: bool) -> bool:
        """Try to lock an open file; False if another holds it."""
        try:
            fcntl.flock(handle, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            raise NotImplementedError(f"no locks on {self.url}: {error}") from error
        return True

    def archive(self) -> str:
        return self._set_aside("archived")

    def discard(self) -> LocalStore:
        return self if self.discarded else LocalStore(self._set_aside("pruned"))

    @property
    def discarded(self) -> bool:
        return re.search(_PRUNED, self.url) is not None

    def _set_aside(self, how: str) -> str:
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        target = f"{self.url}.{how}-{stamp}-{token(3)}"
        self.check_place()  # else a checkpoint that a run has begun there since would be moved
        with self._errors("archive", ""):
            os.rename(self.url, target)
            fault_point("store.set_aside")
            _sync_folder(os.path.dirname(target))
        self.let_go()
        return target

    def remove(self, folders: Iterable[str]) -> bool:
        with self._errors("remove", ""):
            try:
                for path in (*map(self._at, folders), self.url):
                    with contextlib.suppress(FileNotFoundError):
                        os.rmdir(path)
                _sync_folder(os.path.dirname(self.url))
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                    raise
                return False
        return True

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), self.url

    def _at(self, name: str) -> str:
        return os.path.join(self.url, name) if name else self.url

    def _open(self, folder: str) -> int:
        """A handle of one of the folders, or of the directory itself."""
        if self._handle is None and not folder:
            return os.open(self.url, _FOLDER)
        path = self._at(folder) if self._handle is None else folder or "."
        try:
            return os.open(path, _FOLDER | os.O_NOFOLLOW, dir_fd=self._handle)
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP) and os.path.isdir(self.url):
                raise CheckpointUnusable(
                    f"{self._at(folder)} is not a folder, or a symbolic link to one, which is not "
                    "followed; put a real folder there"
                ) from error
            raise

    @contextlib.contextmanager
    def _opened(self, folder: str) -> Iterator[int]:
        handle = self._open(folder)
        try:
            yield handle
        finally:
            _close_folder(handle)

    @contextlib.contextmanager
    def _in(self, name: str) -> Iterator[tuple[int, str]]:
        """A handle of the folder that contains a name, and the last part of the name."""
        with self._opened(_folder_of(name)) as handle:
            yield handle, name.rpartition("/")[2]

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with self._opened(folder) as handle, os.scandir(handle) as entries:
                yield from entries
        except FileNotFoundError:
            return

    def _flush_folder(self, folder: str) -> None:
        with self._opened(folder) as handle:
            _flush(handle)

    def _write_temp(self, folder: int, base: str, data: bytes | memoryview) -> str:
        """Write the bytes to a temporary file and flush it. Returns its name.

        Removes the file on any failure and never retries: after a failed fsync the kernel marks the
        file's pages clean, so the next fsync would succeed without writing them.
        """
        temp = f".{base}.{token(4)}{_TEMP_SUFFIX}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        handle = open_plain(temp, flags, self._mode(folder), dir_fd=folder)
        try:
            try:
                rest = memoryview(data)
                while rest:  # a write can be short
                    rest = rest[os.write(handle, rest) :]
                _flush(handle)
            finally:
                os.close(handle)
        except BaseException:
            _unlink_quietly(temp, folder)
            raise
        return temp

    @staticmethod
    def _mode(folder: int) -> int:
        return 0o660 if _is_shared(os.fstat(folder)) else 0o600

    @contextlib.contextmanager
    def _errors(self, verb: str, name: str) -> Iterator[None]:
        path = self._at(name)
        try:
            yield
        except NotPlain as error:
            raise CheckpointUnusable(f"{path}: {error.strerror}; remove it") from error
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                if verb in ("read", "move"):
                    raise  # the caller decides
                self.check_place(filter(None, [_folder_of(name)]))
            if error.errno in _UNUSABLE:
                raise CheckpointUnusable(
                    f"cannot {verb} {path}: {_UNUSABLE[error.errno]} ({error.strerror}); fix that "
                    "or name another path. Nothing that was committed is lost"
                ) from error
            raise StoreError(
                f"cannot {verb} {path}: {error.strerror or error}. Nothing that was committed is "
                "lost; fix the cause and run the same command again"
            ) from error


def _make_durably(path: str) -> None:
    """Create a directory with its parents, and flush each new level in its parent."""
    if os.path.isdir(path):
        return
    parent = os.path.dirname(path)
    _make_durably(parent)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, 0o770 if _is_shared(os.stat(parent)) else 0o700)
    _sync_folder(parent)


def _parents(path: str) -> Iterator[str]:
    while (parent := os.path.dirname(path)) != path:
        yield (path := parent)


def _folder_of(name: str) -> str:
    return name.rpartition("/")[0]


def _is_shared(folder: os.stat_result) -> bool:
    return bool(folder.st_mode & stat.S_ISGID)


def _flush(handle: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    else:
        os.fsync(handle)


def _sync_folder(path: str) -> None:
    handle = os.open(path, _FOLDER)
    try:
        _flush(handle)
    finally:
        _close_folder(handle)


def _close_folder(handle: int) -> None:
    # All data is flushed or has failed by now, so an error of close loses nothing.
    with contextlib.suppress(OSError):
        os.close(handle)


def _is_at(handle: IO[str], base: str, folder: int) -> bool:
    """True if this open file still has this name in the folder."""
    try:
        there = os.stat(base, dir_fd=folder, follow_symlinks=False)
        return os.path.samestat(os.fstat(handle.fileno()), there)
    except FileNotFoundError:
        return False


def _close_quietly(handle: IO[str]) -> None:
    with contextlib.suppress(OSError):  # nothing was written, and the lock is released anyway
        handle.close()


def _unlink_quietly(base: str, folder: int) -> None:
    # A temporary file that remains does no harm: the next run sweeps it.
    with contextlib.suppress(OSError):
        os.unlink(base, dir_fd=folder)


def in_temporary_folder(path: str) -> bool:
    """True if the system may delete files at this path by itself."""
    named = (os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    place = os.path.realpath(os.path.expanduser(path))

    def within(folders: Iterable[str]) -> bool:
        return any(place.startswith(os.path.realpath(folder) + os.sep) for folder in folders)

    return within((*_TEMPORARY, *filter(None, named))) and not within(_KEPT)
