"""A store in a directory of a local (or POSIX-like network) file system.

Nothing between Python and the disk calls fsync by itself, so this does: file, then folder. See
``docs/design/0002-commit-protocol.md`` for which call guards against what.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import os
import secrets
import sys
import tempfile
import urllib.parse
import weakref
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from resumable_tasks.base.faults import fault_point
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.checkpoint.store.disk import Disk
from resumable_tasks.errors import CheckpointUnusable, StoreError, UsageError

if TYPE_CHECKING:
    import pyarrow.fs

_UNUSABLE = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.EROFS: "the file system is read-only",
    errno.ENOTDIR: "a part of the path is a file",
    errno.ENAMETOOLONG: "the path is too long",
    errno.ELOOP: "the path is a loop of symbolic links",
}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}
_TEMP_SUFFIX = ".tmp"
# Emptied by the system, whatever TMPDIR says.
_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108


# Locks of this process. A child that is forked has them too, and would keep them when we die.
_held: weakref.WeakSet[IO[str]] = weakref.WeakSet()


def _close_in_child() -> None:
    for handle in list(_held):
        _close_quietly(handle)


os.register_at_fork(after_in_child=_close_in_child)


class LocalStore(Store, Disk):
    """A directory. Files are 0600, folders 0700; every name appears whole or not at all."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.url = str(self.root)

    @classmethod
    def at_url(cls, url: str) -> LocalStore:
        """The directory of a ``file://`` URL (RFC 8089), as ``Path.as_uri`` makes it."""
        parts = urllib.parse.urlsplit(url)
        if parts.netloc.lower() not in ("", "localhost") or parts.query or parts.fragment:
            raise UsageError(
                f"{url!r} names another machine, or more than a path: give the path on a disk of "
                "this one, or file:///the/path with %3F for ? and %23 for #"
            )
        return cls("/" + urllib.parse.unquote(parts.path).lstrip("/"))

    def __reduce__(self) -> tuple[type[LocalStore], tuple[Path]]:
        return LocalStore, (self.root,)

    def prepare(self, folders: tuple[str, ...]) -> None:
        with self._errors("prepare", self.url):
            if self.root.exists() and not self.root.is_dir():
                raise CheckpointUnusable(
                    f"{self.url} is a file; a checkpoint is a directory: name another path"
                )
            for path in (self.root, *(self.root / folder for folder in folders)):
                _make_durably(path)
            # A run that died between mkdir and this left folders that only memory knows.
            for path in (self.root, *self.root.parents):
                with contextlib.suppress(PermissionError):  # then we have made nothing there
                    _sync_folder(path)

    def read(self, name: str) -> bytes:
        path = self.root / name
        with self._errors("read", path):
            return path.read_bytes()

    def list(self, folder: str) -> dict[str, int]:
        prefix = f"{folder}/" if folder else ""
        found: dict[str, int] = {}
        with self._errors("list", self.root / folder):
            for entry in self._entries(folder):
                if entry.is_file(follow_symlinks=False) and not entry.name.endswith(_TEMP_SUFFIX):
                    with contextlib.suppress(FileNotFoundError):  # gone since
                        found[prefix + entry.name] = entry.stat().st_size
        return found

    def names(self, folder: str) -> set[str]:
        prefix = f"{folder}/" if folder else ""
        with self._errors("list", self.root / folder):
            found = [entry.name for entry in self._entries(folder)]
        return {prefix + name for name in found if not name.endswith(_TEMP_SUFFIX)}

    def create(self, name: str, data: bytes) -> bool:
        final = self.root / name
        with self._errors("write", final):
            temp = self._write_temp(final, data)
            fault_point("store.temp_written")
            try:
                os.link(temp, final)
            except FileExistsError:
                return False
            except OSError as error:
                if error.errno in _NO_LINKS:
                    raise CheckpointUnusable(
                        f"the file system of {self.url} has no hard links ({error.strerror}), "
                        "so two runs could not be kept apart there; put the checkpoint on a "
                        "local disk"
                    ) from error
                raise CreateUnknown(f"cannot tell whether {final} was created: {error}") from error
            finally:
                _unlink_quietly(temp)
        fault_point("store.linked")
        try:
            _sync_folder(final.parent)
        except OSError as error:
            # The name stands, but whether it survives a power loss is not known, and asking
            # again would say yes without having written anything.
            raise CreateUnknown(
                f"{final} was written, but its folder could not be flushed: {error}",
                readable_is_durable=False,
            ) from error
        fault_point("store.created")
        return True

    def put(self, name: str, data: bytes | memoryview) -> None:
        final = self.root / name
        with self._errors("write", final):
            try:
                self._replace(final, data)
            except FileNotFoundError:
                # A run that has taken over sweeps what we leave unfinished while we sleep. That
                # is for the journal to say, not for the disk.
                self._replace(final, data)
            fault_point("store.renamed")
            _sync_folder(final.parent)

    def _replace(self, final: Path, data: bytes | memoryview) -> None:
        temp = self._write_temp(final, data)
        fault_point("store.temp_written")
        try:
            os.replace(temp, final)
        except BaseException:
            _unlink_quietly(temp)
            raise

    def delete(self, name: str) -> None:
        with self._errors("delete", self.root / name), contextlib.suppress(FileNotFoundError):
            os.unlink(self.root / name)

    def sync(self, folder: str) -> None:
        with self._errors("flush", self.root / folder):
            _sync_folder(self.root / folder)

    def sweep(self, folder: str, dead: Callable[[str], bool]) -> int:
        swept = 0
        with self._errors("sweep", self.root / folder):
            for entry in self._entries(folder):
                # .<name>.<random>.tmp
                if entry.name.startswith(".") and entry.name.endswith(_TEMP_SUFFIX):
                    name = entry.name[1 : -len(_TEMP_SUFFIX)].rpartition(".")[0]
                    if dead(f"{folder}/{name}" if folder else name):
                        _unlink_quietly(Path(entry.path))
                        swept += 1
        return swept

    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        path = self.root / name
        with self._errors("lock", path):
            while True:
                if steal:  # the other's lock is on a file that then has no name
                    _unlink_quietly(path)
                # A file object, so that a lock that is lost sight of is released all the same.
                handle = open(  # noqa: SIM115 - open for as long as the lock is held
                    path, "a", opener=lambda path, flags: os.open(path, flags, 0o600)
                )
                try:
                    if not self._flock(handle, exclusive=True):
                        handle.close()
                        return None
                    if _is_at(handle, path):
                        _held.add(handle)
                        return functools.partial(_close_quietly, handle)
                except BaseException:
                    handle.close()
                    raise
                handle.close()  # stolen since it was opened: again, with the file that is there

    def locked(self, name: str) -> bool:
        try:
            with self._errors("read", self.root / name), open(self.root / name) as handle:
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
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        target = self.root.with_name(f"{self.root.name}.archived-{stamp}-{secrets.token_hex(3)}")
        with self._errors("archive", self.url):
            os.rename(self.root, target)
            _sync_folder(target.parent)
        return str(target)

    def filesystem(self) -> tuple[pyarrow.fs.FileSystem, str]:
        from pyarrow.fs import LocalFileSystem

        return LocalFileSystem(), self.url

    def _entries(self, folder: str) -> Iterator[os.DirEntry[str]]:
        try:
            with os.scandir(self.root / folder) as entries:
                yield from entries
        except FileNotFoundError:
            return

    def _write_temp(self, final: Path, data: bytes | memoryview) -> Path:
        """Write the bytes beside their final name and flush them; any failure removes the file.

        A failed fsync condemns the file: the kernel marks its pages clean, and the next fsync
        would say yes. So nothing here is tried twice.
        """
        temp = final.with_name(f".{final.name}.{secrets.token_hex(4)}{_TEMP_SUFFIX}")
        handle = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        try:
            try:
                rest = memoryview(data)
                while rest:  # a write can be short
                    rest = rest[os.write(handle, rest) :]
                _flush(handle)
            finally:
                os.close(handle)
        except BaseException:
            _unlink_quietly(temp)
            raise
        return temp

    @contextlib.contextmanager
    def _errors(self, verb: str, path: str | Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and verb == "read":
                raise  # for the caller to judge
            if error.errno in _UNUSABLE:
                raise CheckpointUnusable(
                    f"cannot {verb} {path}: {_UNUSABLE[error.errno]} ({error.strerror}); "
                    "repair that or name another path. Nothing that was committed is lost"
                ) from error
            raise StoreError(
                f"cannot {verb} {path}: {error.strerror or error}. Nothing that was committed is "
                "lost; remove the cause and run the same command again"
            ) from error


def _make_durably(path: Path) -> None:
    """Mkdir -p whose every new level is flushed in its parent."""
    if path.is_dir():
        return
    _make_durably(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    _sync_folder(path.parent)


def _flush(handle: int) -> None:
    if sys.platform == "darwin":
        fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
    else:
        os.fsync(handle)


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _flush(handle)
    finally:
        os.close(handle)


def _is_at(handle: IO[str], path: Path) -> bool:
    """True if this open file is the one at this path."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _close_quietly(handle: IO[str]) -> None:
    with contextlib.suppress(OSError):  # nothing was written: the lock is gone either way
        handle.close()


def _unlink_quietly(path: Path) -> None:
    # A temporary file that stays behind costs no work: the next run sweeps it.
    with contextlib.suppress(OSError):
        os.unlink(path)


def in_temporary_folder(path: str) -> bool:
    """True if the system deletes things at this path by itself."""
    folders = set(_TEMPORARY)
    with contextlib.suppress(OSError):  # there is none that can be written to
        folders.add(tempfile.gettempdir())
    place = os.path.realpath(os.path.expanduser(path))
    return any(place.startswith(os.path.realpath(folder) + os.sep) for folder in folders)
