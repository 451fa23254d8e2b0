"""What only the state machine could think of, kept as plain tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_tasks import Fenced, ResumableTask, resumable_task
from resumable_tasks.checkpoint.directory import merging, repair
from resumable_tasks.checkpoint.store.local import LocalStore
from tests.checkpoint.directory.made import commit, never, opened, rows_in
from tests.proof.properties import raw


@pytest.fixture
def job() -> ResumableTask:
    @resumable_task(key="id", batch_size=1)
    def job(rows):
        return [{"id": row["id"], "v": 1} for row in rows]

    return job


def test_a_key_that_was_mended_twice_is_not_taken_from_its_last_shard(
    place: Path, job: ResumableTask
) -> None:
    """The record of a repair is lost, and what it had retracted was done again long since."""

    def run() -> raw.Raw:
        job.run([{"id": "k"}], checkpoint=place)
        return raw.read(place)

    for _ in range(2):
        (place / run().home["k"]).unlink()
        repair.repair(LocalStore(place))
    before = run()
    first_repair = next(n for n, head in enumerate(before.heads) if head["kind"] == "repair")
    (place / raw.record(first_repair)).unlink()
    repair.repair(LocalStore(place))
    assert repair.verify(LocalStore(place)).damages == []
    raw.read(place)
    assert list(run().rows) == ["k"]


def test_rows_that_a_repair_has_copied_out_of_a_merge_that_is_lost_stand_once(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FEWEST", 2)
    checkpoint = opened(place)
    numbers = [commit(checkpoint, [n]) for n in range(3)]
    checkpoint.tidy(never)
    checkpoint.close()
    (place / raw.record(numbers[0])).unlink()
    repair.repair(LocalStore(place))  # copies the rows of the others
    assert sorted(rows_in(place)) == [(1, "a"), (2, "a")]
    merge = next(n for n, head in enumerate(raw.read(place).heads) if head["kind"] == "merge")
    (place / raw.record(merge)).unlink()
    repair.repair(LocalStore(place))
    assert sorted(rows_in(place)) == [(1, "a"), (2, "a")]
    raw.read(place)


def test_a_run_that_a_repair_has_overtaken_is_told_so_whatever_was_merged(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging, "FEWEST", 2)
    checkpoint = opened(place, changes=True)
    for n in range(4):
        commit(checkpoint, [n])
        checkpoint.tidy(never)
    checkpoint.close()
    sleeper = opened(place, changes=True)
    sleeper.close()
    merges = [n for n, head in enumerate(raw.read(place).heads) if head["kind"] == "merge"]
    assert len(merges) > 1
    (place / raw.record(merges[-1])).unlink()
    repair.repair(LocalStore(place))
    with pytest.raises(Fenced):
        commit(sleeper, [0], "b")
