"""Files that somebody has made by hand: whatever they say, the error is ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resumable_tasks import CheckpointDamaged, ResumableTasksError, resumable_task
from resumable_tasks.checkpoint.directory import holder
from resumable_tasks.checkpoint.directory.completed import completed_lines
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.directory.repair import repair, verify
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.errors import CheckpointHeld
from resumable_tasks.results.publish import publish

ITEMS = [{"id": i, "v": i} for i in range(20)]
JOB = resumable_task(lambda rows: rows, name="job", key="id", batch_size=10, concurrency=1)
DEEP = "[" * 50_000 + "]" * 50_000


@pytest.fixture
def filled(place: Path) -> Path:
    JOB.run(ITEMS, checkpoint=place)
    return place


def acts(place: Path) -> list[Callable[[], object]]:
    store = LocalStore(place)

    def look() -> None:
        looking = Reader(store)
        looking.examine()
        assert looking.damage is not None
        raise looking.damage

    return [
        look,
        lambda: list(completed_lines(store)),
        lambda: publish(DirectoryReader(store), place.parent / "published"),
        lambda: JOB.run(ITEMS, checkpoint=place),
    ]


def forge(place: Path, number: int, change: Callable[[dict[str, Any], dict[str, Any]], object]):
    """Change the head and the end of a record, with the checksum that is right for it."""
    path = place / f"journal/{number:020d}.jsonl"
    head, *lines, end = path.read_text().splitlines()
    head, end = json.loads(head), json.loads(end)
    change(head, end)
    body = "".join(f"{line}\n" for line in (json.dumps(head), *lines)).encode()
    end["checksum"] = blake2b(body, digest_size=16).hexdigest()
    path.write_bytes(body + json.dumps(end).encode() + b"\n")


WRONG: list[Any] = [None, [], "x", -1]
FIELDS = ("number", "epoch", "run", "time", "nonce", "previous", "kind", "info", "schema", "shards")


@pytest.mark.sample
@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("field", FIELDS)
def test_a_record_with_a_value_of_another_type_is_damaged(
    field: str, value: Any, filled: Path
) -> None:
    before = json.loads((filled / f"journal/{1:020d}.jsonl").read_text().splitlines()[0])
    if type(value) is type(before.get(field)) and field in ("run", "nonce", "kind", "time"):
        pytest.skip("it is of this type")
    if (field, value) in (("schema", None), ("shards", [])):
        pytest.skip("as if there were none")
    forge(filled, 1, lambda head, end: head.update({field: value}))
    for act in acts(filled):
        with pytest.raises(CheckpointDamaged):
            act()
    assert verify(LocalStore(filled)).damages
    repair(LocalStore(filled))
    assert verify(LocalStore(filled)).damages == []
    assert JOB.run(ITEMS, checkpoint=filled).table().num_rows == len(ITEMS)


@pytest.mark.parametrize("value", WRONG, ids=repr)
@pytest.mark.parametrize("field", ["keys", "failures", "retracted", "adopted", "end"])
def test_a_record_whose_end_says_what_none_does_is_damaged(
    field: str, value: Any, filled: Path
) -> None:
    forge(filled, 1, lambda head, end: end.update({field: value}))
    for act in acts(filled):
        with pytest.raises(CheckpointDamaged):
            act()


ITEM = {"position": 1, "error": "InvalidKey", "message": "item 1"}
KEYLESS = [
    [],
    {"count": 1},
    {"count": "1", "first": []},
    {"count": 1, "first": {}},
    {"count": 1, "first": [7]},
    *({"count": 1, "first": [{**ITEM, name: None}]} for name in ITEM),
]


@pytest.mark.parametrize("value", KEYLESS, ids=repr)
def test_an_end_whose_items_without_keys_are_none_is_damaged(value: Any, filled: Path) -> None:
    number = len(list((filled / "journal").iterdir())) - 1
    forge(filled, number, lambda head, end: head["info"].update(keyless=value))
    for act in acts(filled):
        with pytest.raises(CheckpointDamaged):
            act()


@pytest.mark.parametrize("value", [[], None, 7, "", True], ids=repr)
@pytest.mark.parametrize("field", ["id", "job", "version", "results", "created", "format"])
def test_a_manifest_with_a_value_of_another_type_is_ours(
    field: str, value: Any, filled: Path
) -> None:
    path = filled / "job.json"
    fields = json.loads(path.read_text())
    if value == "" and field != "id":
        pytest.skip("it is open")
    path.write_text(json.dumps(fields | {field: value}))
    for act in acts(filled)[1:]:
        with pytest.raises(ResumableTasksError) as caught:
            act()
        assert caught.value.exit_code in (2, 4)
    if (field, value) != ("format", 7):  # of a format to come
        assert [damage.file for damage in verify(LocalStore(filled)).damages] == ["job.json"]


@pytest.mark.parametrize("name", ["job.json", f"journal/{1:020d}.jsonl"])
def test_what_is_nested_without_end_is_damaged(name: str, filled: Path) -> None:
    (filled / name).write_text(DEEP + "\n")
    for act in acts(filled):
        with pytest.raises(CheckpointDamaged):
            act()
    assert [damage.file for damage in verify(LocalStore(filled)).damages] == [name]


@pytest.mark.parametrize("text", [DEEP, "[]", "7", "", "{", '{"run":7,"host":[],"pid":{}}'])
def test_a_holders_file_stops_nobody(text: str, filled: Path) -> None:
    (filled / "holder.json").write_text(text)
    assert JOB.run(ITEMS, checkpoint=filled).skipped == len(ITEMS)


def test_what_the_holders_file_says_cannot_steer_a_terminal(filled: Path) -> None:
    hold = holder.Holder(LocalStore(filled), "run")
    hold.take(takeover=False)
    try:
        (filled / "holder.json").write_text(json.dumps({"run": "x\n\x1b[2J", "host": "\x9b1m"}))
        with pytest.raises(CheckpointHeld) as caught:
            JOB.run(ITEMS, checkpoint=filled)
    finally:
        hold.release()
    assert str(caught.value).isprintable()


def test_names_of_files_cannot_steer_a_terminal(filled: Path) -> None:
    os.mkfifo(filled / "shards" / "x\n\x1b[2J")
    with pytest.raises(CheckpointDamaged) as caught:
        JOB.run(ITEMS, checkpoint=filled)
    assert str(caught.value).isprintable()
    assert caught.value.files == ("shards/x\n\x1b[2J",)


def test_a_shard_that_is_none_is_damaged_though_its_checksum_is_right(filled: Path) -> None:
    path = min((filled / "shards").iterdir())
    data = b"no Parquet"
    path.write_bytes(data)

    def change(head: dict[str, Any], end: dict[str, Any]) -> None:
        for shard in head["shards"]:
            if shard["path"].endswith(path.name):
                shard.update(bytes=len(data), checksum=blake2b(data, digest_size=16).hexdigest())

    for number in range(len(list((filled / "journal").iterdir()))):
        forged = filled / f"journal/{number:020d}.jsonl"
        if path.name in forged.read_text():
            forge(filled, number, change)
            rechain(filled, number)
    store = LocalStore(filled)
    with pytest.raises(CheckpointDamaged, match="cannot be read as Parquet"):
        publish(DirectoryReader(store), filled.parent / "published")


def rechain(place: Path, number: int) -> None:
    """Have each record after this one name the checksum that the one before it has now."""
    for after in range(number + 1, len(list((place / "journal").iterdir()))):
        before = (place / f"journal/{after - 1:020d}.jsonl").read_bytes().splitlines()[-1]
        checksum = json.loads(before)["checksum"]
        forge(place, after, lambda head, end, checksum=checksum: head.update(previous=checksum))


@pytest.mark.parametrize("how", ["a bit of the footer", "another's bytes", "cut", "gone"])
def test_a_dataset_is_verified_when_it_is_opened(how: str, place: Path) -> None:
    for end in (10, 20):
        JOB.run(ITEMS[:end], checkpoint=place)
    result = JOB.run(ITEMS, checkpoint=place)
    assert result.dataset().to_table().num_rows == len(ITEMS)
    one, other = sorted((place / "shards").iterdir())[:2]
    data = bytearray(one.read_bytes())
    if how == "a bit of the footer":
        data[data.rfind(b"id")] ^= 1  # the name of a column
        one.write_bytes(data)
        assert isinstance(pq.read_table(one), pa.Table)  # which nothing else would see
    elif how == "another's bytes":
        one.write_bytes(other.read_bytes())
    elif how == "cut":
        one.write_bytes(data[:-1])
    else:
        one.unlink()
    with pytest.raises(CheckpointDamaged) as caught:
        result.dataset()
    assert caught.value.files == (f"shards/{one.name}",)
