"""Pruning is killed at each of its calls, on a disk and in a bucket.

Whatever is left, nothing looks like a checkpoint that is whole and has fewer rows; a run of that
partition goes on or begins from nothing; and the next pruning leaves nothing.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from resumable_tasks import prune, resumable_task
from resumable_tasks.checkpoint.directory import repair
from resumable_tasks.checkpoint.directory.finding import find
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.testing import faults
from tests import warm
from tests.conftest import Bucket

pytest.importorskip("obstore")
ITEMS = [{"id": n} for n in range(12)]
OLD, NEW = date(2026, 11, 1), date(2026, 11, 2)
SOME = 5
POINTS = ("prune.ended", "store.set_aside", "prune.deleted")


@resumable_task(key="id", batch_size=3)
def job(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return items


class Place:
    """Partitions of which one is to be pruned, on a disk or in a bucket."""

    def __init__(self, bucket: Bucket | None, folder: Path) -> None:
        self._bucket, self._folder = bucket, folder
        self._made = 0
        self.template = self.new()
        for day in (OLD, NEW):
            run = job.run(ITEMS, checkpoint=self.template, partition=day)
            run.publish(folder / f"out-{day}")

    def new(self) -> str:
        """A place where nothing is yet."""
        self._made += 1
        name = f"place-{self._made}"
        return f"{self._bucket.url}/{name}" if self._bucket else str(self._folder / name)

    def copy(self) -> str:
        """Another place with the same partitions."""
        place = self.new()
        if self._bucket is None:
            shutil.copytree(self.template, place)
        else:
            for name, data in self.files(self.template).items():
                self._bucket.server.put(
                    f"{self._bucket.prefix}/{place.rpartition('/')[2]}/{name}", data
                )
        return place

    def files(self, place: str) -> dict[str, bytes]:
        """What is there, read past the library; markers of a bucket, and locks, left out."""
        if self._bucket is None:
            every = (Path(at, name) for at, _, names in os.walk(place) for name in names)
            found = {str(path.relative_to(place)): path.read_bytes() for path in every}
        else:
            start = place.rpartition("/")[2] + "/"
            stored = self._bucket.stored().items()
            found = {n.removeprefix(start): data for n, data in stored if n.startswith(start)}
        return {
            n: data for n, data in found.items() if not re.search(r"/@\d\.json$|holder\.lock$", n)
        }


@pytest.fixture(params=["disk", "bucket"])
def place(request: pytest.FixtureRequest, bucket: Bucket, tmp_path: Path) -> Place:
    return Place(bucket if request.param == "bucket" else None, tmp_path)


def child(place: str, *more: str, fault: str = "") -> Any:
    command = [sys.executable, "-m", "tests.proof.crash.prune_child", place, *more]
    environment = {**os.environ, faults.VARIABLE: fault}
    return warm.run(command, capture_output=True, text=True, timeout=60, env=environment)


def looks_whole(place: str) -> bool:
    """Whether a checkpoint can be read there without an error."""
    reader = Reader(open_store(place))
    reader.examine()
    return reader.damage is None


@pytest.mark.parametrize("count", [SOME, pytest.param(None, marks=pytest.mark.long)])
def test_killed_at_a_call(place: Place, count: int | None) -> None:
    whole = child(place.copy())
    assert whole.returncode == 0, whole.stderr
    every = [(n + 1, when) for n in range(int(whole.stdout)) for when in ("before", "after")]
    assert len(every) > 40
    kept = {n: data for n, data in place.files(place.template).items() if n.startswith(str(NEW))}
    left: set[int] = set()
    # From the last call backwards: what it deletes it deletes late.
    for at, when in every[:: -(len(every) // (count or len(every)))]:
        where = f"killed {when} call {at}"
        here = place.copy()
        assert child(here, str(at), when).returncode == -9, where
        for found in find(here, print):
            try:
                if looks_whole(found.place):
                    report = repair.verify(open_store(found.place))
                    assert (report.rows, report.damages) == (len(ITEMS), []), where
            except CheckpointDamaged:
                assert found.archived, where
        left.add(len(place.files(here)))
        if at % 2:
            run = job.run(ITEMS, checkpoint=here, partition=OLD)
            assert run.skipped + run.completed == len(ITEMS), where
            assert run.skipped in (0, len(ITEMS)), where
            assert run.table().num_rows == len(ITEMS), where
            # Begun from nothing, its rows are not those that were published.
            prune(here, keep=1, unpublished=True)
        else:
            prune(here, keep=1)
        assert place.files(here) == kept, where
        assert [found.place for found in find(here, print)] == [f"{here}/{NEW}"], where
    assert len(left) > 2, "it was killed in one place only"


@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_point(place: Place, point: str) -> None:
    here = place.copy()
    assert child(here, fault=point).returncode == -9
    assert len(prune(here, keep=1).removed) == 1
    assert {name.partition("/")[0] for name in place.files(here)} == {str(NEW)}


def test_two_at_once_remove_it_once(place: Place) -> None:
    here = place.copy()
    command = [sys.executable, "-m", "tests.proof.crash.prune_child", here]
    both = [warm.start(command) for _ in range(2)]
    codes = [one.wait(60) for one in both]
    assert 0 in codes
    prune(here, keep=1)
    assert {name.partition("/")[0] for name in place.files(here)} == {str(NEW)}
