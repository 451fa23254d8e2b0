"""A repair beside runs that are alive: it fences them first, and moves only what is older."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import CheckpointDamaged, CheckpointHeld, resumable_task
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory import moving
from resumable_tasks.checkpoint.directory.driver import DirectoryCheckpoint
from resumable_tasks.checkpoint.directory.journal import Journal
from resumable_tasks.checkpoint.directory.moving import Repairs
from resumable_tasks.checkpoint.directory.place import DirectoryReader
from resumable_tasks.checkpoint.directory.records import decode
from resumable_tasks.checkpoint.directory.repair import repair, verify
from resumable_tasks.checkpoint.form import Opening
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.engine.events import Committed, Event
from resumable_tasks.errors import Fenced

COUNT = 60
ITEMS = [{"id": i} for i in range(COUNT)]


class NoLocks(LocalStore):
    def lock(self, name: str, *, steal: bool = False) -> Callable[[], None] | None:
        return lambda: None


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm(None)


@pytest.fixture
def job() -> Any:
    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{"id": row["id"], "value": 1} for row in rows]

    return resumable_task(handler, name="job", key="id", batch_size=10, concurrency=1)


def records(place: Path) -> list[Path]:
    return sorted((place / "journal").glob("0*.jsonl"))


# Where the run is when the repair comes: before its shard, with no record of it yet, and after.
@pytest.mark.parametrize("point", ["shard.before_put", "commit.shard_written", "commit.done"])
def test_a_live_run_is_fenced_before_anything_is_moved(point: str, place: Path, job: Any) -> None:
    """Locks do not tell of it. Whatever it has told as committed is there afterwards."""
    job.run(ITEMS[:20], checkpoint=place)
    told: set[object] = set()
    passed = 0

    def act(name: str) -> None:
        nonlocal passed
        passed += name == point
        if name == point and passed == 2:
            faults.arm(None)
            records(place)[1].write_bytes(b"damaged")
            repair(NoLocks(place))

    def tell(event: Event) -> None:
        if isinstance(event, Committed):
            told.update(event.keys)

    faults.arm(act)
    with pytest.raises(Fenced):
        job.run(ITEMS, checkpoint=place, listeners=[tell])
    assert verify(LocalStore(place)).damages == []
    assert len(records(place)) > 5
    done = set(DirectoryReader(LocalStore(place)).completed_keys())
    assert told
    assert told <= done
    result = job.run(ITEMS, checkpoint=place)
    assert result.skipped == len(done)
    assert result.table(ordered=True).column("id").to_pylist() == list(range(COUNT))


def test_a_run_that_goes_on_while_a_repair_moves_things_commits_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is alive and no lock tells of it; it has a batch in hand when the repair begins."""
    in_hand, go_on = threading.Event(), threading.Event()

    def handler(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if rows[0]["id"] == 40:
            in_hand.set()
            go_on.wait(30)
        return [{"id": row["id"], "value": 1} for row in rows]

    job = resumable_task(handler, name="job", key="id", batch_size=10, concurrency=1)
    job.run(ITEMS[:20], checkpoint=place)
    told: set[object] = set()
    ended: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, Committed):
            told.update(event.keys)

    def run() -> None:
        try:
            job.run(ITEMS, checkpoint=place, listeners=[tell])
            ended.append("well")
        except Fenced:
            ended.append("fenced")

    live = threading.Thread(target=run)
    live.start()
    in_hand.wait(30)
    records(place)[1].write_bytes(b"damaged")
    carry_out = Repairs.carry_out

    def late(self: Repairs) -> None:
        go_on.set()
        live.join()
        carry_out(self)

    monkeypatch.setattr(Repairs, "carry_out", late)
    repair(NoLocks(place))
    assert ended == ["fenced"]
    assert told <= set(DirectoryReader(LocalStore(place)).completed_keys())
    assert verify(LocalStore(place)).damages == []


def test_what_is_committed_while_a_repair_looks_around_counts(
    place: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks again, and finds the record and the shard."""
    job.run(ITEMS[:20], checkpoint=place)
    records(place)[1].write_bytes(b"damaged")
    fence, tries = Repairs.fence, []

    def late(self: Repairs) -> None:
        tries.append(1)
        if len(tries) == 1:
            store = LocalStore(place)
            path = f"shards/e1-{'0' * 16}.parquet"
            store.put(path, min((place / "shards").iterdir()).read_bytes())
            log = Journal.after(store, self._records[max(self._records)])
            log.append(moving.Commit("close", 1, "other"))
        fence(self)

    monkeypatch.setattr(Repairs, "fence", late)
    repair(LocalStore(place))
    assert len(tries) == 2
    assert verify(LocalStore(place)).damages == []


def test_a_repair_that_dies_before_the_end_is_done_again(place: Path, job: Any) -> None:
    for end in (10, 20, 30):
        job.run(ITEMS[:end], checkpoint=place)
    shards = {path.read_bytes() for path in (place / "shards").iterdir()}
    for number in (1, 4):
        records(place)[number].unlink()
    min((place / "shards").iterdir()).write_bytes(b"damaged")

    class Died(BaseException):
        pass

    for nth in range(1, 40):
        passed = 0

        def die(name: str, nth: int = nth) -> None:
            nonlocal passed
            passed += 1
            if passed == nth:
                raise Died

        faults.arm(die)
        try:
            repair(LocalStore(place))
        except Died:
            continue
        finally:
            faults.arm(None)
        break
    else:
        pytest.fail("it never came to an end")
    assert nth > 5
    assert verify(LocalStore(place)).damages == []
    left = [p.read_bytes() for p in (*(place / "shards").iterdir(), *(place / "damaged").iterdir())]
    assert len(shards - set(left)) == 1  # the one that this test has damaged
    assert job.run(ITEMS[:30], checkpoint=place).table().num_rows == 30


@pytest.mark.parametrize("by", ["run", "repair"])
def test_a_repair_that_was_overtaken_appends_nothing(
    by: str, place: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sleeps behind its fence, and wakes up when others have been at work for long."""
    for end in (10, 20, 30):
        job.run(ITEMS[:end], checkpoint=place)
    hit = min((place / "shards").iterdir())
    hit.write_bytes(bytes(hit.stat().st_size))  # as long as it was, so that a run can begin
    carry_out = Repairs.carry_out

    def late(self: Repairs) -> None:
        monkeypatch.setattr(Repairs, "carry_out", carry_out)
        if by == "repair":
            records(place)[1].write_bytes(b"damaged")
            repair(NoLocks(place))
        job.run(ITEMS[:40], checkpoint=place, takeover=True)
        carry_out(self)

    monkeypatch.setattr(Repairs, "carry_out", late)
    with pytest.raises(Fenced, match="after this repair's"):
        repair(NoLocks(place))
    repair(LocalStore(place))
    assert verify(LocalStore(place)).damages == []
    result = job.run(ITEMS, checkpoint=place)
    assert result.table(ordered=True).column("id").to_pylist() == list(range(COUNT))
    assert result.completed == 20 + (10 if by == "run" else 0)


def test_a_record_of_an_older_epoch_is_found_and_replaced(place: Path, job: Any) -> None:
    """Such as a repair of an earlier version has left, that slept behind its fence."""
    for end in (10, 20):
        job.run(ITEMS[:end], checkpoint=place)
    store = LocalStore(place)
    last = decode(records(place)[-1].read_bytes(), f"journal/{records(place)[-1].name}")
    Journal.after(store, last).append(moving.Commit("repair", last.epoch - 1, "asleep"))
    (damage,) = verify(store).damages
    assert damage.file == f"journal/{records(place)[-1].name}"
    with pytest.raises(CheckpointDamaged, match="it is of epoch 1, after epoch 2"):
        job.run(ITEMS, checkpoint=place)
    repair(store)
    assert verify(store).damages == []
    assert job.run(ITEMS, checkpoint=place).completed == COUNT - 20


def test_the_epochs_that_lost_claims_have_taken_are_stepped_over(place: Path, job: Any) -> None:
    """The last records are lost, claims among them: no run of theirs commits after the repair."""
    for end in (10, 20, 30, 30):  # the last one has a claim and no shard
        job.run(ITEMS[:end], checkpoint=place)
    heads = [decode(path.read_bytes(), f"journal/{path.name}") for path in records(place)]
    highest = max(head.epoch for head in heads)
    for path, head in zip(records(place), heads, strict=True):
        if head.epoch > 1:
            path.write_bytes(b"damaged")
    repair(LocalStore(place))
    after = [decode(path.read_bytes(), f"journal/{path.name}") for path in records(place)]
    assert min(r.epoch for r in after if r.kind == "repair") > highest


def test_shards_are_moved_after_the_record_that_says_so(
    place: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.run(ITEMS, checkpoint=place)
    hit = min((place / "shards").iterdir())
    hit.write_bytes(b"damaged" * 1000)
    move = LocalStore.move

    def looked_at(store: LocalStore, name: str, to: str) -> None:
        last = decode(records(place)[-1].read_bytes(), f"journal/{records(place)[-1].name}")
        assert last.kind == "repair"
        assert name in last.info["retracted_shards"]
        move(store, name, to)

    monkeypatch.setattr(LocalStore, "move", looked_at)
    repair(LocalStore(place))
    assert not hit.exists()
    assert verify(LocalStore(place)).damages == []


def test_who_is_overtaken_while_opening_is_told_so(
    place: Path, job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run takes over, replaces what was read and sweeps it: nothing is damaged."""
    job.run(ITEMS[:20], checkpoint=place)
    read = DirectoryCheckpoint._read_all
    other = DirectoryCheckpoint.open

    def overtaken(self: DirectoryCheckpoint, _: Any, **how: Any) -> Any:
        monkeypatch.setattr(DirectoryCheckpoint, "_read_all", read)
        opened.append(other(LocalStore(place), self.manifest, opening=Opening(takeover=True)))
        min((place / "shards").iterdir()).unlink()
        return read(self, None, **how)

    opened: list[DirectoryCheckpoint] = []
    monkeypatch.setattr(DirectoryCheckpoint, "_read_all", overtaken)
    with pytest.raises(CheckpointHeld) as caught:
        job.run(ITEMS, checkpoint=place)
    assert caught.value.exit_code == 3
    opened[0].close()
    with pytest.raises(CheckpointDamaged):  # and if nobody has overtaken, it is damage
        job.run(ITEMS, checkpoint=place)
