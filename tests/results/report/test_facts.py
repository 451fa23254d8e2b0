"""What a report tells is what the journal has."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from resumable_tasks import redo, resumable_task
from resumable_tasks.checkpoint.directory import folding, past
from resumable_tasks.checkpoint.directory.compacting import compact
from resumable_tasks.checkpoint.directory.past import Past
from resumable_tasks.checkpoint.directory.repair import repair
from resumable_tasks.checkpoint.store.local import LocalStore
from resumable_tasks.checkpoint.store.urls import open_store
from resumable_tasks.cli import main
from resumable_tasks.errors import CheckpointDamaged
from resumable_tasks.results.report import facts
from resumable_tasks.results.report.timeline import POINTS, RUNS, timeline
from tests.checkpoint.directory.made import commit, filled, opened
from tests.results.report.conftest import BAD


def test_the_numbers_add_up(checkpoint: Path) -> None:
    found = facts.read(LocalStore(checkpoint))
    assert [run.how for run in found.runs] == ["died", "died", "failed"]
    assert found.completed == sum(run.completed for run in found.runs) == 60 - len(BAD) - 2
    assert (found.failed, found.parked, found.expected) == (len(BAD) + 1, 1, 60)
    kinds = {kind.error: kind.count for kind in found.kinds}
    assert kinds == {"KeyError": 3, "ValueError": 3, "TypeError": 1}
    assert found.remaining is not None
    assert found.remaining.items == found.failed
    assert found.cost == pytest.approx(sum(run.cost for run in found.runs))
    assert found.cost_each == pytest.approx(
        found.cost / (found.cost / 0.01 + found.failed), rel=0.5
    )
    assert found.budget == 2.0
    points = found.timeline.points
    assert sum(point.keys for point in points) == points[-1].done == found.completed
    assert sum(point.commits for point in points) == sum(run.commits for run in found.runs)
    assert points[-1].cost == pytest.approx(found.cost)
    assert found.sizes.rows == found.completed
    assert found.sizes.journal_bytes == sum(
        path.stat().st_size for path in (checkpoint / "journal").iterdir()
    )
    assert [column.name for column in found.rows.columns] == ["id", "words", "<th>", "cost"]
    assert len(found.rows.sample) == facts.ROWS


def test_what_a_commit_says_of_its_batches(place: Path) -> None:
    resumable_task(lambda rows: rows, name="job", key="id", batch_size=2).run(
        [{"id": n} for n in range(20)], checkpoint=place
    )
    told = [
        json.loads(path.read_text().split("\n")[0])["info"]
        for path in sorted((place / "journal").glob("*.jsonl"))[1:-1]
    ]
    assert sum(info["batches"] for info in told) == 10
    assert all(("longest" in info) == (info["batches"] > 1) for info in told)
    assert all(info.get("longest", 0) <= info["seconds"] for info in told)


def test_the_sample_is_of_a_shard_that_is_there_when_it_is_read(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(place, 40)
    sizes = facts._sizes

    def merge(*given: Any) -> Any:
        for _ in range(2):  # the second removes what the first has merged
            compact(LocalStore(place))
        return sizes(*given)

    monkeypatch.setattr(facts, "_sizes", merge)
    before = set((place / "shards").iterdir())
    found = facts.read(LocalStore(place))
    assert before.isdisjoint((place / "shards").iterdir())
    assert len(found.rows.sample) == facts.ROWS, found.rows.why_none


def test_what_is_to_be_done_again_is_not_counted_twice(place: Path) -> None:
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=5, concurrency=1)
    job.run([{"id": n} for n in range(20)], checkpoint=place)
    redo(place, keys=[3, 4])
    found = facts.read(LocalStore(place))
    assert found.completed == found.timeline.points[-1].done == 18
    assert [kind for kind, _ in found.timeline.by_hand] == ["redo"]
    job.run([{"id": n} for n in range(20)], checkpoint=place)
    found = facts.read(LocalStore(place))
    assert [run.completed for run in found.runs] == [20, 2]
    assert found.timeline.points[-1].done == 20


def test_an_empty_checkpoint_and_one_at_work(place: Path) -> None:
    seen: list[facts.Facts] = []

    def look(rows: list[Any]) -> list[Any]:
        seen.append(facts.read(LocalStore(place)))
        return rows

    job = resumable_task(look, name="job", key="id", batch_size=5, concurrency=1)
    job.run([{"id": n} for n in range(10)], checkpoint=place)
    assert [(each.status, each.runs[-1].how) for each in seen] == [("running", "running")] * 2
    assert seen[0].rows.why_none == "no rows are committed"
    assert facts.read(LocalStore(place)).runs[-1].how == "done"


def test_damage_is_a_fact_and_what_stands_before_it_is_told(place: Path) -> None:
    filled(place, 10)
    record = sorted((place / "journal").iterdir())[5]
    record.write_bytes(b"\x00" * 100)
    found = facts.read(LocalStore(place))
    assert found.status == "damaged"
    assert record.name in found.damage
    assert len(found.runs) == 1
    assert 0 < found.completed < 10


def test_records_in_segments_are_read_and_their_keys_are_not(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(place, 40)
    before, after = Past(), Past()
    past.read(LocalStore(place), before)
    assert sum(before.commits["keys"]) == 40
    monkeypatch.setattr(folding, "FEWEST", 8)
    monkeypatch.setattr(folding, "_NEWEST", 4)
    monkeypatch.setattr(folding, "GRACE_SECONDS", 0.0)
    compact(LocalStore(place))
    segments = sorted((place / "journal").glob("*.gz"))
    assert segments
    data = gzip.decompress(segments[0].read_bytes())
    assert data.count(b'{"key":') > 8
    segments[0].write_bytes(gzip.compress(data.replace(b'{"key":', b'{"kex":')))
    past.read(LocalStore(place), after)
    assert after.commits == before.commits
    segments[0].write_bytes(data)
    with pytest.raises(CheckpointDamaged, match=segments[0].name):
        past.read(LocalStore(place), Past())


def test_many_commits_and_runs_are_few_points() -> None:
    """A million items in as many commits, in a thousand runs: what is drawn stays small."""
    found, time = Past(), 0
    for run in range(1_000):
        head = {"epoch": run, "run": f"r{run}", "info": {}}
        end = {"keys": 0, "retracted": 0, "failures": 0}
        for kind, keys in (("claim", 0), *[("commit", 100)] * 10, ("close", 0)):
            time += 1
            stamp = datetime.fromtimestamp(time, UTC).isoformat()
            found.follow({**head, "kind": kind, "time": stamp}, {**end, "keys": keys})
    drawn = timeline(found, ["done"] * 1_000)
    assert (len(drawn.spans), drawn.hidden) == (RUNS, 1_000 - RUNS)
    assert len(drawn.points) <= POINTS + RUNS
    assert drawn.points[-1].done == 1_000_000
    assert drawn.before == (1_000 - RUNS) * 1_000


def test_a_stretch_without_a_commit_is_a_pause() -> None:
    found = Past()
    end = {"keys": 1, "retracted": 0, "failures": 0}
    for kind, second in (("claim", 0), *(("commit", n) for n in (1, 2, 3, 4, 34, 35, 36))):
        stamp = f"2026-11-28T10:00:{second:02}"
        found.follow({"kind": kind, "epoch": 1, "run": "r", "time": stamp}, end)
    (pause,) = timeline(found, ["running"]).pauses
    assert pause.end - pause.start == 30.0


def test_a_later_look_reads_only_what_has_come_since(bucket: Any) -> None:
    pytest.importorskip("obstore")
    made = opened(bucket.url)
    for n in range(20):
        commit(made, [n])
    source = facts.Source(lambda: open_store(bucket.url))
    assert source.read().completed == 20
    commit(made, [20, 21])
    bucket.server.forget()
    found = source.read()
    assert (found.completed, found.timeline.points[-1].done) == (22, 22)
    assert bucket.server.counts(f"{bucket.prefix}/journal/*")["GET"] == 2
    made.end("done", {})
    made.close()
    # Another checkpoint has come to this place.
    reset = CliRunner().invoke(main, ["reset", bucket.url, "--yes"])
    assert reset.exit_code == 0, reset.output
    filled(bucket.url, 3)
    assert (source.read().completed, len(source.read().runs)) == (3, 1)


def test_a_later_look_sees_what_a_repair_has_put_aside(place: Path) -> None:
    filled(place, 10)
    source = facts.Source(lambda: LocalStore(place))
    assert source.read().completed == 10
    record = sorted((place / "journal").iterdir())[5]
    record.write_bytes(b"")
    repair(LocalStore(place))
    found = source.read()
    assert found.status == "incomplete"
    assert found.completed == found.timeline.points[-1].done == 9


def test_a_bucket_has_the_same_facts(bucket: Any) -> None:
    pytest.importorskip("obstore")
    job = resumable_task(lambda rows: rows, name="job", key="id", batch_size=5)
    job.run([{"id": n} for n in range(20)], checkpoint=bucket.url)
    found = facts.read(open_store(bucket.url))
    assert (found.completed, found.status, len(found.rows.sample)) == (20, "done", facts.ROWS)
