"""Publishers race, and are killed at every point: each row is published once."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path
from typing import Any

import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from resumable_tasks import redo, resumable_task
from tests import warm
from tests.conftest import Bucket

POINTS = ["publish.looked", "publish.staged", "publish.exchanged"]


def run(place: Path, count: int) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=7)
    job.run([{"id": i} for i in range(count)], checkpoint=place)


def publisher(place: Path, dest: str, form: str, fault: str) -> Any:
    code = f"""
from resumable_tasks.checkpoint.directory.place import Directory
from resumable_tasks.results.publish import publish
from resumable_tasks.testing.faults import install_from_env
install_from_env()
publish(Directory({str(place)!r}).reader(), {dest!r}, form={form!r})
"""
    return warm.start(["-c", code], env={**os.environ, "RESUMABLE_TASKS_FAULTS": fault})


WHERE = ["table", "table in a bucket", "files in a bucket"]


@pytest.mark.parametrize(
    ("where", "redone", "steps"),
    [
        pytest.param("table in a bucket", True, 3, id="table in a bucket"),
        pytest.param("files in a bucket", False, 3, id="files in a bucket"),
        *(
            pytest.param(where, redone, 8, marks=pytest.mark.long)
            for where in WHERE
            for redone in (False, True)
        ),
    ],
)
def test_three_at_once_of_which_some_are_killed(
    where: str, redone: bool, steps: int, place: Path, tmp_path: Path, bucket: Bucket
) -> None:
    chance = random.Random(f"{where} {redone}")
    dest = str(tmp_path / "table") if where == "table" else bucket.url
    form = "parquet" if where == "files in a bucket" else "delta"
    codes = []
    for step in range(1, steps + 1):
        if redone and step > 1:
            redo(place, keys=[chance.randrange(10 * step - 10)])
        run(place, 10 * step)
        points = POINTS if form == "delta" else POINTS[1:]
        faults = [f"{chance.choice(points)}:1:kill", f"{chance.choice(points)}:1:kill", ""]
        if where == "table in a bucket":
            kind = chance.choice(["500-after", "reset-after", "409-conflict"])
            bucket.server.fail(kind, method="PUT", key="*/_delta_log/*")
        racing = [publisher(place, dest, form, fault) for fault in faults]
        codes += [each.wait(120) for each in racing]
        assert codes[-1] == 0
        assert ids(where, dest, bucket) == list(range(10 * step))
    assert set(codes) == {0, -9}


def ids(where: str, dest: str, bucket: Bucket) -> list[int]:
    if where == "files in a bucket":
        there = bucket.stored()
        names = json.loads(there["_published.json"])["files"]
        found: Any = pa.concat_tables([pq.read_table(pa.BufferReader(there[n])) for n in names])
        return sorted(found["id"].to_pylist())
    options = {"allow_http": "true"} if where == "table in a bucket" else None
    return sorted(polars.read_delta(dest, storage_options=options)["id"].to_list())
