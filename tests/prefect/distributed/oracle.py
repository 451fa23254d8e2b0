"""What a checkpoint holds, read without the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq


def records(place: Path) -> list[list[Any]]:
    """The lines of each record of the journal."""
    paths = sorted((place / "journal").glob("*.jsonl"))
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in paths]


def keys(place: Path) -> list[Any]:
    """The completed keys, in the order of their commits."""
    return [line["key"] for record in records(place) for line in record[1:-1] if "key" in line]


def failed(place: Path) -> set[Any]:
    found = {line["failed"] for record in records(place) for line in record if "failed" in line}
    return found - set(keys(place))


def shards(place: Path) -> list[str]:
    """The shards that count."""
    gone = set(merged(place))
    named = [s["path"] for record in records(place) for s in record[0].get("shards", ())]
    return [path for path in named if path not in gone]


def merged(place: Path) -> list[str]:
    """The shards whose rows are in larger ones; the last of them may still be there."""
    heads = [record[0] for record in records(place) if record[0]["kind"] == "merge"]
    return [path for head in heads for path in head["info"]["retracted_shards"]]


def rows(place: Path) -> list[dict[str, Any]]:
    """The rows of the committed shards."""
    return [row for path in shards(place) for row in pq.read_table(place / path).to_pylist()]


def orphans(place: Path) -> set[str]:
    """The shards that no record names."""
    there = {f"shards/{name}" for name in _names(place / "shards")}
    return there - {*shards(place), *merged(place)}


def outbox(place: Path) -> set[str]:
    return _names(place / "outbox")


def unfinished(place: Path) -> set[Path]:
    """What writes that were cut off have left."""
    return set(place.rglob("*.tmp"))


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.suffix != ".tmp"}


def each_once(place: Path, ids: set[Any], column: str = "id") -> None:
    """Every one of these was committed once, and has one row."""
    committed, found = keys(place), [row[column] for row in rows(place)]
    assert len(committed) == len(set(committed)), "a key was committed twice"
    assert set(committed) == ids
    assert sorted(found) == sorted(ids), "rows lost, or there twice"
