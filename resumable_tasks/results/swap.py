"""Replaces the folder of published files in one step, while others read it."""

from __future__ import annotations

import errno
import json
import os
import secrets
import sys
from pathlib import Path

from resumable_tasks.base import log
from resumable_tasks.base.faults import fault_point
from resumable_tasks.errors import UsageError
from resumable_tasks.items import keys

MARKER = "_published.json"
ONE_FILE = "part-00000.parquet"
"""What the file is called of a dataset that has only one."""


def refuse_foreign(target: Path) -> None:
    """Raise `UsageError` unless the folder is absent, empty, or all of `publish`'s own."""
    if not target.exists():
        return
    if not target.is_dir():
        raise UsageError(f"{target} is a file; publish to a folder")
    foreign = sorted({path.name for path in target.iterdir()} - _ours(target))
    if foreign:
        raise UsageError(
            f"{target} holds {keys.shorten(foreign[0])}, which publish has not written there, and "
            "publishing replaces the whole folder; name a folder of its own"
        )


def _ours(folder: Path) -> set[str]:
    try:
        record = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return {MARKER, *record["files"]}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return set()


def new_stage(target: Path) -> Path:
    """Make an empty folder beside the target; remove those of publishers here that have died."""
    _remove_leftovers(target)
    stage = target.with_name(_stage_prefix(target) + f"{os.getpid()}-{secrets.token_hex(4)}")
    stage.mkdir()
    return stage


def put_in_place(stage: Path, target: Path) -> None:
    """Put what is in the stage in the target's place, in one step, and remove what was there."""
    if not target.exists():
        os.rename(stage, target)
        flush_folder(target.parent)
    elif _is_one_file(stage) and _is_one_file(target):
        # The folder stays: a reader that has opened it, and does not list it before it was
        # exchanged for another and emptied, would see no rows.
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
        # No exchange on this system: for an instant there is no dataset, but never half a one.
        os.rename(target, aside)
        os.rename(stage, target)
        stage = aside
    flush_folder(target.parent)
    fault_point("publish.exchanged")
    remove_published(stage)


def _swap(a: Path, b: Path) -> bool:
    """Exchange two paths atomically; False where the system cannot."""
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
    """Remove the stages of publishers of this machine that died."""
    prefix = _stage_prefix(target)
    for path in target.parent.iterdir():
        pid = path.name.removeprefix(prefix).partition("-")[0]
        if path.name.startswith(prefix) and pid.isdigit() and not _alive(int(pid)):
            remove_published(path)


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
    """Remove a stage, or what an exchange has put in its place.

    Whatever else has come into it stays, and so does the folder.
    """
    if not folder.is_dir():
        return
    ours = _ours(folder)
    # By what is in the folder, not by what a file in it says. A stage whose publisher died has no
    # marker, or half of one.
    for path in folder.iterdir():
        if path.name in ours or path.name == MARKER or (not ours and path.suffix == ".parquet"):
            path.unlink()
    try:
        folder.rmdir()
    except OSError as error:
        log.warning("%s holds files that publish has not written; it was left: %s", folder, error)


def flush_folder(path: Path) -> None:
    """Make what was created, renamed and removed in a folder durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
