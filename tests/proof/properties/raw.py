"""A checkpoint read without the library: plain JSON, pyarrow's Parquet reader, hashlib."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


@dataclass
class Out:
    """A submission: its keys in order, what was prepared, and its handle."""

    keys: list[str]
    prints: list[str]
    prepared: Any = None
    handle: Any = None


@dataclass
class Raw:
    """What the files say.

    ``owner`` is the record that completed a key, ``home`` the shard with its rows, ``named`` the
    record that names a shard, ``merges`` those that have moved a key's rows, ``prints`` the
    fingerprint of a key that has one. ``files`` are those that the records are in, by number.
    ``out`` are the submissions that are neither settled nor withdrawn, by their tokens.
    """

    rows: dict[str, Any] = field(default_factory=dict)
    owner: dict[str, int] = field(default_factory=dict)
    home: dict[str, str] = field(default_factory=dict)
    merges: dict[str, set[int]] = field(default_factory=dict)
    failed: dict[str, int] = field(default_factory=dict)
    prints: dict[str, str] = field(default_factory=dict)
    shards: dict[str, dict[str, Any]] = field(default_factory=dict)
    named: dict[str, int] = field(default_factory=dict)
    heads: list[dict[str, Any]] = field(default_factory=list)
    out: dict[str, Out] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)


def files(root: Path) -> dict[str, bytes]:
    """Records and shards with their bytes, unfinished writes left out."""
    found = {}
    for folder in ("journal", "shards"):
        for path in sorted((root / folder).glob("[!.]*")):
            found[f"{folder}/{path.name}"] = path.read_bytes()
    return found


def record(number: int) -> str:
    return f"journal/{number:020d}.jsonl"


def segment(name: str) -> range | None:
    """The numbers of the records in a segment of this name."""
    found = re.fullmatch(r"(?:journal/)?(\d{20})-(\d{20})-\d+\.jsonl\.gz", name)
    return range(int(found[1]), int(found[2]) + 1) if found else None


def unpacked(data: bytes) -> list[bytes]:
    """The records in a segment."""
    return re.findall(rb'.*?^\{"end":[^\n]*\n', gzip.decompress(data), re.DOTALL | re.MULTILINE)


def journal(root: Path) -> dict[int, tuple[str, bytes]]:
    """The file and the bytes of each record: those of a segment, whatever else has its number."""
    found = {}
    names = sorted(path.name for path in (root / "journal").glob("[!.]*"))
    for name in (name for name in names if segment(name) is None):
        found[int(name.removesuffix(".jsonl"))] = (
            f"journal/{name}",
            (root / "journal" / name).read_bytes(),
        )
    for name in names:
        if numbers := segment(name):
            pieces = unpacked((root / "journal" / name).read_bytes())
            assert len(pieces) == len(numbers)
            found |= {n: (f"journal/{name}", p) for n, p in zip(numbers, pieces, strict=True)}
    return dict(sorted(found.items()))


def records(root: Path) -> list[bytes]:
    return [data for _, data in journal(root).values()]


def read(root: Path) -> Raw:
    """Fold the journal and read the shards, asserting all that the format promises."""
    raw = Raw()
    there = journal(root)
    assert list(there) == list(range(len(there))), f"records have gaps: {list(there)}"
    expected = {json.loads((root / "job.json").read_text())["id"]}
    epoch = 0
    for number, (name, data) in there.items():
        raw.files.append(name)
        *body, last, nothing = data.split(b"\n")
        assert nothing == b""
        end = json.loads(last)
        checksum = hashlib.blake2b(b"\n".join(body) + b"\n", digest_size=16).hexdigest()
        assert end["checksum"] == checksum, f"record {number} is damaged"
        head, *lines = map(json.loads, body)
        assert head["number"] == end["end"] == number
        assert head["previous"] in expected, f"record {number} breaks the chain"
        expected = {checksum, head.get("info", {}).get("stands_for", checksum)}
        if head["kind"] != "lost":
            assert head["epoch"] >= epoch, f"record {number} is of an older driver"
            epoch = head["epoch"]
        _fold(raw, number, head, lines, end)
        raw.heads.append(head)
    for path, shard in raw.shards.items():
        table = _table(root / path, shard["checksum"])
        assert table.num_rows == shard["rows"]
        assert (root / path).stat().st_size == shard["bytes"]
        for key, value in zip(*(table.column(c).to_pylist() for c in ("id", "v")), strict=True):
            assert key not in raw.rows, f"{key} has two rows"
            assert raw.home.get(key) == path, f"{key} has a row in {path}, which is not its shard"
            raw.rows[key] = value
    assert raw.rows.keys() == raw.owner.keys(), "rows and completed keys differ"
    return raw


def _fold(raw: Raw, number: int, head: dict, lines: list[dict], end: dict) -> None:
    done = [line["key"] for line in lines if "key" in line]
    failed = [line for line in lines if "failed" in line]
    retracted = [line["retracted"] for line in lines if "retracted" in line]
    assert (len(done), len(failed), len(retracted)) == (
        end["keys"],
        end["failures"],
        end["retracted"],
    )
    adopted = [line for line in lines if "adopted" in line]
    assert len(adopted) == end.get("adopted", 0)
    out = [line for line in lines if "out" in line]
    assert len(out) == end.get("out", 0)
    assert len(lines) == len(done) + len(failed) + len(retracted) + len(adopted) + len(out)
    _follow(raw, head, out)
    # What is retracted may be gone already: the record that had completed it was lost since.
    for key in retracted:
        for what in (raw.owner, raw.home, raw.prints, raw.merges):
            what.pop(key, None)
    if head["kind"] == "merge":
        assert not lines
        _merge(raw, number, head)
        return
    homes = [shard["path"] for shard in head.get("shards", ()) for _ in range(shard["keys"])]
    assert len(homes) == len(done), "every key of this job has its rows in a shard"
    for key, home in zip(done, homes, strict=True):
        assert key not in raw.owner, f"{key} is completed twice, the second time by {number}"
        raw.owner[key], raw.home[key] = number, home
        raw.failed.pop(key, None)
    for line in failed:
        raw.failed[line["failed"]] = line["attempts"]
    raw.prints |= {ln["key"]: ln["fingerprint"] for ln in lines if "key" in ln and len(ln) > 1}
    for line in adopted:
        raw.failed.pop(line["adopted"], None)
        if "fingerprint" in line and line["adopted"] in raw.owner:
            raw.prints[line["adopted"]] = line["fingerprint"]
    for path in head.get("info", {}).get("retracted_shards", ()):
        raw.shards.pop(path, None)
    for shard in head.get("shards", ()):
        raw.shards[shard["path"]], raw.named[shard["path"]] = shard, number


def _follow(raw: Raw, head: dict, out: list[dict]) -> None:
    """What becomes of submissions by a record."""
    info = head.get("info", {})
    for token in info.get("settled", ()):
        raw.out.pop(token, None)
    assert bool(out) == (head["kind"] == "submitting")
    if head["kind"] == "submitting":
        assert head["format"] == 2, "a program that knows no submissions must not read this"
        prints = [line["fingerprint"] for line in out if "fingerprint" in line]
        assert len(prints) in (0, len(out))
        raw.out[info["token"]] = Out([line["out"] for line in out], prints)
    elif head["kind"] == "prepared":
        raw.out[info["token"]].prepared = info["prepared"]
    elif head["kind"] == "submitted":
        raw.out[info["token"]].handle = info["handle"]


def _merge(raw: Raw, number: int, head: dict) -> None:
    paths = iter(head["info"]["retracted_shards"])
    for shard, parts in zip(head.get("shards", ()), head["info"]["merged"], strict=True):
        old = [next(paths) for _ in range(parts)]
        for path in old:
            raw.shards.pop(path, None)
        for key in [key for key, home in raw.home.items() if home in old]:
            raw.home[key] = shard["path"]
            raw.merges.setdefault(key, set()).add(number)
        raw.shards[shard["path"]], raw.named[shard["path"]] = shard, number
    assert next(paths, None) is None


@lru_cache(maxsize=500)
def _parsed(data: bytes) -> pa.Table:
    return pq.read_table(pa.BufferReader(data))


def _table(path: Path, checksum: str) -> pa.Table:
    data = path.read_bytes()
    found = hashlib.blake2b(data, digest_size=16).hexdigest()
    assert found == checksum, f"{path.name} is damaged"
    return _parsed(data)
