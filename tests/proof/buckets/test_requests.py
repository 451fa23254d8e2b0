"""What a run asks of a bucket, by the server's own log; and buckets that are no place for one."""

from __future__ import annotations

import os
import sys
from collections import Counter
from typing import Any

import pytest

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.directory import holder
from resumable_tasks.checkpoint.directory.repair import verify
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.errors import CheckpointUnusable
from tests import warm
from tests.conftest import Bucket


def run(bucket: Bucket, count: int) -> Any:
    task = resumable_task(lambda items: items, name="asked", key="id", batch_size=1, concurrency=1)
    return task.run([{"id": n} for n in range(count)], checkpoint=bucket.url, progress=False)


def asked(bucket: Bucket) -> list[tuple[str, str]]:
    """The requests since the last look: what was asked, of which folder or file."""
    found = [
        (seen.kind, (seen.key or seen.query.get("prefix", "")).removeprefix(f"{bucket.prefix}/"))
        for seen in bucket.server.log
    ]
    bucket.server.forget()
    return [(kind, name.partition("/")[0] if "/" in name else name) for kind, name in found]


CLOSING = 5  # the record of the end, a look at what there is, the holder's file


def test_a_commit_is_two_requests(bucket: Bucket) -> None:
    result = run(bucket, 30)
    found = Counter(asked(bucket))
    commits = found["PUT", "shards"]
    assert 1 <= commits <= 30
    assert found["CREATE", "journal"] == commits + 2, "the claim and the end are records too"
    assert result.table().num_rows == 30


def test_the_requests_of_opening_and_closing_are_few(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holder, "BEAT_SECONDS", 1000.0)
    run(bucket, 0)
    assert len(asked(bucket)) <= 7 + CLOSING
    for _ in range(3):
        run(bucket, 1)
        asked(bucket)
    records = sum("journal/" in name for name in bucket.stored())
    run(bucket, 1)
    assert len(asked(bucket)) <= 12 + records + CLOSING


def test_a_heartbeat_is_one_request(bucket: Bucket) -> None:
    store = open_store(bucket.url)
    store.list("")
    hold = holder.Holder(store, "of-a-test")
    asked(bucket)
    hold.beat()
    assert asked(bucket) == [("PUT", "holder.json")]


@pytest.mark.parametrize("there", [0, 5])
def test_a_service_without_conditions_is_refused_and_has_harmed_nothing(
    bucket: Bucket, there: int
) -> None:
    if there:
        run(bucket, there)
    before = bucket.stored()
    bucket.server.options.conditions = False
    with pytest.raises(CheckpointUnusable, match="two callers create the same name"):
        run(bucket, 10)
    after = bucket.stored()
    assert {name: after[name] for name in before} == before
    assert not {name for name in after if "/" in name} - {*before}, "a run has begun there"
    bucket.server.options.conditions = True
    result = run(bucket, 10)
    assert result.skipped == there
    assert not verify(open_store(bucket.url)).damages


FORKS = """
import os, sys
from resumable_tasks import resumable_task
task = resumable_task(lambda items: items, name="forked", key="id")
items = [{"id": 1}]
task.run(items, checkpoint=sys.argv[1] + "/a", progress=False)
child = os.fork()
if not child:
    task.run(items, checkpoint=sys.argv[1] + "/b", progress=False)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_child_is_refused_and_does_not_hang(bucket: Bucket) -> None:
    done = warm.run(
        [sys.executable, "-c", FORKS, bucket.url],
        env=dict(os.environ),
        capture_output=True,
        timeout=60,
    )
    assert done.returncode == 2, done.stderr
    assert b"fork before the first use of a bucket" in done.stderr
    assert b'get_context("spawn")' in done.stderr
    assert not [name for name in bucket.stored() if name.startswith("b/")]
