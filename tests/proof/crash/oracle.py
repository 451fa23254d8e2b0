"""What a checkpoint holds, read without the library: plain JSON, and Parquet by pyarrow."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyarrow import ArrowInvalid

from tests.proof.crash.child import Spec, value_of


@dataclass
class Found:
    """The journal's records as they stand: heads, keys by record number, the shards named.

    ``merged`` are the parts of the last merge, which wait for the next run to delete them.
    ``segments`` have the names of the records in each; ``beside`` is how many files are to go.
    """

    heads: list[dict[str, Any]] = field(default_factory=list)
    keys: list[list[int]] = field(default_factory=list)
    shards: list[str] = field(default_factory=list)
    merged: set[str] = field(default_factory=set)
    failed: list[int] = field(default_factory=list)
    segments: dict[str, list[str]] = field(default_factory=dict)
    beside: int = 0

    @property
    def all_keys(self) -> list[int]:
        return [key for keys in self.keys for key in keys]


def read_records(checkpoint: Path, found: Found) -> list[tuple[str, bytes]]:
    """The bytes of all records: what is in a segment, and what has a file of its own."""
    files = {path.name: path.read_bytes() for path in checkpoint.glob("journal/*.jsonl")}
    there = dict(files)
    for path in sorted(checkpoint.glob("journal/*.jsonl.gz")):
        first, last, kept = (int(part) for part in path.name.partition(".")[0].split("-"))
        texts = gzip.decompress(path.read_bytes()).split(b'\n{"kind":')
        assert len(texts) == last - first + 1, path.name
        for at, text in enumerate(texts):
            name = f"{first + at:020d}.jsonl"
            data = (b'{"kind":' if at else b"") + text + (b"\n" if at + 1 < len(texts) else b"")
            assert files.get(name, data) == data, f"{name} is another in {path.name}"
            there[name] = data
        found.segments[path.name] = [f"{n:020d}.jsonl" for n in range(first, last + 1)]
        beside = files.keys() & set(found.segments[path.name])
        assert len(beside) >= kept, f"beside {path.name} are only {beside}"
        found.beside += len(beside) - kept
    names = sorted(there)
    assert names == [f"{n:020d}.jsonl" for n in range(len(names))], f"a gap in {names}"
    return [(name, there[name]) for name in names]


def read_journal(checkpoint: Path) -> Found:
    """All records. Fails if one is missing, torn, or does not continue the one before it."""
    found = Found()
    each = read_records(checkpoint, found)
    if not each:
        return found
    assert (checkpoint / "job.json").exists(), "job.json is gone"
    previous = json.loads((checkpoint / "job.json").read_bytes())["id"]
    epoch = 0
    for number, (name, data) in enumerate(each):
        assert data.endswith(b"\n"), f"{name} is torn"
        assert data.count(b"\n") > 1, f"{name} is torn"
        lines = data.splitlines(keepends=True)
        head, end = json.loads(lines[0]), json.loads(lines[-1])
        assert head["number"] == end["end"] == number, name
        assert head["previous"] == previous, f"{name} does not continue the record before it"
        previous = blake2b(b"".join(lines[:-1]), digest_size=16).hexdigest()
        assert end["checksum"] == previous, f"the checksum of {name}"
        assert head["epoch"] >= epoch, f"{name} is of an epoch that was fenced"
        epoch = head["epoch"]
        entries = [json.loads(line) for line in lines[1:-1]]
        keys = [entry["key"] for entry in entries if "key" in entry]
        assert len(keys) == end["keys"], name
        found.heads.append(head)
        found.keys.append(keys)
        if head["kind"] == "merge":
            assert not entries, f"{name} is of a merge, and completes something"
            gone = head["info"]["retracted_shards"]
            assert set(gone) <= set(found.shards), f"{name} merges what does not count"
            found.shards = [path for path in found.shards if path not in gone]
            found.merged = set(gone)
        found.shards += [shard["path"] for shard in head.get("shards", ())]
        found.failed += [entry["failed"] for entry in entries if "failed" in entry]
    return found


def read_rows(checkpoint: Path, found: Found) -> Counter[int]:
    """How many rows each key has in the shards that the records name; all values are right."""
    rows: Counter[int] = Counter()
    for shard in found.shards:
        assert (checkpoint / shard).exists(), f"{shard} is named by a record, and is not there"
        try:
            found_rows = pq.ParquetFile(checkpoint / shard).read().to_pylist()
        except (OSError, ArrowInvalid) as error:
            raise AssertionError(f"{shard} is named by a record, and is damaged") from error
        for row in found_rows:
            assert row["value"] == value_of(row["id"]), f"{shard}: {row}"
            rows[row["id"]] += 1
    return rows


def consistent(spec: Spec) -> Found:
    """What holds at every moment: each committed key is named once and has exactly one row."""
    checkpoint = Path(spec.checkpoint_path)
    found = read_journal(checkpoint)
    named = Counter(found.all_keys)
    twice = [key for key, count in named.items() if count > 1]
    assert not twice, f"committed twice: {twice[:10]}"
    rows = read_rows(checkpoint, found)
    assert rows == named, f"rows of {sorted((rows - named) | (named - rows))[:10]} differ"
    lost = acked(spec) - set(range(len(found.heads)))
    assert not lost, f"told as committed, and not in the journal: {sorted(lost)}"
    return found


def complete(spec: Spec, *, tidy: bool = True) -> Found:
    """What holds after a run that has ended well: every item once, nothing left lying about."""
    checkpoint = Path(spec.checkpoint_path)
    found = consistent(spec)
    missing = set(range(spec.items)) - set(found.all_keys)
    assert not missing, f"missing after the end: {sorted(missing)[:10]}"
    assert len(found.all_keys) == spec.items
    if tidy:
        names = {str(path.relative_to(checkpoint)) for path in checkpoint.glob("*/*")}
        names |= {path.name for path in checkpoint.iterdir() if path.is_file()}
        assert not found.beside, f"{found.beside} records that are in segments have files too"
        folded = {name for names in found.segments.values() for name in names}
        names = {name for name in names if name.partition("/")[2] not in folded}
        expected = {f"journal/{n:020d}.jsonl" for n in range(len(found.heads))}
        expected -= {f"journal/{name}" for name in folded}
        expected |= {f"journal/{name}" for name in found.segments}
        expected |= {*found.shards, "job.json", "holder.lock"}
        names -= found.merged
        assert names == expected, f"left behind: {names - expected}, gone: {expected - names}"
    return found


def acked(spec: Spec) -> set[int]:
    """The numbers of the records that a listener was told of."""
    path = Path(spec.path("acked"))
    lines = path.read_text().splitlines() if path.exists() else []
    return {int(line.split()[0]) for line in lines}


def handled(spec: Spec) -> Counter[int]:
    """How often each key was handed to the handler, in all runs."""
    path = Path(spec.path("handled"))
    if not path.exists():
        return Counter()
    return Counter(int(key) for line in path.read_text().splitlines() for key in line.split()[1:])


def little_was_redone(spec: Spec, kills: int) -> None:
    """No more than was in flight at each kill was handled again."""
    twice = sum(count - 1 for count in handled(spec).values())
    bound = kills * 2 * spec.concurrency * spec.batch_size
    assert twice <= bound, f"{twice} items were handled again after {kills} kills, over {bound}"
