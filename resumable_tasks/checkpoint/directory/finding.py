"""Finds the checkpoints below a directory, or below a prefix of a bucket."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from resumable_tasks.checkpoint.directory import manifest
from resumable_tasks.checkpoint.directory.layout import FOLDERS
from resumable_tasks.checkpoint.directory.reader import is_archived, is_checkpoint
from resumable_tasks.checkpoint.directory.records import FOLDER as JOURNAL
from resumable_tasks.checkpoint.store.ahead import in_order
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.object import Look, ObjectStore
from resumable_tasks.checkpoint.store.urls import expanded, is_url, open_store
from resumable_tasks.errors import ResumableTasksError, UsageError

# Not searched: these hold thousands of files each, and no checkpoint.
_INSIDE = frozenset(FOLDERS)
INCARNATION = re.compile(r"@([0-9]{1,9})(\.json)?")
AHEAD = 16
# The depth of a search without a given place; default checkpoints are three folders deep.
DEEPEST = 5
HOME = ".resumable"
_NOT_OURS = frozenset(("node_modules", "site-packages", "__pycache__"))


@dataclass(frozen=True, slots=True)
class Found:
    """A place that looks like a checkpoint. ``archived``: no run continues it."""

    place: str
    archived: bool


def find(place: str, tell: Callable[[OSError], None]) -> Iterator[Found]:
    """Yield everything that looks like a checkpoint at or below this place, by name.

    Calls ``tell`` for each directory that cannot be read. In a bucket, makes one listing for each
    prefix, and looks into a checkpoint only for partitions. Raises `UsageError` if the place is
    neither a directory nor the URL of a prefix.
    """
    store = open_store(place, "place")
    if isinstance(store, ObjectStore):
        yield from sorted(_in_bucket(store), key=lambda found: found.place)
        return
    path = store.url if is_url(place) else expanded(place)
    if not os.path.isdir(path):
        raise UsageError(
            f"{place or repr(place)} is not a directory: name one that holds checkpoints, or the "
            "URL of a bucket"
        )
    yield from _in_directory(path, tell)


def find_here(tell: Callable[[OSError], None]) -> Iterator[Found]:
    """Yield everything that looks like a checkpoint in or near below the working directory.

    Skips hidden folders, except the one of default checkpoints.
    """
    for found in _in_directory(".", tell, _near):
        yield Found(os.path.normpath(found.place), found.archived)


def _near(path: str, name: str) -> bool:
    near = path.count(os.sep) < DEEPEST and name not in _NOT_OURS
    return near and (name == HOME or not name.startswith("."))


def _in_directory(
    directory: str,
    tell: Callable[[OSError], None],
    wanted: Callable[[str, str], bool] = lambda path, name: True,
) -> Iterator[Found]:
    for path, folders, _ in os.walk(directory, onerror=tell):
        folders[:] = [name for name in folders if wanted(path, name)]
        if looks_like_one(path):
            yield Found(path, is_archived(os.path.abspath(path)))
            # Search the other folders: a partition may be beside these.
            folders[:] = [name for name in folders if name not in _INSIDE]
        folders.sort()


def looks_like_one(path: str) -> bool:
    """True for a directory that is a checkpoint, or that cannot be read and may be one."""
    try:
        return is_checkpoint(LocalStore(path))
    except (ResumableTasksError, OSError):
        # Listed too, so that its row shows what is wrong.
        return os.path.lexists(os.path.join(path, manifest.NAME))


def _in_bucket(store: ObjectStore) -> Iterator[Found]:
    """Yield the places level by level, with many listings in flight."""
    level, known = [""], dict[str, Look]()
    while level:
        following: list[str] = []
        looked = in_order(store.look, [below for below in level if below not in known], AHEAD)
        for below in level:
            names, folders = known.pop(below) if below in known else next(looked)
            place = f"{store.url}/{below}".rstrip("/")
            found = list(_incarnations(place, names, folders))
            yield from found
            skipped = {name for name in folders if INCARNATION.fullmatch(name)}
            skipped |= _INSIDE if found else set()
            inner = sorted(f"{below}/{name}".lstrip("/") for name in folders - skipped)
            known |= store.outlines(below, len(inner))
            following += inner
        level = following


def _incarnations(place: str, names: dict[str, int], folders: set[str]) -> Iterator[Found]:
    markers = filter(None, map(INCARNATION.fullmatch, (*names, *folders)))
    current = max((int(marker[1]) for marker in markers), default=0)
    if _is_one(place, names, folders):
        yield Found(f"{place}/@0", True) if current else Found(place, False)
    for number in range(1, current + 1):
        if f"@{number}" in folders:
            yield Found(place if number == current else f"{place}/@{number}", number < current)


def _is_one(place: str, names: dict[str, int], folders: set[str]) -> bool:
    if JOURNAL in folders and manifest.NAME in names:
        return True
    # Another program may have a folder or a file of such a name too.
    return (JOURNAL in folders or manifest.NAME in names) and is_checkpoint(open_store(place))
