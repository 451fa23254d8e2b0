"""The format of the journal's records, each an immutable file ``journal/<20 digits>.jsonl``.

It is human-readable::

    {"kind":"commit","number":7,"epoch":3,…,"previous":"<checksum of record 6>","shards":[…]}
    {"key":"lesson-17"}
    {"key":"lesson-19","fingerprint":"5fd54e2b0c1a9d37"}
    {"failed":"lesson-18","attempts":1,"error":"ValueError","message":"…","batch":"…","time":"…"}
    {"end":7,"keys":2,"failures":1,"retracted":0,"checksum":"…"}

A record of submitted work has ``"format":2`` in its head, and a line ``{"out":"lesson-20"}`` for
each submitted key. A program that knows only format 1 refuses it, and so does not mistake such keys
for missing.

The checksum is the BLAKE2b-128 of all lines before the last
(``head -n -1 FILE | b2sum -l 128``). ``previous`` chains the records, so a missing,
reordered, edited or truncated record is detected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from resumable_tasks.base.hashes import blake2b
from resumable_tasks.checkpoint.directory import typed
from resumable_tasks.checkpoint.directory.record import OF_SUBMISSIONS, Commit
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import Store
from resumable_tasks.errors import CheckpointDamaged, CheckpointUnusable
from resumable_tasks.items import keys
from resumable_tasks.items.fingerprints import from_text, to_text
from resumable_tasks.runners.outcome import Failure, Shard

FOLDER = "journal"
_SHARD_PATH = re.compile(r"shards/e[0-9]+-[0-9a-z-]+\.parquet")
_KEY, _RETRACTED, _ADOPTED = b'{"key":', b'{"retracted":', b'{"adopted":'
_OUT = b'{"out":'
# The highest record format that this version reads; a head without a format means 1.
_FORMAT, _OF_SUBMISSIONS = 2, {"format": 2}
# Separates a key from its fingerprint. No key contains it, since quotes in keys are escaped.
_FINGERPRINT = b',"fingerprint":"'
_FINGERPRINT_BYTES = len(_FINGERPRINT) + 16 + len(b'"}')
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
CONVERTED = (
    "its line endings were changed to CRLF, by git or an editor; nothing else is wrong, and a "
    "repair undoes that"
)
# The size limit of a record; a longer file is not read.
MOST_BYTES = 1 << 30


def record_name(number: int) -> str:
    return f"{FOLDER}/{number:020d}.jsonl"


def record_number(name: str) -> int | None:
    """The number in a record's name; None if it is not a record's name."""
    found = re.fullmatch(FOLDER + r"/([0-9]{20})\.jsonl", name)
    return int(found[1]) if found else None


def encode(commit: Commit) -> tuple[bytes, str]:
    """A record as bytes, and its checksum."""
    head: dict[str, Any] = {
        "kind": commit.kind,
        "number": commit.number,
        "epoch": commit.epoch,
        "run": commit.run,
        "time": commit.time,
        "nonce": commit.nonce,
        "previous": commit.previous,
    }
    if commit.kind in OF_SUBMISSIONS:
        head |= _OF_SUBMISSIONS
    if commit.shards:
        head["shards"] = [asdict(shard) for shard in commit.shards]
    if commit.schema:
        head["schema"] = commit.schema
    # The failures of a batch share one traceback, which is long.
    tracebacks = list(dict.fromkeys(f.traceback for f in commit.failures if f.traceback))
    if tracebacks:
        head["tracebacks"] = tracebacks
    places = {text: at for at, text in enumerate(tracebacks)}
    if commit.info:
        head["info"] = dict(commit.info)
    parts = [_dumps(head) + b"\n", _wrap(_KEY, commit.keys, commit.fingerprints)]
    parts += [
        b'{"failed":%b,%b\n' % (keys.canonical(f.key), _dumps(_failure_fields(f, places))[1:])
        for f in commit.failures
    ]
    parts.append(_wrap(_RETRACTED, commit.retracted))
    parts.append(_wrap(_ADOPTED, commit.adopted, commit.adopted_fingerprints))
    parts.append(_wrap(_OUT, commit.out, commit.out_fingerprints))
    body = b"".join(parts)
    checksum = blake2b(body, digest_size=16).hexdigest()
    end = {
        "end": commit.number,
        "keys": commit.key_count,
        "failures": len(commit.failures),
        "retracted": _count(commit.retracted),
        **({"adopted": _count(commit.adopted)} if commit.adopted else {}),
        **({"out": _count(commit.out)} if commit.out else {}),
        "checksum": checksum,
    }
    return body + _dumps(end) + b"\n", checksum


def decode(data: bytes, name: str, place: str = "") -> Commit:
    """A record from its bytes, for the checkpoint at this place.

    Raises `CheckpointDamaged` with the file's name and what is wrong with it.
    """
    try:
        return _decode(data, name, place)
    except CheckpointDamaged:
        if b"\r\n" in data:
            decode(unconverted(data), name, place)
            raise damaged(name, CONVERTED, place) from None
        raise
    except UNREADABLE as error:
        raise damaged(name, f"it cannot be read: {error!r}", place) from error


def unconverted(data: bytes) -> bytes:
    """Restore line endings that git or an editor has changed. Records contain no raw CR."""
    return data.replace(b"\r\n", b"\n")


def _decode(data: bytes, name: str, place: str) -> Commit:
    cut = data.rfind(b"\n", 0, -1) + 1
    if not data.endswith(b"\n") or not data.startswith(b"{", cut):
        raise damaged(name, "it is cut short", place)
    body, end = data[:cut], json.loads(data[cut:])
    checksum = blake2b(body, digest_size=16).hexdigest()
    if checksum != end["checksum"]:
        raise damaged(name, "its checksum does not match its lines", place)
    first = body.index(b"\n") + 1
    head = json.loads(body[:first])
    _check_head(head, end, name, place)
    lines = body[first:-1] if len(body) > first else b""
    # A record with submitted keys has no other lines.
    lines, out = (b"", lines) if end.get("out") else (lines, b"")
    failures: tuple[Failure, ...] = ()
    retracted = adopted = b""
    if end["failures"] or end["retracted"] or "adopted" in end:
        each = lines.split(b"\n") if lines else []
        at, to = end["keys"], end["keys"] + end["failures"]
        last = to + end["retracted"]
        adopted, each = b"\n".join(each[last:]), each[:last]
        tracebacks = head.get("tracebacks", [])
        failures = tuple(_failure(json.loads(line), tracebacks) for line in each[at:to])
        kinds = [(line, _KEY) for line in each[:at]] + [(line, _RETRACTED) for line in each[to:]]
        kinds += [(line, _ADOPTED) for line in adopted.split(b"\n") if adopted]
        if not all(line.startswith(kind) for line, kind in kinds):
            raise damaged(name, "its lines are not of the kinds that it declares", place)
        lines, retracted = b"\n".join(each[:at]), _unwrap(_RETRACTED, b"\n".join(each[to:]))
    if out and not all(line.startswith(_OUT) for line in out.split(b"\n")):
        raise damaged(name, "its lines are not of the kinds that it declares", place)
    found, taken = _unwrap_fingerprints(_KEY, lines)
    adopted, adopted_fingerprints = _unwrap_fingerprints(_ADOPTED, adopted)
    out, out_fingerprints = _unwrap_fingerprints(_OUT, out)
    counts = (_count(found), len(failures), _count(retracted), _count(adopted), _count(out))
    told = (end["keys"], end["failures"], end["retracted"], end.get("adopted", 0))
    if counts != (*told, end.get("out", 0)):
        raise damaged(name, "it does not have as many lines as it declares", place)
    shards = _shards(head, name, place)
    typed.check(head, end, shards, failures)
    return Commit(
        kind=head["kind"],
        epoch=head["epoch"],
        run=head["run"],
        number=head["number"],
        time=head["time"],
        nonce=head["nonce"],
        previous=head["previous"],
        checksum=checksum,
        keys=found,
        key_count=end["keys"],
        shards=shards,
        schema=head.get("schema"),
        failures=failures,
        retracted=retracted,
        fingerprints=taken,
        adopted=adopted,
        adopted_fingerprints=adopted_fingerprints,
        out=out,
        out_fingerprints=out_fingerprints,
        info=head.get("info", {}),
    )


def _check_head(head: Mapping[str, Any], end: Mapping[str, Any], name: str, place: str) -> None:
    if record_name(head["number"]) != name or end["end"] != head["number"]:
        raise damaged(name, f"it is record {head['number']}, under another record's name", place)
    if head.get("format", 1) > _FORMAT:
        raise CheckpointUnusable(
            f"{place or 'the checkpoint'}: {name} has format {head['format']!r}, but this version "
            f"reads formats up to {_FORMAT}",
            remedy="Install a newer version of resumable-tasks",
        )


def _shards(head: Mapping[str, Any], name: str, place: str) -> tuple[Shard, ...]:
    shards = tuple(Shard(**shard) for shard in head.get("shards", ()))
    for shard in shards:
        # Checked before any path is used, so that a journal cannot name a file outside.
        if not _SHARD_PATH.fullmatch(shard.path):
            raise damaged(name, f"it names an invalid shard {keys.shorten(shard.path)}", place)
    return shards


def _dumps(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _count(lines: bytes) -> int:
    return lines.count(b"\n") + 1 if lines else 0


def _wrap(prefix: bytes, lines: bytes, fingerprints: bytes = b"") -> bytes:
    if fingerprints:
        each = zip(lines.split(b"\n"), fingerprints.split(b"\n"), strict=True)
        return b"".join(
            b'%b%b%b%b"}\n' % (prefix, line, _FINGERPRINT, text)
            if text
            else b"%b%b}\n" % (prefix, line)
            for line, text in each
        )
    return prefix + lines.replace(b"\n", b"}\n" + prefix) + b"}\n" if lines else b""


def _unwrap(prefix: bytes, lines: bytes) -> bytes:
    # Canonical keys contain no raw newline, so the pattern between two lines is unambiguous.
    return lines[len(prefix) : -1].replace(b"}\n" + prefix, b"\n") if lines else b""


def _unwrap_fingerprints(prefix: bytes, lines: bytes) -> tuple[bytes, bytes]:
    """The keys in these lines, and their fingerprints. Fast if there are no fingerprints."""
    if _FINGERPRINT not in lines:
        return _unwrap(prefix, lines), b""
    each = lines.split(b"\n")
    has = [line[-_FINGERPRINT_BYTES:].startswith(_FINGERPRINT) for line in each]
    start = len(prefix)
    found = [
        line[start : -_FINGERPRINT_BYTES if here else -1]
        for line, here in zip(each, has, strict=True)
    ]
    taken = [line[-18:-2] if here else b"" for line, here in zip(each, has, strict=True)]
    return b"\n".join(found), b"\n".join(taken)


def _failure_fields(failure: Failure, tracebacks: Mapping[str, int]) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "attempts": failure.attempts,
        "error": failure.error,
        "message": failure.message,
        "batch": failure.batch,
        "time": failure.time,
    }
    if failure.traceback:
        fields["traceback"] = tracebacks[failure.traceback]
    if failure.item is not None:
        fields["item"] = failure.item
    if failure.error_of == "batch":
        fields["error_of"] = failure.error_of
    if failure.rows is not None:
        fields["rows"] = failure.rows
        if failure.fingerprint >= 0:
            fields["fingerprint"] = to_text(failure.fingerprint).decode()
    return fields


def _failure(line: Mapping[str, Any], tracebacks: Sequence[str]) -> Failure:
    key = line["failed"]
    return Failure(
        key=tuple(key) if isinstance(key, list) else key,
        error=line["error"],
        message=line["message"],
        attempts=line["attempts"],
        batch=line["batch"],
        time=line["time"],
        traceback=tracebacks[line["traceback"]] if "traceback" in line else "",
        item=line.get("item"),
        error_of=line.get("error_of", "item"),
        rows=tuple(line["rows"]) if "rows" in line else None,
        fingerprint=from_text(line.get("fingerprint", "").encode()),
    )


def damaged(name: str, what: str, place: str) -> CheckpointDamaged:
    return CheckpointDamaged(what, files=(name,), place=place)


def read(store: Store, name: str) -> bytes:
    """The bytes of a record. Raises ``FileNotFoundError`` or `CheckpointDamaged`."""
    return disk.read(store, name, MOST_BYTES)
