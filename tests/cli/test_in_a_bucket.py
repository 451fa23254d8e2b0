"""The commands on a checkpoint in a bucket, damaged and repaired there."""

from __future__ import annotations

import json
from typing import Any

from click.testing import CliRunner, Result

from resumable_tasks import resumable_task
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.cli import main

ITEMS = [{"id": n} for n in range(12)]


def handle(items: list[Any]) -> list[Any]:
    if any(item["id"] == 7 for item in items):
        raise ValueError("bad")
    return items


def cli(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_every_command_does_there_what_it_does_on_a_disk(bucket: Any) -> None:
    job = resumable_task(handle, name="job", key="id", batch_size=2, tolerated_failures=1)
    url = bucket.url
    job.run(ITEMS, checkpoint=url)
    assert cli("status", url).exit_code == 0  # what failed is tolerated
    assert cli("verify", url).exit_code == 0
    assert len(cli("keys", url).stdout.splitlines()) == 11
    assert "ValueError" in cli("failures", url).stdout
    assert cli("retry", url, "--error-class", "ValueError").exit_code == 0
    assert cli("redo", url, "--key", "3").exit_code == 0
    assert len(cli("keys", url).stdout.splitlines()) == 10

    shard = next(iter(Reader.at(url).state.shards))
    bucket.server.put(f"{bucket.prefix}/{shard}", b"damaged")
    assert cli("status", url).exit_code == 4
    verified = cli("verify", url, "--json")
    assert verified.exit_code == 4
    assert [each["file"] for each in json.loads(verified.stdout)["damages"]] == [shard]
    repaired = cli("repair", url)
    assert repaired.exit_code == 0, repaired.output
    assert shard not in bucket.stored()
    assert any(name.startswith("damaged/") for name in bucket.stored())
    run = job.run(ITEMS, checkpoint=url)
    assert sorted(run.table()["id"].to_pylist()) == [n for n in range(12) if n != 7]
    assert cli("reset", url, "--yes").exit_code == 0
    assert job.run(ITEMS, checkpoint=url).completed == 11
