"""The oldest partitions are removed: which ones, and what stays whatever is asked for."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from resumable_tasks import (
    Fenced,
    Interrupted,
    ItemFailure,
    SqlCheckpoint,
    UsageError,
    prune,
    redo,
    resumable_task,
)
from resumable_tasks.base import faults
from resumable_tasks.checkpoint.directory import holder
from resumable_tasks.checkpoint.directory.archive import archive
from resumable_tasks.checkpoint.directory.finding import find
from resumable_tasks.checkpoint.directory.reader import Reader
from resumable_tasks.checkpoint.store.urls import is_url, open_store
from resumable_tasks.cli import main
from resumable_tasks.task.partitions import folder_of, moment_of
from resumable_tasks.task.prune import Age, Plan, Pruned
from tests.conftest import Bucket

pytest.importorskip("obstore")
FIRST = date(2026, 11, 1)
ITEMS = [{"id": n} for n in range(10)]


@resumable_task(key="id", batch_size=5)
def job(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return items


def day(n: int) -> date:
    return FIRST + timedelta(days=n)


def night(place: str, n: int, *, publish: bool = True) -> Any:
    run = job.run(ITEMS, checkpoint=f"{place}/nightly", partition=day(n))
    if publish:
        run.publish(f"{place}/out/{day(n)}")
    return run


def names(place: str) -> set[str]:
    """What is right below a place, archives and leftovers too."""
    if is_url(place):
        found = open_store(place).look("")[1]  # type: ignore[attr-defined]
        return {
            name
            for name in found
            if any(n != "@1.json" for n in open_store(f"{place}/{name}").list(""))
            or open_store(place).look(name)[1]  # type: ignore[attr-defined]
        }
    return set(os.listdir(place))


def whys(pruned: Pruned) -> dict[str, str]:
    return {each.name: each.why for each in pruned.kept}


def cli(*arguments: str, **how: Any) -> Result:
    return CliRunner().invoke(main, ("prune", *arguments), **how)


@pytest.fixture(params=["disk", pytest.param("bucket", marks=pytest.mark.long)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "disk":
        return str(tmp_path)
    url: str = request.getfixturevalue("bucket").url
    return url


BOTH = pytest.mark.parametrize("place", ["disk", "bucket"], indirect=True)


@pytest.fixture
def nightly(place: str) -> str:
    """Three nights, all of them published."""
    for n in range(3):
        night(place, n)
    return f"{place}/nightly"


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    faults.arm(None)


@BOTH
def test_the_oldest_beyond_so_many_are_removed(place: str, nightly: str) -> None:
    looked = prune(nightly, keep=1, dry_run=True)
    assert names(nightly) == {"2026-11-01", "2026-11-02", "2026-11-03"}
    done = prune(nightly, keep=1)
    assert done.partitions == looked.partitions
    assert [(each.name, each.rows, each.items) for each in done.removed] == [
        ("2026-11-01", 10, 10),
        ("2026-11-02", 10, 10),
    ]
    assert done.bytes > 2000
    assert all(each.why == f"published to {place}/out/{each.name}" for each in done.removed)
    assert whys(done) == {"2026-11-03": "one of the newest 1"}
    assert names(nightly) == {"2026-11-03"}
    assert [each.name for each in prune(nightly, keep=1).partitions] == ["2026-11-03"]
    # Nothing is known of it any more: the night begins from nothing, and is a night like others.
    assert night(place, 0).completed == 10
    assert night(place, 0).skipped == 10
    assert [each.name for each in prune(nightly, keep=1).removed] == ["2026-11-01"]
    assert names(nightly) == {"2026-11-03"}


@BOTH
def test_what_is_not_published_stays_and_why_is_told(place: str) -> None:
    night(place, 0, publish=False)
    run = night(place, 1)
    redo(run.checkpoint, keys=[3])  # as many rows, and not those that were published
    night(place, 1, publish=False)
    night(place, 2)
    replaced = f"{place}/out/{day(2)}"
    job.run(ITEMS, checkpoint=f"{place}/other").publish(replaced)
    part = night(place, 3, publish=False).checkpoint
    part = job.run(ITEMS[:4], checkpoint=part)
    part.publish(f"{place}/out/part", only_given=True)
    night(place, 4)
    nightly = f"{place}/nightly"
    pruned = prune(nightly, keep=1)
    assert not pruned.removed
    assert whys(pruned) == {
        "2026-11-01": "not published",
        "2026-11-02": f"rows were added since it was published to {place}/out/2026-11-02",
        "2026-11-03": f"published to {replaced}, which no longer has its rows",
        "2026-11-04": f"4 of 10 rows are published to {place}/out/part",
        "2026-11-05": "one of the newest 1",
    }
    # Published to another place as well: one that has all is enough.
    part.publish(f"{place}/out/whole")
    assert [each.name for each in prune(nightly, keep=1).removed] == ["2026-11-04"]
    assert len(prune(nightly, keep=1, unpublished=True).removed) == 3
    assert names(nightly) == {"2026-11-05"}


def test_a_destination_that_cannot_be_looked_at_tells_nothing(tmp_path: Path) -> None:
    night(str(tmp_path), 0)
    night(str(tmp_path), 1)
    dest = tmp_path / "out/2026-11-01"
    shutil.rmtree(dest)
    dest.write_text("a file")
    (why, _) = whys(prune(tmp_path / "nightly", keep=1)).values()
    assert why.startswith(f"published to {dest}, which no longer has its rows")


def test_what_is_not_done_stays(place: str) -> None:
    @resumable_task(key="id", batch_size=5, name="job", tolerated_failures=10, version="1")
    def failing(items: list[dict[str, Any]]) -> list[Any]:
        return [ItemFailure(item["id"], "no") if item["id"] == 7 else item for item in items]

    @resumable_task(key="id", batch_size=5, concurrency=1)
    def stopped(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if items[0]["id"] == 5:
            raise KeyboardInterrupt
        return items

    nightly = f"{place}/nightly"
    run = failing.run(ITEMS, checkpoint=nightly, partition=day(0))
    run.publish(f"{place}/out/{day(0)}")
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        stopped.run(ITEMS, checkpoint=nightly, partition=day(1))
    night(place, 2)
    pruned = prune(nightly, keep=1, unpublished=True)
    assert not pruned.removed
    assert whys(pruned)["2026-11-01"] == "done, 1 item failed"
    assert whys(pruned)["2026-11-02"].startswith("in")  # terrupted, or complete
    one = prune(nightly, keep=1, unfinished=True)
    assert [each.name for each in one.removed] == ["2026-11-01"]
    assert len(prune(nightly, keep=1, unfinished=True, unpublished=True).removed) == 1


def test_what_is_damaged_stays(place: str, nightly: str) -> None:
    store = open_store(f"{nightly}/2026-11-01")
    store.delete(next(iter(Reader.at(store.url).state.shards)))
    headless = open_store(f"{nightly}/2026-11-02")
    headless.put("job.json", b"{")
    pruned = prune(nightly, keep=1, unpublished=True, unfinished=True)
    assert not pruned.removed
    lost, cut, newest = whys(pruned).values()
    assert lost.startswith("damaged: shards/e1-")
    assert cut.startswith("damaged: job.json: ")
    assert newest == "one of the newest 1"
    assert len(prune(nightly, keep=1, damaged=True).removed) == 2
    assert names(nightly) == {"2026-11-03"}


def test_what_is_young_stays(place: str) -> None:
    today = datetime.now(UTC).date()
    for days in (0, 10, 100, 200):
        when = today - timedelta(days=days)
        job.run(ITEMS[:1], checkpoint=place, partition=when)
    job.run(ITEMS[:1], checkpoint=place, partition="lessons")

    def removed(**how: Any) -> int:
        return len(prune(place, unpublished=True, dry_run=True, **how).removed)

    assert removed(older_than=timedelta(days=90)) == 2
    assert removed(older_than=timedelta(days=90), keep=3) == 1
    assert removed(older_than=timedelta(days=150), keep=1) == 1
    assert removed(keep=4) == removed(keep=30) == removed(older_than=timedelta.max) == 0
    assert removed(keep=1, spare=today - timedelta(days=200)) == 2
    every = whys(prune(place, keep=1, unpublished=True, older_than=timedelta(days=90)))
    assert set(every.values()) == {
        "its name is not a date",
        "one of the newest 1",
        "not older than 90 days",
    }


def test_what_a_reset_has_archived_stays_until_it_is_asked_for(place: str, nightly: str) -> None:
    archived = archive(open_store(f"{nightly}/2026-11-01"), "of-the-test")
    night(place, 0)
    pruned = prune(nightly, keep=1)
    assert [each.name for each in pruned.removed] == ["2026-11-01", "2026-11-02"]
    assert {each.why for each in pruned.kept if each.archived} == {"archived by a reset"}
    assert Reader.at(archived).state.rows == 10
    # Its rows are where they were published no more: the second run has replaced them.
    assert not prune(nightly, keep=1, archived=True).removed
    pruned = prune(nightly, keep=1, archived=True, unpublished=True)
    assert [(each.name, each.archived) for each in pruned.removed] == [("2026-11-01", True)]
    assert names(nightly) == {"2026-11-03"}


def test_others_files_are_left_alone(tmp_path: Path) -> None:
    for n in range(2):
        night(str(tmp_path), n)
    nightly = tmp_path / "nightly"
    (nightly / "notes").mkdir()
    (nightly / "2026-11-01" / "notes.txt").write_text("mine")
    pruned = prune(nightly, keep=1)
    assert whys(pruned)["2026-11-01"] == "notes.txt in it is not part of a checkpoint"
    (nightly / "2026-11-01" / "notes.txt").unlink()
    (nightly / "link").symlink_to(nightly / "2026-11-01")
    shutil.copytree(nightly / "2026-11-01", nightly / "2026-10-01")
    for folder in ("journal", "shards"):
        shutil.rmtree(nightly / f"2026-10-01/{folder}")
        (nightly / f"2026-10-01/{folder}").symlink_to(nightly / f"2026-11-01/{folder}")
    every = prune(nightly, keep=1, unpublished=True, unfinished=True, damaged=True, dry_run=True)
    assert "symbolic link" in whys(every)["2026-10-01"]
    assert [each.name for each in prune(nightly, keep=1).removed] == ["2026-11-01"]
    assert names(str(nightly)) == {"2026-10-01", "2026-11-02", "notes", "link"}


@pytest.mark.parametrize("folder", ["journal", "shards", "outbox", "damaged", "snapshots"])
def test_others_folders_within_are_left_alone(tmp_path: Path, folder: str) -> None:
    for n in range(2):
        night(str(tmp_path), n)
    nightly = tmp_path / "nightly"
    mine = nightly / "2026-11-01" / folder / "mine"
    mine.mkdir(parents=True)
    (mine / "notes.txt").write_text("mine")
    pruned = prune(nightly, keep=1, damaged=True)
    assert whys(pruned)["2026-11-01"] == f"{folder}/mine in it is not part of a checkpoint"
    assert (mine / "notes.txt").exists()
    shutil.rmtree(mine)
    assert [each.name for each in prune(nightly, keep=1, damaged=True).removed] == ["2026-11-01"]
    assert names(str(nightly)) == {"2026-11-02"}


def test_others_things_in_what_a_pruning_has_left_are_named_until_they_are_gone(
    tmp_path: Path,
) -> None:
    for n in range(2):
        night(str(tmp_path), n)
    nightly = tmp_path / "nightly"
    left = nightly / "2026-11-01.pruned-20261101T000000-abcdef"
    (nightly / "2026-11-01").rename(left)
    (left / "shards" / "mine").mkdir()
    # What is the checkpoint's is removed; what is not, stays, and is not removed again and again.
    assert [each.name for each in prune(nightly, keep=1).removed] == ["2026-11-01"]
    assert [path.name for path in (left / "shards").iterdir()] == ["mine"]
    for dry_run in (True, False):
        pruned = prune(nightly, keep=1, dry_run=dry_run)
        assert not pruned.removed
        assert whys(pruned)["2026-11-01"] == (f"shards/mine in {left} is not part of a checkpoint")
    (left / "shards" / "mine").rmdir()
    assert [each.name for each in prune(nightly, keep=1).removed] == ["2026-11-01"]
    assert names(str(nightly)) == {"2026-11-02"}


@BOTH
def test_a_run_that_is_at_work_keeps_its_checkpoint(place: str, nightly: str) -> None:
    begun, go = threading.Event(), threading.Event()

    def slow(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        begun.set()
        go.wait(60)
        return items

    task = resumable_task(slow, key="id", name="job")
    more = [*ITEMS, {"id": 99}]
    at = f"{nightly}/2026-11-01"
    thread = threading.Thread(target=task.run, args=(more,), kwargs={"checkpoint": at})
    thread.start()
    try:
        assert begun.wait(60)
        every = {"unpublished": True, "unfinished": True, "damaged": True, "archived": True}
        pruned = prune(nightly, keep=2, **every)  # type: ignore[arg-type]
        assert whys(pruned)["2026-11-01"] == "a run is at work on it"
    finally:
        go.set()
        thread.join(60)
    assert Reader.at(at).state.rows == 11


def test_a_run_that_has_begun_since_keeps_its_checkpoint(place: str, nightly: str) -> None:
    plan = Plan.of(nightly, Age(keep=1), ())
    night(place, 0, publish=False)
    done = plan.carry_out()
    assert [each.name for each in done.removed] == ["2026-11-02"]
    assert whys(done)["2026-11-01"] == f"a run has started in {nightly}/2026-11-01 meanwhile"
    assert Reader.at(f"{nightly}/2026-11-01").status == "done"


@BOTH
@pytest.mark.sample
@pytest.mark.parametrize("point", ["prune.ended", "store.set_aside", "prune.deleted"])
def test_a_run_that_begins_at_any_moment_loses_nothing(
    place: str, nightly: str, point: str
) -> None:
    ran: list[Any] = []

    def begin(name: str) -> None:
        if name == point and not ran:
            ran.append(None)
            run = job.run(ITEMS, checkpoint=nightly, partition=day(0), takeover=True)
            ran[0] = run.completed, run.table().num_rows

    faults.arm(begin)
    prune(nightly, keep=2)
    faults.arm(None)
    assert ran == [(10, 10)]
    assert Reader.at(f"{nightly}/2026-11-01").state.rows == 10
    pruned = prune(nightly, keep=2)  # what the run has set aside, if it has
    assert whys(pruned)["2026-11-01"] == "not published"
    assert names(nightly) == {"2026-11-01", "2026-11-02", "2026-11-03"}
    assert not [found for found in find(nightly, print) if found.archived]


def test_a_run_that_has_read_all_before_its_end_does_not_go_on(place: str, nightly: str) -> None:
    """Its claim finds the record by which the checkpoint was ended in the meantime."""
    arrived, ended = threading.Event(), threading.Event()
    told: list[Exception] = []

    def begin() -> None:
        try:
            job.run(ITEMS, checkpoint=nightly, partition=day(0), takeover=True)
        except Exception as error:
            told.append(error)

    run = threading.Thread(target=begin)

    def at(name: str) -> None:
        if name == "journal.before_create" and threading.current_thread() is not pruner:
            arrived.set()
            assert ended.wait(60)
        elif name == "journal.before_create" and run.ident is None:
            run.start()
            assert arrived.wait(60)
        elif name == "prune.ended":
            ended.set()
            run.join(60)

    pruner = threading.current_thread()
    faults.arm(at)
    assert [each.name for each in prune(nightly, keep=2).removed] == ["2026-11-01"]
    assert [type(error) for error in told] == [Fenced]
    assert "was pruned while this run was starting" in str(told[0])
    assert names(nightly) == {"2026-11-02", "2026-11-03"}


def test_a_run_that_sleeps_through_it_is_told(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody hears its heartbeat, so that its checkpoint is taken for interrupted."""
    monkeypatch.setattr(holder, "BEAT_SECONDS", 600.0)
    begun, go = threading.Event(), threading.Event()
    told: list[Exception] = []

    def slow(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
        begun.set()
        go.wait(60)
        return items

    task = resumable_task(slow, key="id", name="job", batch_size=2)

    def sleep() -> None:
        try:
            task.run(ITEMS, checkpoint=bucket.url, partition=day(0))
        except Exception as error:
            told.append(error)

    thread = threading.Thread(target=sleep)
    thread.start()
    try:
        assert begun.wait(60)
        job.run(ITEMS, checkpoint=bucket.url, partition=day(1))
        open_store(f"{bucket.url}/{day(0)}").delete(holder.NAME)
        pruned = prune(bucket.url, keep=1, unfinished=True)
        assert [each.name for each in pruned.removed] == ["2026-11-01"]
        assert job.run(ITEMS, checkpoint=bucket.url, partition=day(0)).completed == 10
    finally:
        go.set()
        thread.join(60)
    assert [type(error) for error in told] == [Fenced]
    assert "was pruned while this run was at work" in str(told[0])
    prune(bucket.url, keep=1)
    assert {name.rpartition("/")[0] for name in bucket.stored() if "-01/" in name} == {
        "2026-11-01",
        *(f"2026-11-01/@1{folder}" for folder in ("", "/journal", "/shards")),
    }
    assert Reader.at(f"{bucket.url}/2026-11-01").state.rows == 10


@pytest.mark.parametrize(
    "how", [{}, {"keep": 0}, {"keep": True}, {"older_than": 90}, {"older_than": timedelta(-1)}]
)
def test_nothing_is_removed_without_a_rule(tmp_path: Path, how: Any) -> None:
    with pytest.raises(UsageError):
        prune(tmp_path, **how)


def test_a_place_without_partitions_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no partitions"):
        prune(SqlCheckpoint("sqlite:///items.db", table="items", key="id"), keep=1)
    with pytest.raises(UsageError, match="only directories and buckets are supported"):
        prune("postgresql://host/name", keep=1)
    with pytest.raises(UsageError, match="not a directory"):
        prune(tmp_path / "nowhere", keep=1)
    job.run(ITEMS, checkpoint=tmp_path)
    with pytest.raises(UsageError, match="is a checkpoint"):
        prune(tmp_path, keep=1)


@pytest.mark.parametrize(
    "partition",
    [
        date(2026, 11, 23),
        datetime(2026, 11, 23, 4, 5, 6),
        datetime(2026, 11, 23, 4, 5, 6, 789),
        datetime(2026, 11, 23, 4, tzinfo=UTC),
    ],
)
def test_the_moment_of_a_partition_is_its_own(partition: date) -> None:
    moment = moment_of(folder_of(partition))
    if isinstance(partition, datetime):
        assert moment == partition.replace(tzinfo=None)
    else:
        assert moment == datetime(2026, 11, 23)


def test_other_dates_are_dates_and_other_names_are_not() -> None:
    assert moment_of("2026-11") == datetime(2026, 11, 1)
    assert moment_of("2026-W47") == datetime(2026, 11, 16)
    assert moment_of("20261123") == datetime(2026, 11, 23)
    for name in ("lessons", "2026", "2026-13-01", "v1", "T", "Z", "1", "2026-11-23-b"):
        assert moment_of(name) is None


def test_folders_that_are_named_for_moments_in_zones_have_an_age(tmp_path: Path) -> None:
    moments = ("2026-11-22T23:30:00-02:00", "2026-11-23T02:00:00+02:00", "2026-11-23T10:00:00")
    for name in moments:
        job.run(ITEMS[:1], checkpoint=tmp_path / name)
    assert moment_of(moments[0]) == datetime(2026, 11, 23, 1, 30)
    assert moment_of(moments[1]) == datetime(2026, 11, 23)
    assert moment_of("0001-01-01T00:00:00+14:00") is None
    pruned = prune(tmp_path, keep=2, unpublished=True)
    assert [each.name for each in pruned.removed] == [moments[1]]


def test_the_command_asks_on_a_terminal_alone(
    place: str, nightly: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = cli(nightly, "--keep", "1", "--published", "--dry-run")
    assert looked.exit_code == 0
    assert looked.stdout.splitlines()[-1].startswith("would remove 2 of 3 partitions: 20 rows, ")
    refused = cli(nightly, "--keep", "1")
    assert refused.exit_code == 2
    assert refused.stdout == looked.stdout
    assert "--yes" in refused.stderr
    assert cli(nightly).exit_code == 2
    assert cli(nightly, "--older-than", "ninety").exit_code == 2
    assert len(names(nightly)) == 3

    with monkeypatch.context() as on_a_terminal:
        on_a_terminal.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True)
        assert cli(nightly, "--keep", "1", input="n\n").exit_code == 2
        assert len(names(nightly)) == 3
        asked = cli(nightly, "--keep", "2", input="y\n")
    assert asked.exit_code == 0, asked.output
    assert "for good?" in asked.stderr

    done = cli(nightly, "--keep", "1", "--yes", "--json")
    assert done.exit_code == 0
    told = json.loads(done.stdout)
    assert [(each["name"], each["removed"]) for each in told["partitions"]] == [
        ("2026-11-02", True),
        ("2026-11-03", False),
    ]
    assert told["bytes"] == told["partitions"][0]["bytes"] > 1000
    assert (
        cli(nightly, "--older-than", "9999w", "--yes")
        .stdout.splitlines()[-1]
        .startswith("nothing to remove: 1 partition")
    )
