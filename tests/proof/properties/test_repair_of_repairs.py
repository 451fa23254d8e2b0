"""What only the state machine could think of, kept as plain tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from resumable_tasks import ResumableTask, resumable_task
from resumable_tasks.checkpoint.directory import repair
from resumable_tasks.checkpoint.store.local import LocalStore
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
