"""The format of a snapshot's generation: what is written, and what is believed of what is read.

Three lines: a head, the state, and an end with the checksum of the two before it.
"""

from __future__ import annotations

import json
import math
import re
import secrets
from hashlib import blake2b
from typing import Any

from resumable_tasks.errors import CheckpointDamaged, CheckpointMismatch, UsageError
from resumable_tasks.journal import now

FORMAT = 1
_NAME = re.compile(r"([0-9]{20})\.json")


def file_of(number: int) -> str:
    return f"{number:020d}.json"


def number_of(name: str) -> int | None:
    """The number in a generation's name; None if it is not one's."""
    found = _NAME.fullmatch(name)
    return int(found[1]) if found else None


def encode(state: bytes, number: int, version: int) -> bytes:
    """A generation as bytes."""
    head = {
        "snapshot": FORMAT,
        "generation": number,
        "version": version,
        "time": now(),
        "nonce": secrets.token_hex(8),
    }
    body = json.dumps(head, separators=(",", ":")).encode() + b"\n" + state + b"\n"
    return body + _end(body, number)


def decode(data: bytes, number: int) -> tuple[bytes, Any, int]:
    """The state of a generation, as text and as values, and its version.

    Raises `CheckpointDamaged` for anything but what was written.
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
                f"{file_of(number)} is in format {head['snapshot']}, this version of "
                f"resumable-tasks knows format {FORMAT}: install the version that wrote it"
            )
        return lines[1], json.loads(lines[1]), head["version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(number, f"it cannot be read: {error!r}") from error


def _end(body: bytes, number: int) -> bytes:
    checksum = blake2b(body, digest_size=16).hexdigest()
    return b'{"end":%d,"checksum":"%b"}\n' % (number, checksum.encode())


def encode_state(state: Any, name: str) -> bytes:
    """The state as JSON. Raises `UsageError`, with the place, for what would not come back."""
    try:
        _refuse_changes(state, name)
        return json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError:
        raise UsageError(f"{name} is nested too deeply, or holds itself") from None


def _refuse_changes(value: Any, where: str) -> None:
    kind = type(value)
    if kind is dict:
        for key, each in value.items():
            if type(key) is not str:
                raise UsageError(
                    f"{where} has the key {key!r}, and JSON has only strings as keys: it would "
                    "come back as another one; use str() of it"
                )
            _refuse_changes(key, f"a key of {where}")
            _refuse_changes(each, f"{where}[{key!r}]")
    elif kind is list:
        for at, each in enumerate(value):
            _refuse_changes(each, f"{where}[{at}]")
    elif kind is str:
        if not value.isascii():
            try:
                value.encode()
            except UnicodeEncodeError:
                raise UsageError(f"{where} holds a lone surrogate, which is no text") from None
    elif kind is float:
        if not math.isfinite(value):
            raise UsageError(f"{where} is {value!r}, which JSON has not; use None or a string")
    elif kind is int:
        if value.bit_length() > 4096:
            raise UsageError(f"{where} is an integer of more than 4,096 bits; use hex() of it")
    elif kind is not bool and value is not None:
        raise UsageError(
            f"{where} is of type {kind.__name__}, which would not come back as what it is: use "
            "dict, list, str, int, float, bool or None"
        )


def damaged(number: int, what: str) -> CheckpointDamaged:
    return CheckpointDamaged(f"{file_of(number)}: {what}", files=(file_of(number),))
