"""Opens our files safely, although others may have replaced them.

Symbolic links are not followed, pipes are not waited for, and the size read is limited.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_KINDS = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
LINK_TO_FILE = "a symbolic link to a file"
# The errors of opening anything but a plain file: ELOOP for a link (EMLINK and EFTYPE on some
# systems), EISDIR for a folder, ENXIO and ENODEV for pipes, sockets and devices.
_NOT_PLAIN = {errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO, errno.ENODEV}
_CHUNK = 1 << 20


class NotPlain(OSError):
    """The path is not a plain file. ``what`` says what it is."""

    def __init__(self, path: str | Path, what: str) -> None:
        super().__init__(errno.EINVAL, f"it is {what}, not a plain file", str(path))
        self.what = what


class TooLarge(OSError):
    """The file is larger than any file of ours with this name."""

    def __init__(self, path: str | Path, limit: int) -> None:
        super().__init__(errno.EFBIG, f"it is longer than {limit:,} bytes", str(path))


def kind_of(mode: int) -> str | None:
    """Return the kind of file for a mode; None for a plain file."""
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "something else")


def open_plain(
    path: str | Path, flags: int = os.O_RDONLY, mode: int = 0o600, *, dir_fd: int | None = None
) -> int:
    """Open a plain file, without waiting. Raises `NotPlain` for anything else."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    try:
        handle = os.open(path, flags, mode, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in _NOT_PLAIN:
            there = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
            if (what := kind_of(there.st_mode)) is not None:
                raise NotPlain(path, what) from error
        raise
    if (what := kind_of(os.fstat(handle).st_mode)) is not None:
        os.close(handle)
        raise NotPlain(path, what)
    return handle


def read_plain(path: str | Path, limit: int | None = None, *, dir_fd: int | None = None) -> bytes:
    """Return the bytes of a plain file. Raises `NotPlain`, or `TooLarge` above ``limit``."""
    handle = open_plain(path, dir_fd=dir_fd)
    try:
        size = os.fstat(handle).st_size
        most = size if limit is None else limit
        if size > most:
            raise TooLarge(path, most)
        parts: list[bytes] = []
        # Read at most one byte more than expected, so that a growing file does not read for ever.
        left = most + 1
        while left > 0 and (part := os.read(handle, min(left, max(size, _CHUNK)))):
            parts.append(part)
            left -= len(part)
    finally:
        os.close(handle)
    if limit is not None and left <= 0:
        raise TooLarge(path, most)
    return parts[0] if len(parts) == 1 else b"".join(parts)
