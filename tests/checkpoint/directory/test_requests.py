"""Where every call is a request: how many there are, whatever the time they take."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointDamaged, CheckpointUnusable, StoreError, resumable_task
from resumable_tasks.checkpoint.directory import repair as repairs
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint, read_checkpoint
from resumable_tasks.checkpoint.directory.holder import Holder
from resumable_tasks.checkpoint.directory.holder import read as read_holder
from resumable_tasks.checkpoint.directory.manifest import Manifest
from tests.checkpoint.store.plain import AtPlain, Plain, at

WANTED = Manifest("job", "1", {"field": "id"}, "one")


@resumable_task(name="job", key="id", batch_size=1)
def job(items: list[Any]) -> list[Any]:
    return items


def items(count: int) -> list[dict[str, int]]:
    return [{"id": n} for n in range(count)]


@pytest.fixture
def place(tmp_path: Path) -> AtPlain:
    return at(tmp_path / "checkpoint")


def opened(store: Plain) -> dict[str, int]:
    """The requests of an opening alone."""
    store.counted()
    checkpoint = DirectoryCheckpoint.open(store, WANTED)
    found = store.counted()
    checkpoint.close()
    return dict(found)


def test_a_new_checkpoint_is_opened_by_five_requests(place: AtPlain) -> None:
    assert opened(place.plain) == {
        "is_empty .": 1,
        "put holder.json": 1,
        "create job.json": 2,
        "create journal": 1,
    }


def test_one_is_resumed_by_ten_and_its_records(place: AtPlain) -> None:
    job.run(items(20), checkpoint=place)
    found = opened(place.plain)
    records = len(list(Path(place.path, "journal").iterdir())) - 1
    assert records >= 3
    assert found == {
        "is_empty .": 1,
        "read job.json": 1,
        "list journal": 1,
        "read holder.json": 1,
        "put holder.json": 1,
        "create job.json": 1,
        "read ahead journal": records,
        "list shards": 1,
        "create journal": 1,
        "list outbox": 1,
    }


def test_a_commit_is_two(place: AtPlain) -> None:
    commits = []

    @resumable_task(name="job", key="id", batch_size=4, concurrency=1)
    def one_at_a_time(items: list[Any]) -> list[Any]:
        return items

    run = one_at_a_time.run(items(40), checkpoint=place, listeners=[commits.append])
    committed = sum(type(event).__name__ == "Committed" for event in commits)
    counted = place.plain.counted()
    assert run.completed == 40
    assert committed >= 2
    assert counted["put shards"] == committed
    # And the claim, and the close.
    assert counted["create journal"] == committed + 2
    # At the end it is looked whether all is still there, and the hold is given up.
    assert counted.total() == 5 + 2 * committed + len(
        ["close", "list journal", "list shards", "read holder.json", "delete holder.json"]
    )


class Met:
    """Lets calls of these kinds wait for each other, each kind once: alone, one fails."""

    def __init__(self, store: Plain, *kinds: str) -> None:
        self.left = set(kinds)
        self.barrier = threading.Barrier(len(kinds), timeout=30)
        self.lock = threading.Lock()
        store.before = self

    def __call__(self, method: str, name: str) -> None:
        kind = f"{method} {name.partition('/')[0]}"
        with self.lock:
            waits = kind in self.left
            self.left.discard(kind)
        if waits:
            self.barrier.wait()


@pytest.mark.parametrize(
    ("resumed", "kinds"),
    [
        (False, ["put holder.json", "create job.json"]),
        (True, ["read job.json", "list journal"]),
        (True, ["read holder.json", "create job.json"]),
        (True, ["read ahead journal", "list shards"]),
    ],
)
def test_what_an_opening_asks_goes_out_at_once(
    place: AtPlain, resumed: bool, kinds: list[str]
) -> None:
    if resumed:
        job.run(items(3), checkpoint=place)
    met = Met(place.plain, *kinds)
    DirectoryCheckpoint.open(place.plain, WANTED).close()
    assert not met.left


def test_the_end_is_two_rounds_of_requests(place: AtPlain) -> None:
    checkpoint = DirectoryCheckpoint.open(place.plain, WANTED)
    met = Met(place.plain, "create journal", "list journal", "list shards", "read holder.json")
    place.plain.counted()
    checkpoint.end("done", {})
    checkpoint.close()
    assert not met.left
    assert place.plain.counted().total() == 5


def test_a_hold_that_another_has_taken_is_left_to_it_at_the_end(place: AtPlain) -> None:
    store = place.plain
    checkpoint = DirectoryCheckpoint.open(store, WANTED)
    Holder(store, "other")._write()
    checkpoint.end("done", {})
    checkpoint.close()
    assert read_holder(store)["run"] == "other"


def test_a_hold_that_cannot_be_looked_at_does_not_fail_a_run(
    place: AtPlain, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoint = DirectoryCheckpoint.open(place.plain, WANTED)

    def refuse(method: str, name: str) -> None:
        if (method, name) == ("read", "holder.json"):
            raise StoreError("no")

    place.plain.before = refuse
    checkpoint.end("done", {})
    checkpoint.close()
    assert "holder.json could not be removed" in caplog.text


def test_what_is_read_is_read_ahead(place: AtPlain) -> None:
    for count in (5, 10, 15, 20):  # at least four shards, however many a commit takes
        job.run(items(count), checkpoint=place)
    store, path = place.plain, Path(place.path)
    records = len(list((path / "journal").iterdir()))
    _, state = read_checkpoint(store)
    shards = [path / name for name in state.shards]  # the first is of record 1
    store.counted()
    assert place.reader().read(lambda rows: sum(t.num_rows for t in rows.tables())) == 20
    assert store.counted() == {
        "read job.json": 1,
        "list journal": 1,
        "read ahead journal": records,
        "read ahead shards": len(shards),
    }
    assert repairs.verify(store).damages == []
    counted = store.counted()
    assert (counted["read ahead journal"], counted["read ahead shards"]) == (records, len(shards))
    # Besides, the first record once, for what it says of job.json.
    assert (counted["read journal"], counted["read shards"]) == (1, 0)

    # What is missing or damaged hides nothing of what comes after it.
    shards[1].unlink()
    shards[-1].write_bytes(b"not what it was")
    (path / "journal" / f"{1:020d}.jsonl").unlink()
    damages = {damage.file: damage.what for damage in repairs.verify(store).damages}
    assert damages[f"journal/{1:020d}.jsonl"] == "it is missing"
    assert damages[f"shards/{shards[1].name}"] == "it is missing"
    assert damages[f"shards/{shards[-1].name}"].startswith("it is 15 bytes long")


class IgnoresConditions(Plain):
    """As a gateway that drops the header of a conditional put."""

    def create(self, name: str, data: bytes) -> bool:
        self.put(name, data)
        return True


def test_a_store_without_conditions_is_refused_and_has_changed_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    job.run(items(3), checkpoint=at(path))

    def there() -> dict[str, bytes]:
        found = (each for each in path.rglob("*") if each.is_file())
        return {str(each.relative_to(path)): each.read_bytes() for each in found}

    before = there()
    with pytest.raises(CheckpointUnusable, match="lets two callers create the same name"):
        job.run(items(5), checkpoint=AtPlain(str(path), IgnoresConditions(path)))
    assert there() == before
    assert job.run(items(5), checkpoint=at(path)).completed == 2
    new = tmp_path / "new"
    with pytest.raises(CheckpointUnusable, match="lets two callers create the same name"):
        job.run(items(5), checkpoint=AtPlain(str(new), IgnoresConditions(new)))


def test_what_is_no_checkpoint_is_told_from_a_new_one(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointUnusable, match="holds other files"):
        job.run(items(3), checkpoint=at(foreign))
    assert [each.name for each in foreign.iterdir()] == ["notes.txt"]

    for lost, what in (("job.json", "there is a journal"), ("journal", "there are shards")):
        path = tmp_path / lost.replace(".", "-")
        job.run(items(3), checkpoint=at(path))
        for each in sorted((path / lost).iterdir()) if lost == "journal" else [path / lost]:
            each.unlink()
        if lost == "journal":
            (path / "job.json").unlink()
        with pytest.raises(CheckpointDamaged, match=what):
            job.run(items(3), checkpoint=at(path))
