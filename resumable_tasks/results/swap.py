"""Replaces a folder of published files in one step, while others read it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.files import NotPlain, TooLarge, read_plain
from resumable_tasks.errors import StoreError, UsageError
from resumable_tasks.items import keys

MARKER = "_published.json"
ONE_FILE = "part-00000.parquet"
"""The name of the file in a dataset of one file."""
MOST_BYTES = 64 << 20
_PATIENCE, _PAUSE = 30.0, 0.02
_UNNAMED = re.compile(r"[0-9]+\.parquet")


def refuse_foreign(target: Path) -> None:
    """Raise `UsageError` unless the folder is absent, empty, or contains only our own files."""
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; publish to a folder")
    foreign = sorted({path.name for path in target.iterdir()} - _ours(target))
    if "_delta_log" in foreign:
        raise UsageError(f"{target} is a Delta table; publish to it with form='delta'")
    if foreign:
        raise UsageError(
            f"{target} holds {keys.shorten(foreign[0])}, which publish did not write, and "
            "publishing replaces the whole folder; name a folder of its own"
        )


def _ours(folder: Path) -> set[str]:
    """The names in a folder that its marker lists as ours, and the marker's own name."""
    try:
        record = json.loads(read_plain(folder / MARKER, MOST_BYTES))
        return {MARKER, *map(str, record["files"])}
    except (FileNotFoundError, NotPlain, TooLarge, ValueError, KeyError, TypeError, RecursionError):
        return set()


@contextlib.contextmanager
def alone(target: Path) -> Iterator[None]:
    """Within this block, no other publisher exchanges folders here.

    Locks the folder that contains the target. Where there are no locks, publishers are not kept
    apart. Raises `StoreError` if another publisher takes too long.
    """
    handle = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        until = time.monotonic() + _PATIENCE
        while not _locked(handle, target):
            if time.monotonic() > until:
                raise StoreError(
                    f"another publisher is at work in {target.parent} and does not finish",
                    remedy="Stop it, and publish again",
                )
            time.sleep(_PAUSE)
        yield
    finally:
        os.close(handle)


def _locked(handle: int, target: Path) -> bool:
    """True once this process has the lock, or if there are no locks."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        log.warning("no locks at %s (%s): publish from one place at a time", target, error)
    return True


def make_parents(target: Path) -> None:
    """Create the parent folders of the target, each durable in its own parent."""
    missing = [path for path in target.parents if not path.is_dir()]
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        flush_folder(path.parent)


def new_stage(target: Path) -> Path:
    """Create an empty folder beside the target, and remove those of dead publishers here."""
    _remove_leftovers(target)
    stage = target.with_name(_stage_prefix(target) + f"{os.getpid()}-{secrets.token_hex(4)}")
    stage.mkdir()
    return stage


def put_in_place(stage: Path, target: Path) -> None:
    """Put the stage's contents in the target's place in one step, and remove the old ones."""
    if not target.exists():
        os.rename(stage, target)
        flush_folder(target.parent)
    elif _is_one_file(stage) and _is_one_file(target):
        # Keep the folder: a reader that has opened it, and lists it only after it was exchanged
        # and emptied, would see no rows.
        os.rename(stage / ONE_FILE, target / ONE_FILE)
        fault_point("publish.exchanged")
        os.rename(stage / MARKER, target / MARKER)
        flush_folder(target)
        stage.rmdir()
    else:
        _exchange(stage, target)


def _is_one_file(folder: Path) -> bool:
    return {path.name for path in folder.iterdir()} == {ONE_FILE, MARKER}


def _exchange(stage: Path, target: Path) -> None:
    """Exchange the folders, and remove the one that was there."""
    if not _swap(stage, target):
        aside = stage.with_name(stage.name + ".old")
        # This system has no exchange: for an instant there is no dataset, but never a partial one.
        os.rename(target, aside)
        os.rename(stage, target)
        stage = aside
    flush_folder(target.parent)
    fault_point("publish.exchanged")
    remove_published(stage)


def _swap(a: Path, b: Path) -> bool:
    """Exchange two paths atomically; False if the system cannot."""
    import ctypes

    library = ctypes.CDLL(None, use_errno=True)
    paths = (os.fsencode(a), os.fsencode(b))
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        at_cwd, exchange = -100, 2
        failed = library.renameat2(at_cwd, paths[0], at_cwd, paths[1], exchange)
    elif sys.platform == "darwin" and hasattr(library, "renamex_np"):
        failed = library.renamex_np(paths[0], paths[1], 2)
    else:
        return False
    if not failed:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), str(b))


def _remove_leftovers(target: Path) -> None:
    """Remove the stages of dead publishers of this machine; only real folders of this user."""
    prefix = _stage_prefix(target)
    for path in target.parent.iterdir():
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if path.name.startswith(prefix) and _is_pid(pid) and not _alive(int(pid)):
            remove_published(path)


def _is_pid(text: str) -> bool:
    return text.isascii() and text.isdigit() and 0 < int(text) < 1 << 22


def _stage_prefix(target: Path) -> str:
    return f".{target.name}.publish-{os.uname().nodename}-"


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def remove_published(folder: Path) -> None:
    """Remove a stage, or the old contents that an exchange has put in its place.

    Keeps the folder if there are foreign files in it. A link to a folder, or another user's folder,
    is not a stage.
    """
    try:
        there = folder.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(there.st_mode) or there.st_uid != os.geteuid():
        return
    ours = _ours(folder)
    # Decided by the names in the folder, not by the marker alone: a stage whose publisher died has
    # no marker, or a partial one.
    for path in folder.iterdir():
        known = path.name in ours or path.name == MARKER or _UNNAMED.fullmatch(path.name)
        if (known or (not ours and path.suffix == ".parquet")) and not _is_folder(path):
            path.unlink()
    try:
        folder.rmdir()
    except OSError as error:
        log.warning(
            "%s holds files that publish did not write; it was left there: %s", folder, error
        )


def _is_folder(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def flush_folder(path: Path) -> None:
    """Make all creations, renames and removals in a folder durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
