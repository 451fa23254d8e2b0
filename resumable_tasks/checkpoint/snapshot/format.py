"""The format of a snapshot's generation, and the checks made when reading it.

A generation has three lines: a head, the state, and an end with the checksum of the first two.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
from dataclasses import dataclass, field
from typing import Any

from resumable_tasks.base import log
from resumable_tasks.base.clock import now
from resumable_tasks.base.hashes import blake2b
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import (
    CheckpointDamaged,
    CheckpointMismatch,
    CheckpointUnusable,
    StoreError,
    UsageError,
)

FORMAT = 1
LOCK = "lock"
# More than 20 digits only if somebody has put such a file there: the next number must be above it
# and must be found again.
_NAME = re.compile(r"([0-9]{20}|[1-9][0-9]{20,})\.json")
# Limited because Python reads JSON recursively, perhaps some hundred calls deep in the program.
_DEEPEST = 200
# Errors of a file that exists but cannot be read any more. Any other error (no permission, too many
# open files) says nothing about the file.
_LOST = {
    getattr(errno, name)
    for name in ("EIO", "EBADMSG", "EUCLEAN", "ENODATA")
    if hasattr(errno, name)
}
_LOOKS = 100


@dataclass(frozen=True)
class Generation:
    """A good generation: its state as text and as values."""

    number: int
    version: int
    time: str
    text: bytes
    state: Any


@dataclass
class Found:
    """The content of a snapshot's folder."""

    newest: Generation | None = None
    """The newest good generation."""
    highest: int = 0
    """The highest taken number, whether by a generation or anything else."""
    good: list[int] = field(default_factory=list)
    """The numbers of the newest good generations, oldest first."""
    damages: dict[int, str] = field(default_factory=dict)
    """The defects of damaged generations by number, newest first."""

    @property
    def fell_back(self) -> bool:
        """True if a damaged generation is newer than the newest good one."""
        return self.newest is not None and any(n > self.newest.number for n in self.damages)

    def warn(self, place: str) -> None:
        """Log which generations are damaged, and which one is used."""
        assert self.newest is not None
        used = (self.newest.number, self.newest.time)
        for number, what in self.damages.items():
            if number > self.newest.number:
                log.warning(
                    "the snapshot %s is damaged: %s. Using the previous one, generation %d, saved "
                    "at %s; work done since then is repeated",
                    *(place, what, *used),
                )
            else:
                log.warning(
                    "in the snapshot %s an older generation is damaged: %s. Nothing is lost: using "
                    "the newest, generation %d, saved at %s",
                    *(place, what, *used),
                )


def file_of(number: int) -> str:
    return f"{number:020d}.json"


def number_of(name: str) -> int | None:
    """The number in a generation's name; None if it is not a generation's name."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def encode(state: bytes, number: int, version: int) -> bytes:
    """A generation as bytes."""
    head = {
        "snapshot": FORMAT,
        "generation": number,
        "version": version,
        "time": now(),
        "nonce": token(8),
    }
    body = json.dumps(head, separators=(",", ":")).encode() + b"\n" + state + b"\n"
    return body + _end(body, number)


def decode(data: bytes, number: int) -> Generation:
    """The generation in these bytes.

    Raises `CheckpointDamaged` if they are not exactly what was written, `UsageError` if there is
    not enough stack to read them.
    """
    lines = data.split(b"\n")
    if len(lines) != 4 or lines[3]:
        raise damaged(number, "it is cut short")
    body = data[: len(lines[0]) + len(lines[1]) + 2]
    if data[len(body) :] != _end(body, number):
        raise damaged(number, "its checksum does not match its lines")
    try:
        head = json.loads(lines[0])
        if head["snapshot"] != FORMAT:
            raise CheckpointMismatch(
                f"{file_of(number)} is in format {head['snapshot']}, but this version of "
                f"resumable-tasks supports format {FORMAT}: install the version that wrote it"
            )
        state = json.loads(lines[1])
        return Generation(number, head["version"], head["time"], lines[1], state)
    except RecursionError:  # the checksum is right, so this is no damage
        raise UsageError(
            f"{file_of(number)} is nested too deeply to be read at this call depth: open the "
            "snapshot further up the call stack, or raise sys.setrecursionlimit(). Nothing was "
            "changed"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(number, f"it cannot be read: {error!r}") from error


def find(store: Store, keep: int) -> Found:
    """The newest good generations, up to ``keep``, and the damage found on the way.

    Raises what `decode` raises, except for damage, and `StoreError` if the folder cannot be read.
    """
    for _ in range(_LOOKS):
        with contextlib.suppress(FileNotFoundError):  # another process has saved and cleaned up
            return _find(store, keep)
    raise StoreError(
        f"the generations of the snapshot {store.url} disappear while being read; stop other "
        "programs that save or delete there"
    )


def _find(store: Store, keep: int) -> Found:
    found, taken = Found(), numbers(store)
    found.highest = taken[-1] if taken else 0
    files = store.list("")
    for number in reversed(taken):
        try:
            generation = decode(_read(store, number, files), number)
        except CheckpointDamaged as error:
            found.damages[number] = str(error)
            continue
        found.newest = found.newest or generation
        found.good.insert(0, number)
        if len(found.good) == keep:
            break
    return found


def numbers(store: Store) -> list[int]:
    """The taken numbers, in order: of generations, and of anything else with such a name."""
    return sorted(n for n in map(number_of, disk.names(store, "")) if n is not None)


def refuse_foreign(store: Store) -> None:
    """Raise `CheckpointUnusable` if the folder has foreign files, to mix nothing with them."""
    if isinstance(store, LocalStore) and os.path.isfile(store.url):
        raise CheckpointUnusable(
            f"{store.url} is a file; a snapshot is a folder: name another path, and give what "
            "the file holds as initial="
        )
    there = disk.names(store, "")
    foreign = sorted(name for name in there if name != LOCK)
    if foreign and not any(number_of(name) is not None for name in there):
        raise CheckpointUnusable(
            f"{store.url} holds other things ({foreign[0]!a}) and is not a snapshot; name a folder "
            "of its own, which need not exist yet"
        )


def _read(store: Store, number: int, files: dict[str, int]) -> bytes:
    name = file_of(number)
    if name not in files and name in disk.names(store, ""):
        raise damaged(number, "it is not a regular file")
    try:
        return store.read(name)
    except StoreError as error:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in _LOST:
            raise damaged(number, f"the disk cannot read it ({error.__cause__})") from error
        raise


def _end(body: bytes, number: int) -> bytes:
    checksum = blake2b(body, digest_size=16).hexdigest()
    return b'{"end":%d,"checksum":"%b"}\n' % (number, checksum.encode())


class _Refused(Exception):
    """A value that JSON would change. Its path is put together while unwinding, as this is rare."""

    def __init__(self, says: str, before: str = "") -> None:
        super().__init__(says)
        self.before = before
        self.path: list[str] = []


def encode_state(state: Any, name: str) -> bytes:
    """The state as JSON. Raises `UsageError`, with the path, for a value that JSON would change."""
    try:
        _refuse_changes(state, 0)
        return json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode()
    except _Refused as refused:
        where = name + "".join(reversed(refused.path))
        where = where if len(where) < 500 else f"{where[:60]}…"
        raise UsageError(
            f"{refused.before}{where} {refused}",
            remedy="Use only dicts with string keys, lists, strings, numbers, booleans and None",
        ) from None
    except RecursionError:
        raise UsageError(
            f"{name} cannot be written at this call depth: save it further up the call stack, or "
            "raise sys.setrecursionlimit()"
        ) from None


def _refuse_changes(value: Any, depth: int) -> None:
    kind = type(value)
    if kind is dict or kind is list:
        _refuse_inside(value, depth)
    elif kind is str:
        if not value.isascii():
            _refuse_surrogates(value)
    elif kind is float:
        if not math.isfinite(value):
            raise _Refused(f"is {value!r}, which JSON does not have; use None or a string")
    elif kind is int:
        if value.bit_length() > 4096:
            raise _Refused("is an integer of more than 4,096 bits; use hex() of it")
    elif kind is not bool and value is not None:
        raise _Refused(
            f"is of type {kind.__name__}, which would come back as another type: use dict, list, "
            "str, int, float, bool or None"
        )


def _refuse_inside(many: dict[Any, Any] | list[Any], depth: int) -> None:
    if depth >= _DEEPEST:
        raise _Refused(
            f"is nested more than {_DEEPEST} levels deep, or contains itself, so it could not "
            "always be read back"
        )
    if isinstance(many, dict):
        for key in many:
            _refuse_key(key)
    for at, each in many.items() if isinstance(many, dict) else enumerate(many):
        try:
            _refuse_changes(each, depth + 1)
        except _Refused as refused:
            refused.path.append(f"[{at!r}]")
            raise


def _refuse_key(key: Any) -> None:
    if type(key) is not str:
        raise _Refused(
            f"has the key {key!r}, but JSON has only string keys, so it would come back changed; "
            "use str() of it"
        )
    if not key.isascii():
        _refuse_surrogates(key, "a key of ")


def _refuse_surrogates(text: str, before: str = "") -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Refused("contains a lone surrogate, which is not valid text", before) from None


def damaged(number: int, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"{file_of(number)}: {what}", files=(file_of(number),))
