"""The append-only journal: the format of its records, and the protocol of adding one.

A record is one immutable file ``journal/<20 digits>.jsonl``, created by put-if-absent: the
creation is the commit. It reads by eye::

    {"kind":"commit","number":7,"epoch":3,…,"previous":"<checksum of record 6>","shards":[…]}
    {"key":"lesson-17"}
    {"key":"lesson-19","fingerprint":"5fd54e2b0c1a9d37"}
    {"failed":"lesson-18","attempts":1,"error":"ValueError","message":"…","batch":"…","time":"…"}
    {"end":7,"keys":2,"failures":1,"retracted":0,"checksum":"…"}

The checksum is the BLAKE2b-128 of all lines before the last
(``head -n -1 FILE | b2sum -l 128``). ``previous`` chains the records, so one that is missing,
reordered, edited or cut is found.

The rules that make it safe (Delta Lake's numbered log and SlateDB's fencing; checked by the
state machine in ``tests/proof/properties``):

* I1: record n is created only by an author who has read or written 0 … n-1;
* I2: its keys are disjoint from all earlier keys, less those retracted, by itself included;
* I3: its author's epoch is the highest that the journal shows;
* I4: a record is never deleted or rewritten while the job exists.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from hashlib import blake2b
from typing import Any

from resumable_tasks.base.clock import now
from resumable_tasks.base.faults import fault_point
from resumable_tasks.base.text import clean
from resumable_tasks.base.token import token
from resumable_tasks.checkpoint.directory import typed
from resumable_tasks.checkpoint.directory.record import Commit
from resumable_tasks.checkpoint.store import disk
from resumable_tasks.checkpoint.store.base import CreateUnknown, Store
from resumable_tasks.errors import CheckpointDamaged, CommitStateUnknown, Fenced, StoreError
from resumable_tasks.items import keys
from resumable_tasks.runners.outcome import Failure, Shard

FOLDER = "journal"
_SHARD_PATH = re.compile(r"shards/e[0-9]+-[0-9a-z-]+\.parquet")
_KEY, _RETRACTED, _ADOPTED = b'{"key":', b'{"retracted":', b'{"adopted":'
# Between a key and its fingerprint. No key holds it: its quotes would be escaped there.
_FINGERPRINT = b',"fingerprint":"'
_FINGERPRINT_BYTES = len(_FINGERPRINT) + 16 + len(b'"}')
_SETTLE_TRIES = 3
# Kinds whose writer has nothing that another record could contradict, but its number.
_TRIED_AGAIN = ("claim", "archive")
UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError)
CONVERTED = (
    "its line endings were changed to CRLF, by git or an editor; nothing else is wrong with it, "
    "and a repair undoes that"
)
# More than a record ever has; what is longer is none, and is not read.
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
    body = b"".join(parts)
    checksum = blake2b(body, digest_size=16).hexdigest()
    end = {
        "end": commit.number,
        "keys": commit.key_count,
        "failures": len(commit.failures),
        "retracted": _count(commit.retracted),
        **({"adopted": _count(commit.adopted)} if commit.adopted else {}),
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
            raise _damaged(name, CONVERTED, place) from None
        raise
    except UNREADABLE as error:
        raise _damaged(name, f"it cannot be read: {error!r}", place) from error


def unconverted(data: bytes) -> bytes:
    """The record whose line endings git or an editor has changed. No raw CR is in a record."""
    return data.replace(b"\r\n", b"\n")


def _decode(data: bytes, name: str, place: str) -> Commit:
    cut = data.rfind(b"\n", 0, -1) + 1
    if not data.endswith(b"\n") or not data.startswith(b"{", cut):
        raise _damaged(name, "it is cut short", place)
    body, end = data[:cut], json.loads(data[cut:])
    checksum = blake2b(body, digest_size=16).hexdigest()
    if checksum != end["checksum"]:
        raise _damaged(name, "its checksum does not match its lines", place)
    first = body.index(b"\n") + 1
    head = json.loads(body[:first])
    if record_name(head["number"]) != name or end["end"] != head["number"]:
        raise _damaged(name, f"it is record {head['number']}, under another record's name", place)
    lines = body[first:-1] if len(body) > first else b""
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
            raise _damaged(name, "its lines are not of the kinds that it says", place)
        lines, retracted = b"\n".join(each[:at]), _unwrap(_RETRACTED, b"\n".join(each[to:]))
    found, taken = _unwrap_fingerprints(_KEY, lines)
    adopted, adopted_fingerprints = _unwrap_fingerprints(_ADOPTED, adopted)
    counts = (_count(found), len(failures), _count(retracted), _count(adopted))
    if counts != (end["keys"], end["failures"], end["retracted"], end.get("adopted", 0)):
        raise _damaged(name, "its lines are not as many as it says", place)
    shards = tuple(Shard(**shard) for shard in head.get("shards", ()))
    for shard in shards:
        # A path is only ever used after this: a journal cannot name a file outside.
        if not _SHARD_PATH.fullmatch(shard.path):
            raise _damaged(name, f"it names a shard {keys.shorten(shard.path)}", place)
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
        info=head.get("info", {}),
    )


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
    # Canonical keys hold no raw newline, so the pattern between two lines is unambiguous.
    return lines[len(prefix) : -1].replace(b"}\n" + prefix, b"\n") if lines else b""


def _unwrap_fingerprints(prefix: bytes, lines: bytes) -> tuple[bytes, bytes]:
    """The keys in these lines, and their fingerprints; none at all costs one search."""
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
    )


def _damaged(name: str, what: str, place: str) -> CheckpointDamaged:
    return CheckpointDamaged(what, files=(name,), place=place)


def read(store: Store, name: str) -> bytes:
    """The bytes of a record. Raises ``FileNotFoundError`` or `CheckpointDamaged`."""
    return disk.read(store, name, MOST_BYTES)


def read_some(store: Store, numbers: Sequence[int]) -> Iterator[Commit]:
    """The records of these numbers, in their order, read ahead where reads are slow.

    Raises `CheckpointDamaged`, also for one that is not there.
    """
    names = [(record_name(number), MOST_BYTES) for number in numbers]
    for (name, _), data in zip(names, disk.read_each(store, names), strict=True):
        if isinstance(data, FileNotFoundError):
            raise _damaged(name, "it is missing", store.url)
        if isinstance(data, CheckpointDamaged):
            raise data
        yield decode(data, name, store.url)


def numbers(store: Store, first: int = 0) -> list[int]:
    """The numbers of the records from this one on, in order."""
    # A listing is no snapshot: a record created during it can be missed and its successor
    # seen. What is still missing in a second listing was not there.
    for last_try in (False, True):
        names = map(record_number, disk.names(store, FOLDER))
        found = sorted(n for n in names if n is not None and n >= first)
        if not found or found[-1] == first + len(found) - 1 or last_try:
            break
    return found


class Journal:
    """The journal of one checkpoint, as one reader or driver knows it.

    ``anchor`` is what record 0 names as the record before it: the id of the manifest. Not safe
    for use by several threads at once; the driver has one committer.
    """

    def __init__(self, store: Store, anchor: str) -> None:
        self._store = store
        self._last_checksum = anchor
        self._stands_for: str | None = None
        self._epoch = 0
        self._usable = True
        self._listed: list[int] | None = None
        self.next_number = 0

    @property
    def last_checksum(self) -> str:
        """The checksum of the last record that was read or appended."""
        return self._last_checksum

    def read_first(self, listed: list[int]) -> None:
        """Let the next `read_new` read the records of this listing, and no later ones."""
        self._listed = listed

    @classmethod
    def after(cls, store: Store, last: Commit) -> Journal:
        """The journal to be appended to after this record, whatever those before it look like."""
        journal = cls(store, "")
        journal._advance(last)
        return journal

    def wait_longer(self) -> None:
        """Wait long for a service that does not answer: from here on there are results to keep."""
        self._store = disk.patient(self._store)

    def read_new(self) -> Iterator[Commit]:
        """The records that this object has not yet seen, verified, in order.

        Raises `CheckpointDamaged` for one that is missing before another, unreadable, or does not
        continue the one before it. Concurrent appends are no damage.
        """
        listed, self._listed = self._listed, None
        if listed is None:
            listed = numbers(self._store, self.next_number)
        each = disk.read_all(self._store, ((record_name(number), MOST_BYTES) for number in listed))
        for number in listed:
            name = record_name(self.next_number)
            if number != self.next_number:
                raise _damaged(name, "it is missing, and a later record is there", self._store.url)
            try:
                data = next(each)
            except FileNotFoundError:
                raise _damaged(
                    name, "it has gone while it was being read", self._store.url
                ) from None
            yield self._follow(decode(data, name, self._store.url))

    def follow(self) -> Iterator[Commit]:
        """The records that have come since, as `read_new`, found without a listing.

        One that is missing ends it, whatever comes behind; `read_new` tells that this is damage.
        """
        while True:
            name = record_name(self.next_number)
            try:
                data = read(self._store, name)
            except FileNotFoundError:
                return
            yield self._follow(decode(data, name, self._store.url))

    def append(self, commit: Commit, *, again: bool = False) -> Commit:
        """Durable on return, as the next record after all that this object has seen.

        Returns the record as it stands in the journal. Raises `Fenced` if a newer driver has
        taken over, `StoreError` if nothing was written, `CommitStateUnknown` if that is not
        known; after any of these the object refuses to append again. Raises `RecordTaken` if
        another's record, not yet seen, is in the place of a claim or the like: read it, and decide
        again. ``again``: nothing hangs on this record; after a `StoreError` which says that it was
        not written others can be appended.
        """
        if not self._usable:
            raise StoreError("this journal has failed before; open the checkpoint again")
        self._usable = False  # until this one is known to have landed
        commit = replace(
            commit,
            number=self.next_number,
            previous=self._last_checksum,
            nonce=token(8),
            time=commit.time or now(),
        )
        data, checksum = encode(commit)
        if len(data) > MOST_BYTES:
            raise StoreError(
                f"record {commit.number} would have {len(data):,} bytes",
                remedy="Give a smaller batch_size, so that a commit is of fewer items",
            )
        try:
            self._create(commit, data)
        except CommitStateUnknown:
            raise
        except StoreError:
            self._usable = again
            if again:
                self.check_not_overtaken(commit)
            raise
        fault_point("journal.created")
        commit = replace(commit, checksum=checksum)
        self._advance(commit)
        self._usable = True
        return commit

    def _create(self, commit: Commit, data: bytes) -> None:
        name, why = record_name(commit.number), ""
        for _ in range(_SETTLE_TRIES):
            fault_point("journal.before_create")
            try:
                if self._store.create(name, data):
                    return
            except CreateUnknown as error:
                if not error.readable_is_durable:
                    raise CommitStateUnknown(
                        f"{error}. Whether record {commit.number} is committed is unknown",
                        safe="Nothing is lost: the next run finds out",
                        remedy="Fix the disk and run the same command again",
                    ) from error
                why = f": {error}"
            # Only "created" is trusted. Anything else is settled by what stands there.
            try:
                disk.sync(self._store, FOLDER)
                other = decode(read(self._store, name), name, self._store.url)
            except FileNotFoundError:
                continue  # nothing is there: the same bytes again
            except StoreError as error:
                raise CommitStateUnknown(
                    f"cannot tell whether record {commit.number} is committed: {error}",
                    safe="Nothing is lost: the next run finds out",
                    remedy="Run the same command again",
                ) from error
            if other.nonce == commit.nonce:
                return
            self._judge(commit, other)
        raise CommitStateUnknown(
            f"record {commit.number} could neither be created nor found in {_SETTLE_TRIES} tries"
            f"{why}",
            safe="Nothing is lost: the next run finds out whether it is committed",
            remedy="Run the same command again",
        )

    def check_not_overtaken(self, mine: Commit) -> None:
        """Raises `Fenced` if a newer driver has committed: ``mine`` could not be appended."""
        for other in self.read_new():
            self._judge(mine, other)

    def _judge(self, mine: Commit, other: Commit) -> None:
        if mine.kind in _TRIED_AGAIN:
            self._usable = True
            raise RecordTaken(other)
        raise Fenced(
            f"another run has taken this checkpoint over: record {other.number} is by "
            f"{describe(other)}, in epoch {other.epoch} after this run's {mine.epoch}",
            safe="What this run had committed stands; the batches in flight were left to the other",
            holder={"run": other.run, "since": other.time, **other.info},
            remedy="Let the other run end; run the same command again to do what is then left",
        )

    def _follow(self, commit: Commit) -> Commit:
        name = record_name(commit.number)
        if commit.previous not in (self._last_checksum, self._stands_for):
            raise _damaged(name, "it does not continue the record before it", self._store.url)
        if commit.epoch < self._epoch and commit.kind != "lost":
            raise _damaged(
                name, f"it is of epoch {commit.epoch}, after epoch {self._epoch}", self._store.url
            )
        self._advance(commit)
        return commit

    def _advance(self, commit: Commit) -> None:
        self.next_number = commit.number + 1
        self._last_checksum = commit.checksum
        self._stands_for = commit.info.get("stands_for")
        self._epoch = max(self._epoch, commit.epoch)


class RecordTaken(Exception):
    """`Journal.append` found another driver's record in its place, and this one can come later."""

    def __init__(self, other: Commit) -> None:
        super().__init__(f"record {other.number} is taken")
        self.other = other


def describe(commit: Commit) -> str:
    """Name the writer of a record, for a message."""
    info = commit.info
    host, pid = clean(str(info.get("host")), 80), clean(str(info.get("pid")), 20)
    where = f" on {host} (pid {pid})" if "host" in info else ""
    return f"run {clean(commit.run, 40)}{where}, {clean(commit.time, 40)}"
